"""The pages of serving: a version deployed in one form, the endpoint, what may be changed there."""

import json
import math
import re
import subprocess
from html import unescape

import numpy as np
import pytest
from django.utils.html import escape

from registry import queue
from registry.models import Deployment, Endpoint, Role, Version
from registry.services.catalog import set_alias
from registry.services.deployments import deploy
from tests.factories import actor_of, make_model, make_version
from tests.registry.web.conftest import signed_in

pytestmark = pytest.mark.django_db
MODEL = "/models/olga/classifier"
PAGE = "/endpoints/olga/classifier"


@pytest.fixture
def model(owner):
    repository = make_model(owner)
    for _ in range(2):
        make_version(owner, repository)
    return repository


@pytest.fixture
def served(owner, model):
    for version in ("1", "2"):
        deploy(actor=actor_of(owner), model="olga/classifier", version=version)
    return Endpoint.objects.get()


def text_of(client, address=PAGE):
    answer = client.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


def form(**fields):
    options = {
        "max_batch_size": "",
        "deadline_ms": 30_000,
        "idle_seconds": 0,
        "queue_size": 256,
        "shadow_time_percent": 200,
        "threads": "",
        "runtime": "auto",
    }
    given = {"model": "olga/classifier", "version": "1", "role": "live", **options, **fields}
    return {name: value for name, value in given.items() if value is not None}


def change(client, **fields):
    answer = client.post(f"{PAGE}/change", fields)
    assert answer.status_code == 302
    return client.get(answer["Location"]).content.decode()


def test_a_version_is_deployed_in_one_form(as_owner, model):
    page = text_of(as_owner, f"{MODEL}?tab=serve")
    assert "It is not deployed." in page
    (address,) = re.findall(r'href="(/endpoints/new[^"]*)"', page)
    assert 'value="olga/classifier"' in text_of(as_owner, address.replace("&amp;", "&"))
    made = as_owner.post("/endpoints/new", form(max_batch_size=8))
    assert (made.status_code, made["Location"]) == (302, PAGE)
    one = Deployment.objects.get()
    assert (one.version.number, one.weight, one.options) == (1, 100, {"max_batch_size": 8})
    page = text_of(as_owner)
    assert "<b>Rows in a batch</b>8" in page
    assert PAGE in text_of(as_owner, f"{MODEL}?tab=serve")
    assert PAGE in text_of(as_owner, "/namespaces/olga")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"version": "7"}, "has no version '7'"),
        ({"role": "shadow", "weight": 5}, "A shadow answers nobody"),
        ({"weight": 101}, "100"),
        ({"threads": 0}, "1"),
        ({"model": "olga/nothing"}, "There is no model olga/nothing"),
        ({"version": None}, "required"),
    ],
)
def test_a_wrong_form_comes_back_with_the_reason(as_owner, model, fields, said):
    answer = as_owner.post("/endpoints/new", form(**fields))
    assert answer.status_code == 422
    assert escape(said) in answer.content.decode()
    assert not Deployment.objects.exists()


def test_only_maintainers_see_and_do_what_changes_an_endpoint(as_stranger, served, stranger):
    page = text_of(as_stranger)
    for words in ("Promote", "Undeploy", "Roll back", "Delete the endpoint", "History"):
        assert words not in page
    assert "This needs the role maintainer" in change(as_stranger, change="roll-back")
    served.repository.grants.create(user=stranger, role=Role.MAINTAINER)
    assert "Saved." in change(as_stranger, change="sticky", sticky="on")


def test_traffic_is_split_promoted_rolled_back_and_taken_down(as_owner, served):
    first, second = served.deployments.order_by("pk")
    weights = {f"w-{first.pk}": "30", f"w-{second.pk}": "70"}
    assert "The traffic is split anew." in change(as_owner, change="split", **weights)
    assert [one.weight for one in served.deployments.order_by("pk")] == [30, 70]
    wrong = {f"w-{first.pk}": "30", f"w-{second.pk}": "many"}
    assert "The weights come to 30" in change(as_owner, change="split", **wrong)
    change(as_owner, change="promote", deployment=second.pk)
    assert [one.weight for one in served.deployments.order_by("pk")] == [0, 100]
    change(as_owner, change="roll-back", reason="Too <slow> on Fridays")
    assert [one.weight for one in served.deployments.order_by("pk")] == [30, 70]
    page = change(as_owner, change="undeploy", deployment=first.pk)
    assert "It answers 30 percent of the requests" in page
    assert "has no deployment" in change(as_owner, change="undeploy", deployment=999_999)
    change(as_owner, change="sticky", sticky="on")
    served.refresh_from_db()
    assert served.sticky
    page = text_of(as_owner)
    for line in ("v1 deployed: Live, 100 %", "v2 promoted", "Rolled back", "Traffic split anew"):
        assert line in page
    assert "Too &lt;slow&gt; on Fridays" in page
    assert "is deleted" in change(as_owner, change="delete")
    assert not Endpoint.objects.exists()


