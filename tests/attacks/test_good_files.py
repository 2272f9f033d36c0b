"""Every good file of `good/` passes the doors, with the facts that are true of it."""

import pytest

from registry.models import Inspection
from tests.attacks import corpus
from tests.attacks.world import _django_db_helper, door, running_server, screener
from tests.factories import make_model
from workers import sandbox

__all__ = ["_django_db_helper", "door", "running_server", "screener"]
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.slow,
    pytest.mark.xdist_group("hostile-uploads"),
]
CASES = corpus.good_files()


@pytest.mark.parametrize("name", CASES)
def test_a_good_file(door, screener, name):
    case = CASES[name]
    made = case.make()
    files = made if isinstance(made, dict) else {case.path: made}
    model = make_model(door.alice, f"good-{list(CASES).index(name)}")
    address = f"/api/v1/models/{model.full_name}/versions"
    answer = door.form(files, url=address)
    assert answer.status_code == 201, answer.text
    if case.format == "torch":
        assert answer.json()["state"] == "pending"
        while screener.run_one(sandbox.probe()):
            pass
    version = door.client.get(f"{address}/1").json()
    assert version["state"] == "ready", version["state_reason"]
    items = {file["path"]: file for file in door.client.get(f"{address}/1/files").json()["items"]}
    assert items.keys() == files.keys()
    facts = dict(case.facts)
    said = facts.pop("said", None)
    if said is not None:
        about = door.client.get(f"/api/v1/models/{model.full_name}").json()
        assert {key: about[key] for key in said} == said
    if (parameters := facts.pop("parameters", None)) is not None:
        assert version["parameters_count"] == parameters
    require_facts(case, items[case.path], facts)


def require_facts(case, file, facts):
    held = case.format == "torch"
    kind = {"card": "text"}.get(case.format, case.format)
    verdict = facts.pop("verdict", "quarantined" if held else "safe")
    assert file["verdict"] == verdict, file
    if held:
        return
    assert file["format"] == kind
    finds = facts.pop("finds", "")
    findings = " ".join(file["findings"])
    assert finds in findings if finds else findings == "", findings
    found = Inspection.objects.filter(blob__sha256=file["sha256"], format=kind).last().facts
    for name, (dtype, shape) in facts.pop("tensors", {}).items():
        assert {"name": name, "dtype": dtype, "shape": shape} in found["tensors"]["items"]
    for key, value in facts.pop("metadata", {}).items():
        assert found["metadata"][key] == value
    for side in ("inputs", "outputs"):
        names = facts.pop(side, None)
        assert names is None or [port["name"] for port in found[side]] == names
    assert not facts, facts
