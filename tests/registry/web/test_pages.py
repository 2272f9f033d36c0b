"""What each page shows, to nobody, to its owner and to a stranger."""

import re
import uuid

import pytest
from django.test import Client
from django.utils import translation

from registry.models import Job, Namespace, Token
from registry.pages import encode_cursor
from registry.web.history import MINUS, TIMES
from registry.web.views import home
from registry.web.wording import NOTHING, metric_name
from tests.factories import CARD, make_model, make_version

pytestmark = pytest.mark.django_db

MODEL = "/models/olga/digits-cnn"
PUBLIC = [
    "/",
    "/models",
    "/models?q=digits&sort=name&license=apache-2.0",
    "/datasets",
    MODEL,
    f"{MODEL}?tab=versions",
    f"{MODEL}?tab=versions&x=latency",
    f"{MODEL}?tab=files",
    f"{MODEL}?tab=files&version=1",
    f"{MODEL}?tab=metrics",
    f"{MODEL}?tab=lineage",
    f"{MODEL}?tab=use",
    f"{MODEL}/versions/2",
    f"{MODEL}/versions/3",
    "/datasets/olga/digits",
    "/datasets/olga/digits/versions/1",
    "/login",
]
PERSONAL = [
    "/jobs",
    "/jobs/new",
    "/jobs/new?kind=compress&model=olga/digits-cnn@2",
    "/jobs/new?kind=train",
    "/jobs/new?kind=train&model=olga/digits-cnn@2",
    "/jobs/new?kind=infer",
    "/jobs/new?kind=evaluate",
    "/settings/tokens",
    "/models/new",
    "/datasets/new",
]
WRITING = [f"{MODEL}/settings", f"{MODEL}/versions/new"]


def text_of(response):
    return response.content.decode()


@pytest.mark.parametrize("prefix", ["", "/zh-hans"])
@pytest.mark.parametrize("address", PUBLIC)
def test_public_page_answers_anybody(client, model, dataset, address, prefix):
    response = client.get(prefix + address)
    assert response.status_code == 200
    assert f'lang="{"zh-Hans" if prefix else "en"}"' in text_of(response)


@pytest.mark.parametrize("address", PERSONAL + WRITING)
def test_personal_page_leads_nobody_to_the_sign_in(client, model, address):
    response = client.get(address)
    assert response.status_code == 302
    assert response["Location"].startswith("/login?next=")


@pytest.mark.parametrize("address", PUBLIC[:-1] + PERSONAL + WRITING)
def test_page_answers_the_owner(as_owner, model, dataset, address):
    assert as_owner.get(address).status_code == 200


@pytest.mark.parametrize("address", WRITING)
def test_writing_page_refuses_a_stranger(as_stranger, model, address):
    assert as_stranger.get(address).status_code == 403


@pytest.mark.parametrize(
    "path", ["", "?tab=files", "/versions/1", "/settings", "/versions/new"], ids=lambda p: p or "/"
)
def test_private_model_is_not_there_for_a_stranger(as_stranger, private_model, path):
    hidden = as_stranger.get(f"/models/olga/secret-plan{path}")
    missing = as_stranger.get(f"/models/olga/not-there-at-all{path}")
    assert hidden.status_code == missing.status_code == 404
    assert plain(hidden) == plain(missing)


def plain(response):
    """Drop what differs between any two answers: ids, tokens, and the address asked for."""
    text = re.sub(r'value="[A-Za-z0-9]{64}"', "", text_of(response))
    text = text.replace(response["X-Request-Id"], "")
    return text.replace("secret-plan", "NAME").replace("not-there-at-all", "NAME")


def test_lists_leave_private_models_out(as_owner, as_stranger, private_model):
    assert "secret-plan" in text_of(as_owner.get("/models"))
    assert "secret-plan" not in text_of(as_stranger.get("/models"))
    assert "secret-plan" not in text_of(as_stranger.get("/"))