def test_a_shadow_that_compared_nothing_says_so(as_owner, owner, served):
    make_version(owner, served.repository)
    deploy(actor=actor_of(owner), model="olga/classifier", version="3", role="shadow")
    page = text_of(as_owner)
    assert "no answers were compared yet" in page
    assert "of the time" not in page


@pytest.mark.parametrize(
    ("agreed", "in_time", "verdict"),
    [(400, 400, "may be promoted"), (400, 90, "too slow"), (90, 400, "agrees too seldom")],
)
def test_what_a_shadow_did_is_on_the_page(as_owner, owner, served, agreed, in_time, verdict):
    make_version(owner, served.repository)
    shadow = deploy(actor=actor_of(owner), model="olga/classifier", version="3", role="shadow")
    (live,) = served.deployments.filter(weight=100)
    shadow.trial = {
        "pair": [shadow.version_id, live.version_id],
        "time_percent": 200,
        "compared": 400,
        "agreed": agreed,
        "live_ns": 100,
        "shadow_ns": 150,
        "timed": 400,
        "in_time": in_time,
    }
    shadow.save()
    page = text_of(as_owner)
    assert f"{agreed} of 400 alike, 1.50 of the time" in page
    assert f"{in_time} of 400 in at most 200 % of the live time" in page
    assert verdict in page


def test_an_unknown_change_is_none(as_owner, served):
    change(as_owner, change="explode")
    assert served.deployments.count() == 2


def test_hidden_models_have_no_page_of_an_endpoint(as_stranger, owner):
    make_version(owner, make_model(owner, "plan", visibility="private"))
    deploy(actor=actor_of(owner), model="olga/plan", version="1")
    assert as_stranger.get("/endpoints/olga/plan").status_code == 404
    assert as_stranger.post("/endpoints/olga/plan/change", {"change": "delete"}).status_code == 404
    assert "olga/plan" not in text_of(as_stranger, "/endpoints/new")
    assert as_stranger.get("/endpoints/new?model=olga/plan").status_code == 404
    page = text_of(signed_in(owner), "/endpoints/olga/plan")
    assert "MODELYARD_TOKEN" in page


def test_what_replicas_say_is_on_the_page(as_owner, served):
    first = served.deployments.order_by("pk").first()
    said = {
        "id": "page-1",
        "host": "<b>here</b>",
        "models": [
            {
                "deployment_id": first.pk,
                "state": "failed",
                "reason": "It lacks memory.",
                "success_count": 1200,
                "success_ns": 2_400_000_000,
                "fail_count": 3,
            }
        ],
    }
    queue.report_replica("page-1", said, 30)
    page = text_of(as_owner)
    for words in ("It lacks memory.", "&lt;b&gt;here&lt;/b&gt;", "Failed", "2.0"):
        assert words in page


def test_calls_are_written_for_what_the_version_takes(as_owner, served, settings):
    settings.INFER_URL = "https://models.example.org"
    settings.GRPC_ADDRESS = "grpc://grpc.example.org:9"
    Version.objects.update(config={"preprocessing": {"kind": "words", "columns": {"text": "line"}}})
    page = text_of(as_owner)
    assert "https://models.example.org/predict/olga/classifier" in page
    assert "grpc.example.org:9" in page
    assert escape('"line":') in page
    assert "/v1/embeddings" not in page
    served.repository.task = "sentence-similarity"
    served.repository.save()
    assert "https://models.example.org/v1/embeddings" in text_of(as_owner)
    ports = [{"name": "x'y", "dtype": "float32", "shape": [None, 2, None]}]
    Version.objects.update(config={}, signature={"inputs": ports, "outputs": []})
    bare = re.sub("<[^>]+>", "", text_of(as_owner))
    assert escape("""{"x'\\''y": [[0], [0]]}""") in bare


