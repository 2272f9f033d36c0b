"""Uploads straight to the bucket: the client's PUTs go to S3, a worker checks what arrived."""

import hashlib
import os
import uuid
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from django.utils import timezone

from registry.errors import NotFound
from registry.models import Blob, DirectUpload, Event, Upload
from registry.services.uploads import expire_uploads, find_upload
from registry.storage import default_storage
from tests.factories import actor_of, make_model, safetensors_bytes
from tests.registry.api.conftest import api_of, problem_of
from workers.tasks import check_uploads

PART = 16 << 20


@pytest.fixture(autouse=True)
def bucket(s3_endpoint, monkeypatch, settings, tmp_path):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    name = f"models-{uuid.uuid4().hex[:8]}"
    client.create_bucket(Bucket=name)
    settings.STORAGE_URL = f"s3://{name}/team?endpoint={s3_endpoint}"
    settings.HOME_DIR = tmp_path
    yield name
    client.close()


@pytest.fixture
def model(alice):
    return make_model(alice, "classifier")


@pytest.fixture
def keys(bucket, s3_endpoint):
    s3 = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")

    def listed():
        begun = s3.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
        objects = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
        return {item["Key"] for item in objects}, {item["Key"] for item in begun}

    yield listed
    s3.close()


def begin(api, data, **more):
    answer = api.post("uploads/direct", {"length": len(data), **more})
    assert answer.status_code == 201, answer.content
    return answer.headers["location"], answer.json()


def sign(api, place, numbers):
    answer = api.post(f"{place}/parts", {"numbers": numbers})
    assert answer.status_code == 200, answer.content
    return {part["number"]: part for part in answer.json()["parts"]}


def put(part, data):
    start = (part["number"] - 1) * PART
    block = data[start : start + part["size_bytes"]]
    answer = httpx.put(part["url"], content=block, timeout=60)
    assert answer.status_code == 200, answer.content
    return {"number": part["number"], "etag": answer.headers["etag"]}


def send(api, data, **more):
    """Send everything, the last part first; give the address and what the parts are called."""
    place, begun = begin(api, data, **more)
    numbers = list(range(begun["parts_count"], 0, -1))
    signed = sign(api, place, numbers)
    return place, [put(signed[number], data) for number in numbers]


def complete(api, place, parts):
    return api.post(f"{place}/complete", {"parts": parts})


def problem(answer, status, code):
    return problem_of(answer, status, code)["detail"]


def register(api, place, path="weights.bin"):
    files = [{"path": path, "upload": place.rpartition("/")[2]}]
    return api.post("models/alice/classifier/versions", {"files": files})


def test_file_becomes_a_version_once_a_worker_has_checked_it(api, model, keys):
    data = os.urandom(PART + (4 << 20))
    digest = hashlib.sha256(data).hexdigest()
    place, parts = send(api, data, sha256=digest, filename="weights.bin")
    assert api.get(place).json()["state"] == "receiving"
    problem(register(api, place), 400, "upload_unfinished")
    answer = complete(api, place, parts)
    assert (answer.status_code, answer.json()["state"]) == (202, "checking")
    assert answer.headers["location"] == place
    problem(register(api, place), 400, "upload_unchecked")
    assert keys()[0] == {f"team/incoming/{place.rpartition('/')[2]}"}

    check_uploads()
    checked = api.get(place).json()
    assert (checked["state"], checked["sha256"], checked["error"]) == ("complete", digest, None)
    assert keys() == ({f"team/blobs/{digest[:2]}/{digest}"}, set())
    assert register(api, place).status_code == 201
    assert default_storage().read(digest) == data
    assert Event.objects.filter(action="upload.complete", data__sha256=digest).count() == 1


