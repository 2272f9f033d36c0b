"""The same streams over a bucket instead of a disk."""

import hashlib
import os
import uuid

import boto3
import httpx
import pytest

from registry.models import Blob
from tests.factories import make_token
from tests.registry.stream.conftest import WebServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture
def bucket(s3_endpoint, monkeypatch):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    name = f"models-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    yield name
    client.close()


@pytest.fixture
def bucket_server(server, bucket, s3_endpoint, tmp_path):
    environment = {
        **server.environment,
        **CREDENTIALS,
        "MODELYARD_STORAGE_URL": f"s3://{bucket}/team?endpoint={s3_endpoint}",
        "MODELYARD_HOME": str(tmp_path / "home"),
    }
    other = WebServer(environment, tmp_path / "web.log")
    other.start()
    yield other
    other.stop()


def test_upload_register_and_download(bucket_server, alice, model, s3_endpoint, bucket):
    data = os.urandom(20 << 20)
    headers = {"Authorization": f"Bearer {make_token(alice)}"}
    with httpx.Client(base_url=bucket_server.url, headers=headers, timeout=60) as client:
        tus = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}
        begun = client.post(
            "/api/v1/uploads",
            content=data[: 5 << 20],
            headers={**tus, "Upload-Length": str(len(data))},
        )
        assert begun.status_code == 201, begun.text
        upload = begun.headers["location"]
        sent = client.patch(
            upload, content=data[5 << 20 :], headers={**tus, "Upload-Offset": str(5 << 20)}
        )
        assert sent.status_code == 204, sent.text
        url = "/api/v1/models/alice/classifier/versions"
        files = [{"path": "weights.bin", "upload": upload.rpartition("/")[2]}]
        assert client.post(url, json={"files": files}).status_code == 201
        answer = client.post(url, files={"config.json": ("config.json", b"{}")})
        assert answer.status_code == 201, answer.text
        file = f"{url}/1/files/weights.bin"
        assert client.get(file).content == data
        part = client.get(file, headers={"Range": "bytes=16777210-16777225"})
        assert (part.status_code, part.content) == (206, data[16777210:16777226])
        assert client.get(f"{url}/2/files/config.json").content == b"{}"
    assert Blob.objects.filter(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
    s3 = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    s3.close()
    digest = hashlib.sha256(data).hexdigest()
    assert f"team/blobs/{digest[:2]}/{digest}" in keys
    assert len(keys) == 2