@pytest.mark.parametrize("shape", [[None, 65], [None, 3, 224, 224], [None, 900, 900], [None]])
def test_an_example_has_the_sizes_that_the_version_declares(as_owner, served, tmp_path, shape):
    """What is too large for a command line is written to a file by the same lines."""
    ports = [{"name": "a 'b' \"", "dtype": "float32", "shape": shape}]
    ports.append({"name": "扣", "dtype": "float32", "shape": ["batch", 2]})
    Version.objects.update(config={}, signature={"inputs": ports, "outputs": []})
    page = unescape(re.sub("<[^>]+>", "", text_of(as_owner)))
    start = "python3 > input.json" if math.prod(shape[1:]) > 2000 else "curl http"
    lines = page[page.index(start) :].partition("import numpy")[0]
    curl = 'curl() { while [ "$1" != --json ]; do shift; done; printf %s "$2" > said; }\n'
    subprocess.run(["bash", "-ec", curl + lines], cwd=tmp_path, check=True)
    said = (tmp_path / "said").read_text()
    body = (tmp_path / said[1:]).read_text() if said.startswith("@") else said
    row = {name: np.array(value) for name, value in json.loads(body).items()}
    assert {name: list(value.shape) for name, value in row.items()} == {
        "a 'b' \"": shape[1:],
        "扣": [2],
    }


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("http://models.example.org:8081", '"models.example.org:8081"'),
        ("https://models.example.org/ml", '"models.example.org/ml", ssl=True'),
    ],
)
def test_the_client_of_triton_is_given_the_path_and_the_scheme(
    as_owner, served, settings, address, written
):
    settings.INFER_URL = address
    page = unescape(re.sub("<[^>]+>", "", text_of(as_owner)))
    assert f"client = triton.InferenceServerClient({written})\n" in page


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("grpcs://models.example.org:443", '"models.example.org:443", ssl=True'),
        ("grpc://models.example.org:8081", '"models.example.org:8081"'),
        ("", '"testserver:8081"'),
    ],
)
def test_the_code_for_grpc_says_whether_there_is_tls(as_owner, served, settings, address, written):
    settings.GRPC_ADDRESS, settings.GRPC_PORT = address, 8081
    page = unescape(re.sub("<[^>]+>", "", text_of(as_owner)))
    code = page[page.index("import tritonclient.grpc") :]
    assert code[code.index("client = ") :].startswith(
        f"client = triton.InferenceServerClient({written})\n"
    )


def test_a_followed_alias_moves_for_a_reason_and_the_endpoint_remembers(as_owner, owner, model):
    for number, name in ((1, "image"), (2, "text")):
        ports = {"inputs": [{"name": name, "dtype": "uint8", "shape": [-1, 4]}], "outputs": []}
        Version.objects.filter(repository=model, number=number).update(signature=ports)
    first = Version.objects.get(repository=model, number=1)
    set_alias(actor=actor_of(owner), repository=model, alias="champion", version=first)
    deploy(actor=actor_of(owner), model="olga/classifier", version="@champion")
    page = text_of(as_owner, MODEL)
    assert 'name="reason"' in page

    def move(**more):
        asked = {"alias": "champion", "version": "2", **more}
        answer = as_owner.post(f"{MODEL}/aliases", asked)
        return as_owner.get(answer["Location"]).content.decode()

    assert "does not fit what callers of olga/classifier send" in move()
    assert "points at version 2" in move(reason="Callers know.")
    page = text_of(as_owner)
    assert "@champion, which is followed here, moved from v1 to v2" in page
    assert "Callers know." in page


def test_traffic_is_split_onto_what_does_not_fit_only_for_a_reason(as_owner, owner, served):
    first, second = served.deployments.order_by("pk")
    change(as_owner, change="promote", deployment=first.pk)
    text = {"inputs": [{"name": "text", "dtype": "int64", "shape": ["batch", 8]}], "outputs": []}
    image = {"inputs": [{"name": "x", "dtype": "uint8", "shape": ["batch", 8]}], "outputs": []}
    served.repository.versions.filter(number=1).update(signature=text)
    served.repository.versions.filter(number=2).update(signature=image)
    asked = {"change": "split", f"w-{first.pk}": "50", f"w-{second.pk}": "50"}
    page = change(as_owner, **asked)
    assert "does not fit what callers" in page
    assert 'title="Reason, where a version begins' in page
    assert "The traffic is split anew." in change(as_owner, **asked, reason="Callers know.")
    page = text_of(as_owner)
    assert 'title="Reason, where a version begins' not in page
    assert "Callers know." in page