def test_addresses_are_bound_to_one_part_and_fifteen_minutes(api):
    place, begun = begin(api, b"x" * (PART + 5))
    assert (begun["parts_count"], begun["part_size_bytes"]) == (2, PART)
    answer = api.post(f"{place}/parts", {"numbers": [2]})
    assert answer.headers["cache-control"] == "no-store"
    (part,) = answer.json()["parts"]
    assert part["size_bytes"] == 5
    query = parse_qs(urlsplit(part["url"]).query)
    assert query["X-Amz-Expires"] == ["900"]
    assert query["partNumber"] == ["2"]
    assert "content-length" in query["X-Amz-SignedHeaders"][0].split(";")
    assert urlsplit(part["url"]).path.endswith(f"/incoming/{place.rpartition('/')[2]}")


def test_encrypted_storage_encrypts_what_arrived(api, keys, settings):
    settings.MASTER_KEYS = "5e" * 32
    data = os.urandom(1000)
    digest = hashlib.sha256(data).hexdigest()
    place, parts = send(api, data)
    assert complete(api, place, parts).status_code == 202
    check_uploads()
    assert api.get(place).json()["sha256"] == digest
    names, _ = keys()
    assert {name.split("/")[1] for name in names} == {"sealed", "keys"}
    assert default_storage().read(digest) == data


def test_parts_sent_twice_and_named_in_any_order_make_one_file(api):
    data = os.urandom(PART * 2 + 7)
    place, _ = begin(api, data)
    signed = sign(api, place, [1, 2, 3])
    put(signed[2], bytes(len(data)))
    parts = [put(signed[number], data) for number in (3, 1, 2)]
    assert complete(api, place, parts).status_code == 202
    assert complete(api, place, parts).status_code == 202
    check_uploads()
    assert api.get(place).json()["sha256"] == hashlib.sha256(data).hexdigest()
    assert complete(api, place, parts).json()["state"] == "complete"
    problem(api.post(f"{place}/parts", {"numbers": [1]}), 409, "upload_complete")


def test_parts_that_do_not_fit_are_refused_and_can_be_mended(api):
    data = os.urandom(PART + 9)
    place, parts = send(api, data)
    assert "Part 2" in problem(complete(api, place, parts[1:]), 400, "part_missing")
    problem(complete(api, place, [*parts, parts[0]]), 400, "repeated")
    problem(complete(api, place, [*parts, {"number": 3, "etag": "x"}]), 400, "out_of_range")
    wrong = [{**parts[0], "etag": '"' + "0" * 32 + '"'}, parts[1]]
    problem(complete(api, place, wrong), 400, "wrong_part")
    problem(complete(api, place, [{"number": 1, "etag": "a\nb"}]), 400, "invalid")
    assert api.get(place).json()["state"] == "receiving"
    assert complete(api, place, parts).status_code == 202
    check_uploads()
    assert api.get(place).json()["state"] == "complete"


def test_part_that_never_arrived_is_refused(api):
    data = os.urandom(PART + 9)
    place, _ = begin(api, data)
    first = put(sign(api, place, [1])[1], data)
    parts = [first, {"number": 2, "etag": first["etag"]}]
    problem(complete(api, place, parts), 400, "wrong_part")


@pytest.mark.parametrize(
    ("filename", "sha256", "said"),
    [
        ("", "0" * 64, ("digest_mismatch", "not 0000")),
        ("model.safetensors", "", ("malformed_file", "safetensors")),
    ],
)
def test_bytes_that_are_not_what_was_said_fail_with_the_reason(
    api, model, keys, filename, sha256, said
):
    code, words = said
    place, parts = send(api, b"no header" * 100, filename=filename, sha256=sha256)
    assert complete(api, place, parts).status_code == 202
    check_uploads()
    failed = api.get(place).json()
    assert (failed["state"], failed["error"]["code"]) == ("failed", code)
    assert words in failed["error"]["detail"]
    assert Event.objects.get(action="upload.refuse").data["code"] == code
    assert failed["error"]["detail"] in problem(register(api, place), 400, code)
    assert keys() == (set(), set())
    assert not Blob.objects.exists()
    check_uploads()
    assert api.delete(place).status_code == 204


