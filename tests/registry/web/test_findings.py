"""What the registry says about files and versions, in the language of the page."""

import pickle

import pytest

from registry.errors import Invalid, Saying, Text
from registry.models import Inspection, Screening, Version
from registry.services import screening, versions
from registry.services.blobs import record_findings
from tests.factories import actor_of, make_model, make_version
from tests.registry.formats import samples

pytestmark = pytest.mark.django_db

PAGE = "/models/olga/held/versions/1"
QUARANTINED = "model.pkl 在加载时可以执行代码，而且旁边没有 safetensors 或 ONNX 文件"
PICKLE = "pickle 在加载时可以运行任意代码；本站只保存，绝不加载。"


@pytest.fixture
def held(owner):
    repository = make_model(owner, "held")
    return make_version(owner, repository, {"model.pkl": pickle.dumps({"a": print})})


def shown(client, address=PAGE):
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def test_what_the_registry_found_is_said_in_the_language_of_the_page(as_owner, held):
    assert held.state_reason.startswith("model.pkl can execute code")
    for address in (PAGE, "/models/olga/held"):
        assert "model.pkl can execute code" in shown(as_owner, address)
        chinese = shown(as_owner, f"/zh-hans{address}")
        assert QUARANTINED in chinese
        assert "can execute code" not in chinese
    assert PICKLE in shown(as_owner, f"/zh-hans{PAGE}")
    assert "A pickle can run any code" in shown(as_owner)
    api = as_owner.get("/api/v1/models/olga/held/versions/1/files").json()["items"][0]
    assert api["findings"] == [
        "A pickle can run any code as it is loaded; it is kept but never loaded here."
    ]


def test_what_an_earlier_release_wrote_is_still_shown(as_owner, held):
    Inspection.objects.update(findings_said=None)
    Version.objects.update(state_reason_said=None)
    assert "model.pkl can execute code" in shown(as_owner)
    chinese = shown(as_owner, f"/zh-hans{PAGE}")
    assert PICKLE in chinese
    assert "model.pkl can execute code" in chinese


def test_a_change_of_words_leaves_what_the_registry_said(as_owner, held):
    form = {"message": "Better words.", "state": "quarantined", "state_reason": ""}
    as_owner.post(f"{PAGE}/edit", form)
    assert "Better words." in shown(as_owner)
    assert QUARANTINED in shown(as_owner, f"/zh-hans{PAGE}")


def test_a_reason_that_somebody_typed_stays_as_it_is(as_owner, owner, held):
    for state, reason in (("archived", "None of its files could be converted."), ("ready", "")):
        changes = {"state": state, "state_reason": reason}
        versions.describe_version(actor=actor_of(owner), version=held, changes=changes)
        chinese = shown(as_owner, f"/zh-hans{PAGE}")
        # Out of the archive it stands where its files say, and the registry says why.
        assert (reason in chinese) == (state == "archived" or not reason)
        assert (QUARANTINED in chinese) == (state == "ready")


def test_what_the_sandbox_says_is_translated_only_if_it_is_ours(as_owner, owner):
    repository = make_model(owner, "held")
    data = samples.zipped({"archive/data.pkl": pickle.dumps({})})
    version = make_version(owner, repository, {"model.pt": data})
    assert "正在沙箱中检查和转换" in shown(as_owner, f"/zh-hans{PAGE}")
    blob = version.revision.artifacts.get().blob
    theirs = {"template": "{a.__class__}", "values": {"a": "x"}}
    findings = [
        Saying.of(Text("It imports {names}.", names="os.system")),
        Saying("Words of its own.", theirs),
        Saying("Plain words."),
    ]
    record_findings(blob, format_name="torch-zip", imports=["os.system"], findings=findings)
    reason = Saying.of(Invalid("It holds no tensors."))
    screening.finish_screening(Screening.objects.get(), [], {"model.pt": reason})
    chinese = shown(as_owner, f"/zh-hans{PAGE}")
    for words in (
        "它导入 os.system。",
        "Words of its own.",
        "Plain words.",
        "无法转换：它不含张量。",
    ):
        assert words in chinese
    derivatives = as_owner.get("/api/v1/models/olga/held/versions/1/derivatives").json()
    assert derivatives["reasons"] == {"model.pt": "It holds no tensors."}


def test_a_card_that_is_not_understood_says_so_in_the_language_of_the_page(as_owner, owner):
    make_version(owner, make_model(owner, "held"), {"README.md": b"---\n- a\n---\n# Held\n"})
    assert "YAML 头部不是由" in shown(as_owner, "/zh-hans/models/olga/held")
    assert "The YAML head is no list" in shown(as_owner, "/models/olga/held")


def test_what_cannot_be_used_is_no_smallest_variant(as_owner, owner):
    repository = make_model(owner, "held")
    make_version(owner, repository)
    make_version(owner, repository, {"model.pkl": pickle.dumps({"a": print})})
    assert "Smallest variant" not in shown(as_owner, "/models/olga/held")
    # Nor is a job offered that would be refused.
    assert "/jobs/new?model=" in shown(as_owner)
    assert "/jobs/new?model=" not in shown(as_owner, "/models/olga/held/versions/2")