def test_error_page_says_the_request_id(client, db):
    response = client.get("/models/nobody/nothing")
    assert response["X-Request-Id"] in text_of(response)
    asked = client.get("/models/nobody/nothing", headers={"X-Request-Id": "from-the-proxy-7"})
    assert asked["X-Request-Id"] == "from-the-proxy-7"
    assert client.get("/no/such/page/at/all").status_code == 404


def test_expired_form_gets_a_page(model, owner):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(owner)
    response = strict.post(f"{MODEL}/tags", {"key": "a", "value": "b"})
    assert response.status_code == 403
    assert "The form had expired" in text_of(response)


def test_broken_page_still_names_the_request(client, db, monkeypatch):
    monkeypatch.setattr(home, "search_repositories", lambda *_, **__: 1 / 0)
    client.raise_request_exception = False
    response = client.get("/")
    assert response.status_code == 500
    assert response["X-Request-Id"] in text_of(response)


def test_model_page_shows_what_is_known(client, model):
    page = text_of(client.get(MODEL))
    for words in ("Reads handwritten digits.", "98.0%", "2.3 ms", "@champion → v2", "Apache-2.0"):
        assert words in page
    assert "float32 [N, 1, 28, 28]" in page
    assert "<h2>A classifier</h2>" in page


def test_card_is_sanitised(client, owner):
    repository = make_model(owner, "hostile")
    card = (
        CARD + "<script>alert(1)</script>\n\n[x](javascript:alert(2)) ![p](https://a.example/p.png)"
    )
    make_version(owner, repository, {"README.md": card.encode()})
    page = text_of(client.get("/models/olga/hostile"))
    card_html = page[page.index('class="body prose"') :]
    card_html = card_html[: card_html.index("</section>")]
    assert "<script" not in card_html
    assert 'href="javascript' not in card_html
    assert "a.example" not in card_html


def test_history_puts_variants_beside_their_parent(client, model):
    page = text_of(client.get(f"{MODEL}?tab=versions"))
    order = [page.index(f'class="v" href="{MODEL}/versions/{number}"') for number in (2, 3, 1)]
    assert order == sorted(order)
    assert f"{MINUS}0.5 pt" in page
    assert re.search(rf"[\d.]+{TIMES}", page)


def test_history_has_pages(client, owner):
    repository = make_model(owner, "long")
    for _ in range(22):
        make_version(owner, repository, {"a.txt": b"a"})
    first = text_of(client.get("/models/olga/long?tab=versions"))
    assert "v22<" in first
    assert 'href="?tab=versions&amp;before=3"' in first
    older = text_of(client.get("/models/olga/long?tab=versions&before=3"))
    assert "v2<" in older
    assert "v3<" not in older


def test_version_page_shows_numbers_with_their_evidence(client, model):
    page = text_of(client.get(f"{MODEL}/versions/2"))
    for words in (
        f"97.0% {NOTHING} 99.0%",
        "1,000",
        "declared",
        "Trained longer.",
        "model.safetensors",
    ):
        assert words in page
    assert f"{MODEL}/versions/2/files/README.md" in page


def test_language_link_leads_to_the_same_page(client, model):
    page = text_of(client.get(f"{MODEL}?tab=files"))
    assert f'href="/zh-hans{MODEL}?tab=files" hreflang="zh-Hans"' in page
    assert f'href="{MODEL}?tab=files" hreflang="en"' in text_of(
        client.get(f"/zh-hans{MODEL}?tab=files")
    )