def test_good_header_passes(api, model):
    place, parts = send(api, safetensors_bytes(w=[1.0]), filename="model.safetensors")
    complete(api, place, parts)
    check_uploads()
    assert api.get(place).json()["state"] == "complete"
    assert register(api, place, "model.safetensors").status_code == 201


def test_fewer_bytes_than_announced_fail(api):
    place, _ = begin(api, b"x" * 20)
    part = sign(api, place, [1])[1]
    etag = httpx.put(part["url"], content=b"short").headers["etag"]
    complete(api, place, [{"number": 1, "etag": etag}])
    check_uploads()
    assert api.get(place).json()["error"]["code"] == "digest_mismatch"


def test_upload_that_is_given_up_or_expires_leaves_nothing(api, keys, settings):
    place, parts = send(api, b"a" * 10)
    assert keys()[1]
    assert api.delete(place).status_code == 204
    assert keys() == (set(), set())
    problem(complete(api, place, parts), 404, "not_found")

    place, parts = send(api, b"b" * 10)
    complete(api, place, parts)
    open_place, _ = send(api, b"c" * 10)
    assert len(keys()[0]) == len(keys()[1]) == 1
    Upload.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert expire_uploads() == 2
    assert keys() == (set(), set())
    assert not DirectUpload.objects.exists()
    for gone in (place, open_place):
        assert api.get(gone).status_code == 404


def test_what_has_no_row_is_swept(api, keys, settings):
    send(api, b"a" * 10)
    place, parts = send(api, b"b" * 10)
    complete(api, place, parts)
    Upload.objects.all().delete()
    assert expire_uploads() == 0
    assert len(keys()[0]) == 1
    settings.UPLOAD_EXPIRES_SECONDS = -1
    expire_uploads()
    assert keys() == (set(), set())


def test_worker_that_died_is_followed_by_another(api):
    place, parts = send(api, b"a" * 10)
    complete(api, place, parts)
    DirectUpload.objects.update(lease_expires_at=timezone.now() + timedelta(minutes=5))
    check_uploads()
    assert api.get(place).json()["state"] == "checking"
    DirectUpload.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    check_uploads()
    assert api.get(place).json()["state"] == "complete"


def test_bucket_that_does_not_answer_is_asked_again(api, settings, bucket):
    place, parts = send(api, b"a" * 10)
    complete(api, place, parts)
    there = settings.STORAGE_URL
    settings.STORAGE_URL = f"s3://{bucket}-gone?endpoint={there.partition('endpoint=')[2]}"
    check_uploads()
    settings.STORAGE_URL = there
    assert api.get(place).json()["state"] == "checking"
    DirectUpload.objects.update(lease_expires_at=None)
    check_uploads()
    assert api.get(place).json()["state"] == "complete"


def test_others_find_nothing_and_tus_does_not_take_it(api, alice, bob):
    place, _ = begin(api, b"a" * 10)
    other = api_of(bob)
    problem(other.get(place), 404, "not_found")
    problem(other.post(f"{place}/parts", {"numbers": [1]}), 404, "not_found")
    problem(other.delete(place), 404, "not_found")
    with pytest.raises(NotFound):
        find_upload(actor_of(alice), place.rpartition("/")[2])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"length": 0}, 400),
        ({"length": -1}, 400),
        ({"length": 1 << 60}, 413),
        ({"length": 1, "sha256": "xyz"}, 400),
        ({}, 400),
    ],
)
def test_nonsense_is_refused(api, body, status):
    assert api.post("uploads/direct", body).status_code == status
    assert not Upload.objects.exists()


@pytest.mark.parametrize("numbers", [[], [0], [2], list(range(1, 102)), ["1"]])
def test_only_parts_that_there_are_are_signed(api, numbers):
    place, _ = begin(api, b"a" * 10)
    assert api.post(f"{place}/parts", {"numbers": numbers}).status_code == 400


def test_without_a_bucket_the_way_is_named(api, settings, tmp_path):
    settings.STORAGE_URL = f"file://{tmp_path}/storage"
    assert "tus" in problem(api.post("uploads/direct", {"length": 4}), 409, "no_bucket")
