"""Every hostile upload of `uploads/` at the doors of a real server: refused, held, or inert.

What a refusal leaves is compared with what was there before. What is held goes through the sandbox
as a worker would send it, and nothing ever calls the canary.
"""

from datetime import timedelta

import pytest

from registry.models import Artifact, Inspection, Revision, Screening, Upload, Version
from registry.services.collection import collect_garbage
from registry.storage import default_storage
from tests.attacks import corpus
from tests.attacks.doors import TUS, VERSIONS, sha256_of
from tests.attacks.world import _django_db_helper, door, running_server, screener
from tests.local.waiting import wait_until
from tests.workers.hostile import Canary
from workers import sandbox

__all__ = ["_django_db_helper", "door", "running_server", "screener"]
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.slow,
    pytest.mark.xdist_group("hostile-uploads"),
]
CASES = corpus.hostile_cases()
OVER = (Version, Revision, Artifact, Inspection, Screening)


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    one = Canary(tmp_path_factory.mktemp("canary"))
    yield one
    one.close()


def rows():
    return {table.__name__: table.objects.count() for table in OVER}


def spooled():
    """List what lies in the storage before it is a blob."""
    spool = default_storage().spool
    return {path.name for path in (*spool.glob("incoming/*"), *spool.glob("uploads/*"))}


def require_refusal(answer, wanted):
    assert answer.status_code == wanted.status, (answer.status_code, answer.text)
    if not wanted.code:
        # A body without an end is no request yet: the server itself says so, in few words.
        return
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["status"]) == (wanted.code, wanted.status), problem
    assert wanted.says in problem["detail"], problem
    assert len(problem["detail"]) < 1500
    assert problem["detail"].isprintable()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.path])
def test_a_hostile_file(door, canary, screener, name):
    case = CASES[name]
    data = case.bytes(canary)
    assert canary.is_untouched()
    before = rows(), spooled()
    # The same bytes under a name that is theirs may have come in as another case.
    known = default_storage().exists(sha256_of(data))
    answer = door.form({case.path: data})
    sent = door.whole(data, filename=case.path)
    if isinstance(case.expected, corpus.Refused):
        require_refusal(answer, case.expected)
        require_refusal(sent, case.expected)
        assert (rows(), spooled()) == before
        assert default_storage().exists(sha256_of(data)) is known
    else:
        assert sent.status_code == 201, sent.text
        assert door.client.delete(sent.headers["location"], headers=TUS).status_code == 204
        assert answer.status_code == 201, answer.text
        require_inert(door, screener, case, answer.json())
        assert spooled() == before[1]
    assert canary.is_untouched()


def require_inert(door, screener, case, version):
    """Require that a version is held, or harmless, and shown for what it is."""
    address = f"{VERSIONS}/{version['number']}"
    holds = isinstance(case.expected, corpus.Held)
    if holds:
        assert version["state"] in {"pending", "quarantined", "ready"}
        while screener.run_one(sandbox.probe()):
            pass
        version = door.client.get(address).json()
        assert version["state"] == "quarantined", version
        assert case.expected.reason in version["state_reason"], version["state_reason"]
    (file,) = door.client.get(f"{address}/files").json()["items"]
    wanted = "quarantined" if holds else case.expected.verdict
    assert (file["format"], file["verdict"]) == (case.expected.format, wanted), file
    assert case.expected.finds in " ".join(file["findings"]), file["findings"]
    if holds:
        assert set(case.expected.imports) <= set(file["imports"]), file["imports"]
        kept_back = door.other.get(f"{address}/files/{case.path}")
        assert (kept_back.status_code, kept_back.json()["code"]) == (403, "quarantined_file")
        assert door.client.get(f"{address}/derivatives").json()["items"] == []
    given = door.client.get(f"{address}/files/{case.path}")
    assert given.status_code == 200
    assert given.headers["x-content-type-options"] == "nosniff"
    assert given.headers["content-disposition"].startswith("attachment")
    assert ("x-file-warning" in given.headers) is holds
    if case.path == "README.md":
        page = door.nobody.get("/models/alice/classifier")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for text in case.expected.absent:
            assert text not in page.text, text


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.names])
def test_a_hostile_name(door, name):
    case = CASES[name]
    upload = door.upload()
    before = rows(), spooled()
    in_form, in_json = case.doors
    require_refusal(door.form(dict.fromkeys(case.names, b"x")), in_form)
    require_refusal(door.version([(path, upload) for path in case.names]), in_json)
    assert (rows(), spooled()) == before


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.speaks])
def test_a_hostile_request(door, name):
    case = CASES[name]
    before = Version.objects.count(), Artifact.objects.count()
    require_refusal(case.make(door), case.expected)
    made = Version.objects.count() - before[0], Artifact.objects.count() - before[1]
    # What a case makes rightly first, to lie about it then, is one version with one file.
    assert made in {(0, 0), (1, 1)}
    # A line that was cut may be noticed a moment later.
    wait_until(lambda: not list(default_storage().spool.glob("incoming/*")), "an empty spool")


def test_nothing_is_left_that_nobody_asked_for(door):
    """After all cases: what the collector leaves is what versions and uploads refer to."""
    list(collect_garbage(keep=timedelta(0)))
    list(collect_garbage(keep=timedelta(0)))
    wanted = set(Artifact.objects.values_list("blob__sha256", flat=True))
    wanted |= set(Upload.objects.exclude(blob=None).values_list("blob__sha256", flat=True))
    assert {sha256 for sha256, _ in default_storage().inventory()} <= wanted
    assert door.client.get("/api/v1/whoami").status_code == 200
    assert "Traceback" not in door.server.log.read_text()