def test_pages_allow_no_foreign_or_inline_code(client, model, dataset):
    for address in PUBLIC:
        response = client.get(address)
        policy = response["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        page = text_of(response)
        assert not re.search(r"\sstyle=|<style|<script(?![^>]*\ssrc=)|\son[a-z]+=\"", page), address


def test_old_name_leads_to_the_new_one(as_owner, model):
    form = {"name": "digits-net", "summary": "Same, renamed.", "visibility": "public"}
    assert as_owner.post(f"{MODEL}/settings", form).status_code == 302
    response = as_owner.get(f"{MODEL}?tab=files")
    assert response["Location"] == "/models/olga/digits-net?tab=files"


def test_empty_states_say_what_to_do_next(client, as_owner, owner):
    assert "/api/v1/models" in text_of(client.get("/models"))
    assert "Nothing matches" in text_of(client.get("/models?q=zebra"))
    make_model(owner, "bare")
    for query in ("q=bare&sort=quality", "sort=quality"):
        assert "Nothing to put in this order" in text_of(as_owner.get(f"/models?{query}")), query
    page = text_of(as_owner.get("/models/olga/bare"))
    assert "/api/v1/models/olga/bare/versions" in page
    assert "Upload files" in page
    for tab in ("versions", "files", "metrics", "lineage", "use"):
        assert as_owner.get(f"/models/olga/bare?tab={tab}").status_code == 200


def test_bad_addresses_are_refused_politely(client, model):
    for address in (
        "/models?sort=sideways",
        "/models?cursor=nonsense",
        "/models?q=" + "x" * 300,
        f"{MODEL}?tab=files&version=99",
        f"{MODEL}?tab=nonsense&before=abc",
        "/models/olga%00/x",
        "/models?q=a%00b",
        f"{MODEL}/versions/99999999999",
        "/jobs/00000000-0000-0000-0000-000000000000",
    ):
        assert client.get(address).status_code in {200, 302, 400, 404}, address


def test_a_cursor_of_jobs_that_was_not_made_here_is_refused(as_owner):
    cursor = encode_cursor("recent", "0001-01-01T00:00:00+23:59", str(uuid.uuid4()))
    assert as_owner.get(f"/jobs?cursor={cursor}").status_code == 400


def test_secret_of_a_token_is_shown_once(as_owner, owner):
    form = {"name": "laptop", "scopes": ["read"], "days": "30"}
    page = text_of(as_owner.post("/settings/tokens", form))
    secret = re.search(r"my_[0-9A-Za-z]{46}", page).group()
    again = text_of(as_owner.get("/settings/tokens"))
    assert secret not in again
    assert "laptop" in again
    token = Token.objects.get(user=owner)
    as_owner.post(f"/settings/tokens/{token.pk}/revoke")
    assert "laptop" not in text_of(as_owner.get("/settings/tokens")).split("Your tokens")[1]


def test_stranger_cannot_revoke(as_owner, as_stranger, owner):
    as_owner.post("/settings/tokens", {"name": "mine", "scopes": ["read"], "days": "0"})
    token = Token.objects.get(user=owner)
    assert as_stranger.post(f"/settings/tokens/{token.pk}/revoke").status_code == 404
    token.refresh_from_db()
    assert token.revoked_at is None


def test_jobs_of_others_do_not_exist(as_owner, as_stranger, owner, model):
    job = Job.objects.create(
        kind="compress",
        recipe={"kind": "compress", "model": "olga/digits-cnn@2"},
        namespace=Namespace.objects.get(slug="olga"),
        queue="cpu",
        created_by=owner,
    )
    page = text_of(as_owner.get(f"/jobs/{job.pk}"))
    assert "Waiting for a worker" in page
    assert f'hx-sse:connect="/jobs/{job.pk}/events"' in page
    assert as_stranger.get(f"/jobs/{job.pk}").status_code == 404
    assert as_stranger.post(f"/jobs/{job.pk}/cancel").status_code == 404
    assert str(job.pk) not in text_of(as_stranger.get("/jobs"))


@pytest.mark.parametrize("address", ["/", "/models", MODEL, f"{MODEL}/versions/2", "/login"])
def test_head_is_answered_like_get(client, model, address):
    response = client.head(address)
    assert response.status_code == 200
    assert response.content == b""


def test_a_metric_of_a_control_is_named_in_both_languages():
    assert metric_name("dense_control_train_loss") == "Training loss, dense control"
    with translation.override("zh-hans"):
        assert "从零训练" in metric_name("scratch_control_validation_loss")
    assert metric_name("dense_control_of_mine") == "dense_control_of_mine"
