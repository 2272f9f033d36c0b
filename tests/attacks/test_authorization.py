"""Every address and method of every door, asked by everybody, held against the declared table.

How to declare a new route is said at the top of `authorization.py`.
"""

import asyncio
import inspect
import json
import re
import uuid
from contextlib import contextmanager
from functools import partial
from urllib.parse import urlencode

import httpx
import orjson
import pytest
from django.contrib.messages import get_messages
from django.db import transaction
from django.test import Client
from django.urls import URLResolver, get_resolver
from django.urls.resolvers import LocalePrefixPattern

from config.asgi import application
from registry.api.v1.authentication import TokenAuthentication
from registry.api.v1.resource import Resource
from registry.models import (
    DirectUpload,
    JobState,
    Kind,
    LineageRole,
    Role,
    Signature,
    User,
    Version,
)
from registry.services import (
    catalog,
    deployments,
    jobs,
    proposals,
    requests,
    searches,
    tokens,
    uploads,
    versions,
    webhooks,
)
from registry.stream.routes import ROUTES
from tests.attacks.authorization import (
    API,
    CALLERS,
    FILES,
    HOOK,
    INSTEAD,
    OPEN,
    PAGES,
    REFERENCES,
    RULES,
    SLOTS,
    STREAMS,
)
from tests.factories import (
    NamespaceFactory,
    UserFactory,
    actor_of,
    make_admin,
    make_blob,
    make_member,
    make_model,
    make_token,
)
from tests.registry.api.conftest import check_against_document
from tests.registry.web.conftest import no_attempts_counted

__all__ = ["no_attempts_counted"]

METHODS = ("get", "post", "put", "patch", "delete")
# Whoever belongs to the team sees what is internal as they see what is public.
ASKED = (
    ("public", CALLERS),
    ("internal", ("anonymous", "stranger", "elsewhere", "wrong key")),
    ("private", CALLERS),
)
ALL_SCOPES = ("read", "write", "jobs", "admin")
DEEP = b"[" * 100_000


# --- What there is -------------------------------------------------------------------------------


def django_routes():
    """Give each address of the URL configuration, in its own language, with its view."""
    yield from _walk(get_resolver(), "/")


def _walk(resolver, prefix):
    for pattern in resolver.url_patterns:
        here = "" if isinstance(pattern.pattern, LocalePrefixPattern) else str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern, prefix + here)
        else:
            address = re.sub(r"<(?:\w+:)?(\w+?)(?:_id)?>", r"{\1}", prefix + here)
            yield address, pattern.callback


def _is_catch_all(address):
    return address.startswith("/^")


def api_routes():
    return {
        address: view
        for address, view in django_routes()
        if address.startswith("/api/v1/") and not _is_catch_all(address)
    }


def page_routes():
    return {
        address.replace("{kind}", "{kinds}"): view
        for address, view in django_routes()
        if not address.startswith("/api/") and address not in OPEN and not _is_catch_all(address)
    }


def stream_routes():
    """Give each address of the streams as the table writes it, with its methods and its door."""
    found = {}
    for route in ROUTES:
        text = route.pattern.pattern.replace("(?:/zh-hans)?", "").removesuffix("/?")
        # What an address must not be is no part of it.
        text = re.sub(r"\(\?![^)]*\)", "", text)
        address = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", text).replace("{kind}", "{kinds}")
        found[address] = {method.lower() for method in route.handlers}
    return found


def methods_of(view):
    """Give the methods a view takes; None for a function that takes whatever comes."""
    known, inner = getattr(view, "view_class", None), view
    while inner is not None:
        listed = inspect.getclosurevars(inner).nonlocals.get("request_method_list")
        if listed is not None:
            return {name.lower() for name in listed} & set(METHODS)
        inner = getattr(inner, "__wrapped__", None)
    if known is None:
        return None
    return {name for name in METHODS if hasattr(known, name)} & set(known.http_method_names)


def each_kind(table):
    """Write a line for each kind of repository, where it stands for both."""
    for address, line in table.items():
        if address.startswith("/api/v1/{kinds}"):
            for kinds in ("models", "datasets"):
                yield address.replace("{kinds}", kinds), line
        else:
            yield address, line


# --- Declared, before anything is asked ----------------------------------------------------------


@pytest.mark.contract
def test_every_address_of_the_api_is_declared():
    routed = {address: methods_of(view) for address, view in api_routes().items()}
    assert routed == {address: set(line) for address, line in each_kind(API)}


@pytest.mark.contract
def test_every_page_is_declared():
    taken = {address: methods_of(view) for address, view in page_routes().items()}
    undecided = sorted(address for address, methods in taken.items() if methods is None)
    assert undecided == [], "say which methods they take: @require_safe, @require_POST, ..."
    assert taken == {address: set(line) for address, line in PAGES.items()}


@pytest.mark.contract
def test_every_stream_is_declared():
    assert stream_routes() == {address: set(line) for address, line in STREAMS.items()}


@pytest.mark.contract
def test_every_rule_has_an_answer_for_each_caller():
    for rows in RULES.values():
        for rule, row in rows.items():
            assert len(row.split()) == len(CALLERS), rule


@pytest.mark.contract
def test_every_address_of_the_api_takes_tokens_and_nothing_else():
    for address, view in api_routes().items():
        assert issubclass(view.view_class, Resource), address
        assert view.view_class.authentication_classes == [TokenAuthentication], address


@pytest.mark.contract
def test_every_page_says_whom_it_is_for():
    """`@signed_in` or `@anybody`: a view that says neither was forgotten."""
    silent = [
        address
        for address, view in page_routes().items()
        if getattr(view, "audience", None) not in {"anybody", "signed in"}
    ]
    assert silent == []


# --- The world that is asked ---------------------------------------------------------------------


class World:
    """A team with everybody in it, a thing of each kind, jobs, and what each caller holds."""

    def __init__(self, visibility):
        self.visibility = visibility
        team = NamespaceFactory(slug="team")
        self.people = {
            "stranger": UserFactory(username="stranger"),
            "admin": make_admin(),
            **{role.value: make_member(team, role) for role in Role},
        }
        self.owner = self.people["owner"]
        lab = NamespaceFactory(slug="lab")
        for name in ("stranger", "owner"):
            lab.memberships.create(user=self.people[name], role=Role.OWNER)
        team.memberships.create(user=UserFactory(username="extra"), role=Role.READER)
        for kind in ("model", "dataset"):
            thing = self._thing("thing", kind, tags={"stage": "lab"})
            self._fill(thing)
            self._propose(thing)
            self._delete_some(kind)
            thing.grants.create(user=User.objects.get(username="extra"), role=Role.READER)
        # Jobs read a model of their own: what a job reads cannot be deleted.
        self._fill(self._thing("source", "model"))
        self._fill(self._thing("served", "model"))
        self._fill(make_model(self.people["stranger"], "open", namespace="lab"))
        self.secrets = {name: make_token(user, ALL_SCOPES) for name, user in self.people.items()}
        self.secrets["read only"] = make_token(self.owner, ("read",))
        self.secrets["elsewhere"] = tokens.create_token(
            actor=actor_of(self.owner), name="elsewhere", scopes=ALL_SCOPES, namespace=lab
        )[1]
        self.contributor = actor_of(self.people["contributor"])
        self.slots = {**SLOTS, **self._numbered()}

    def _thing(self, name, kind, **facts):
        return make_model(
            self.owner, name, kind=kind, namespace="team", visibility=self.visibility, **facts
        )

    def _fill(self, thing):
        content = {path: make_blob(content) for path, content in FILES.items()}
        actor = actor_of(self.people["admin"])
        first = versions.create_version(actor=actor, repository=thing, files=content)
        parent = versions.ParentSpec(version=first, role=LineageRole.WEIGHTS)
        second = versions.create_version(
            actor=actor, repository=thing, files=content, parents=[parent], tags={"stage": "lab"}
        )
        thing.aliases.create(name="champion", version=first)
        for version in (first, second):
            path = SLOTS["path"]
            version.derivatives.create(purpose="converted", path=path, blob=content[path])
            exported = {"path": SLOTS["file"], "blob": content[path]}
            version.derivatives.create(purpose="exported", **exported)
        assert second.number == 2

    def _propose(self, thing):
        made = proposals.propose_alias(
            actor=actor_of(self.people["contributor"]),
            repository=thing,
            alias="production",
            version=thing.versions.get(number=2),
        )
        assert made.number == 1

    def _delete_some(self, kind):
        """Delete a whole thing and a version; make a thing without aliases, which can go."""
        self._thing("thing-unnamed", kind)
        gone = self._thing("thing-gone", kind)
        catalog.delete_repository(actor=actor_of(self.owner), repository=gone)
        version = versions.create_version(
            actor=actor_of(self.owner),
            repository=catalog.find_repository(actor_of(self.owner), kind, "team", "thing"),
            files={path: make_blob(content) for path, content in FILES.items()},
        )
        versions.delete_version(actor=actor_of(self.owner), version=version)

    def _deploy(self):
        """Deploy both versions of a model of their own; give the one that waits."""
        actor = actor_of(self.owner)
        first, made = (
            deployments.deploy(actor=actor, model="team/served", version=version)
            for version in ("1", "2")
        )
        # So that there is a split to go back to.
        weights = {first.pk: 100}
        deployments.split_traffic(actor=actor, endpoint=made.endpoint, weights=weights)
        return str(made.pk)

    def _numbered(self):
        """Make what is known by an id: jobs that wait and that ended, a token of somebody."""
        recipe = {"kind": "compress", "model": "team/source@1", "schema": 1}
        recipe["steps"] = [{"method": "quantize_dynamic"}]
        waiting, ended, done = (
            jobs.submit_job(actor=self.contributor, recipe=recipe) for _ in range(3)
        )
        done.state, done.result = JobState.SUCCEEDED, done.inputs.get()
        done.save()
        jobs.cancel_job(actor=self.contributor, job=ended)
        token = self.people["contributor"].tokens.create(
            name="another", prefix="my_", digest="x", scopes=["read"]
        )
        search = searches.save_search(
            actor=self.contributor, kind="model", name="kept", query="q=small"
        )
        owner = actor_of(self.owner)
        team = self.people["owner"].memberships.get(namespace__slug="team").namespace
        webhook = webhooks.create_webhook(
            actor=owner, namespace=team, url=HOOK, events=["alias.moved"]
        )
        delivery = webhooks.send_test(actor=owner, webhook=webhook)
        asked = requests.request_access(
            actor=self.contributor, kind="model", namespace="team", name="thing", role="maintainer"
        )
        return {
            "job": str(waiting.pk),
            "ended job": str(ended.pk),
            "done job": str(done.pk),
            "token": str(token.pk),
            "search": str(search.pk),
            "proposal": "1",
            "webhook": str(webhook.pk),
            "delivery": str(delivery.pk),
            "deleted thing": "thing-gone",
            "unaliased thing": "thing-unnamed",
            "deleted version": "3",
            "older version": "1",
            "request": str(asked.pk),
            "served": "served",
            "deployment": self._deploy(),
        }

    # What one request uses up is made for each of them.

    def begin_upload(self, _template):
        return str(uploads.begin_upload(actor=self.contributor, length=0).pk)

    def begin_direct_upload(self, _template):
        upload = uploads.add_upload(self.contributor, 4, "", "")
        return str(DirectUpload.objects.create(upload=upload, parts_id="x", part_bytes=4).pk)

    def add_signature(self, template):
        kind = Kind.DATASET if "/datasets/" in template else Kind.MODEL
        version = Version.objects.get(repository__kind=kind, repository__name="thing", number=2)
        made = Signature.objects.update_or_create(
            version=version,
            own=False,
            fingerprint="0" * 64,
            defaults={
                "method": Signature.Method.KEY,
                "bundle": "{}",
                "created_by_id": self.contributor.user_id,
            },
        )
        return str(made[0].pk)

    def address(self, template):
        slots = {"kinds": "models", **self.slots}
        line = re.sub("^/api/v1/(?:models|datasets)", "/api/v1/{kinds}", template)
        for slot, name in INSTEAD.get(line, {}).items():
            slots[slot] = slots[name]
        for slot, make in (
            ("upload", self.begin_upload),
            ("direct", self.begin_direct_upload),
            ("signature", self.add_signature),
        ):
            if f"{{{slot}}}" in template:
                slots[slot] = make(template)
        return template.format_map(slots)

    def expected(self, rule, caller, success):
        rows = {**RULES[self.visibility], **RULES["always"]}
        answer = rows[rule].split()[CALLERS.index(caller)]
        if answer == "ok":
            return success if isinstance(success, set) else {success}
        return answer if answer in {".", "login"} else {int(answer)}


NOBODYS = {
    "team/thing": "team/thong",
    "team/served": "team/sarved",
    "namespaces/team": "namespaces/teem",
}
UNKNOWN = {"thing": "thong", "token": "999999999", "job": str(uuid.UUID(int=7))}
_ID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def absent(address):
    """Give the same address with names and ids, as long as they were, that nobody has."""
    address = re.sub(_ID, UNKNOWN["job"], address)
    address = re.sub(
        r"/(tokens|webhooks|requests|searches|searches/models)/\d+",
        rf"/\1/{UNKNOWN['token']}",
        address,
    )
    for name, other in NOBODYS.items():
        address = address.replace(name, other)
    return address


@contextmanager
def undone():
    """Take back what is written inside, so that every caller finds the same world."""
    if not transaction.get_connection().in_atomic_block:
        yield  # streams write in threads of their own; what they write stays
        return
    before = transaction.savepoint()
    yield
    transaction.savepoint_rollback(before)


def standing(answer):
    """Keep of an answer what a caller can tell two of them apart by: all but names and ids."""
    headers = {name.lower(): value for name, value in answer.headers.items()}
    text = answer.content.decode("utf-8", "replace").replace(headers.pop("x-request-id", "\0"), "")
    # What is left of a budget is the caller's, whatever they ask for.
    for name in ("content-length", "date", "set-cookie", "ratelimit"):
        headers.pop(name, None)
    # Tokens of forms, names, ids.
    text = re.sub(r'value="[A-Za-z0-9]{64}"', "", text)
    for name, other in NOBODYS.items():
        text = text.replace(other, name)
    text = text.replace("thong", "thing").replace("teem", "team")
    named = (
        r"(?<=tokens/)|(?<=webhooks/)|(?<=requests/)|(?<=searches/)|(?<=webhook )|(?<=the id )"
        r"|(?<=request )|(?<=search )"
    )
    text = re.sub(rf"{_ID}|(?:{named}|(?<=\"id\":))\d+", "ID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "NOW", text)
    headers = {name: re.sub(r"(?<=requests/)\d+", "ID", one) for name, one in headers.items()}
    return answer.status_code, headers, text


# --- The API -------------------------------------------------------------------------------------


def call_api(world, caller, method, address, body=None, raw=None):
    client = Client(raise_request_exception=False)
    headers = {}
    if caller == "wrong key":
        client.force_login(world.owner)
    elif caller != "anonymous":
        headers["Authorization"] = f"Bearer {world.secrets[caller]}"
    data = raw if raw is not None else b"" if body is None else orjson.dumps(body)
    answer = client.generic(
        method.upper(), address, data, content_type="application/json", headers=headers
    )
    if method in METHODS:
        check_against_document(method, answer.request["PATH_INFO"], answer)
    return answer


def differences(world, table, call, callers):
    for template, line in table:
        for method, (rule, success, *rest) in line.items():
            for caller in callers:
                expected = world.expected(rule, caller, success)
                if expected == ".":
                    continue
                address = world.address(template)
                with undone():
                    answer = call(world, caller, method, address, *rest)
                if not _as_expected(answer, expected):
                    yield template, method, caller, answer.status_code, expected
                elif expected == {404}:
                    nowhere = absent(address)
                    with undone():
                        twin = call(world, caller, method, nowhere, *rest)
                    if standing(answer) != standing(twin):
                        yield template, method, caller, "can be told from what is not there"


def _as_expected(answer, expected):
    location = answer.headers.get("Location", "")
    if expected == "login":
        return answer.status_code == 302 and location.startswith("/login?next=")
    return answer.status_code in expected and not location.startswith("/login?next=")


def check(found):
    """Fail with a line for each difference: address, method, caller, answer, declared answer."""
    assert not found, "\n" + "\n".join(" ".join(map(str, line)) for line in found)


@pytest.mark.slow
@pytest.mark.parametrize(("visibility", "callers"), ASKED, ids=("public", "internal", "private"))
def test_the_api_answers_each_caller_as_declared(db, visibility, callers):
    check(list(differences(World(visibility), each_kind(API), call_api, callers)))


@pytest.mark.slow
def test_the_api_takes_no_other_method(db):
    world = World("public")
    for template, line in each_kind(API):
        for method in {*METHODS, "options", "trace"} - line.keys():
            answer = call_api(world, "admin", method, world.address(template))
            assert answer.status_code == 405, (template, method)


@pytest.mark.slow
def test_deep_json_is_refused_at_each_address(db):
    world = World("public")
    for template, line in each_kind(API):
        for method in {"post", "put", "patch"} & line.keys():
            with undone():
                answer = call_api(world, "owner", method, world.address(template), raw=DEEP)
            assert (answer.status_code, answer.json()["code"]) == (400, "too_deep"), template


# --- The pages -----------------------------------------------------------------------------------


def call_page(world, caller, method, address, form=None, *, strict=False, headers=None):
    client = Client(raise_request_exception=False, enforce_csrf_checks=strict)
    headers = dict(headers or {})
    if caller == "wrong key":
        headers["Authorization"] = f"Bearer {world.secrets['owner']}"
    elif caller != "anonymous":
        client.force_login(world.people[caller])
    if method == "get":
        return client.get(address, headers=headers)
    return client.generic(
        method.upper(),
        address,
        urlencode(form or {}, doseq=True),
        content_type="application/x-www-form-urlencoded",
        headers=headers,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("visibility", "callers"), ASKED, ids=("public", "internal", "private"))
def test_the_pages_answer_each_caller_as_declared(db, visibility, callers):
    check(list(differences(World(visibility), PAGES.items(), call_page, callers)))


@pytest.mark.slow
def test_a_small_change_is_made_by_those_who_may(db):
    """`page: change` answers everybody with the page; what it says there is the rule."""
    world = World("public")
    writers = {"contributor", "maintainer", "owner", "admin"}
    maintainers = writers - {"contributor"}
    rules = {
        "/versions/{number}/delete": maintainers,
        "/access/change": maintainers,
        "/proposals/{number}/decide": maintainers,
        "/endpoints/{namespace}/{name}/change": maintainers,
    }
    for template, line in PAGES.items():
        if line.get("post", ("",))[0] != "page: change":
            continue
        allowed = next((who for end, who in rules.items() if template.endswith(end)), writers)
        for caller in ("stranger", "reader", "contributor", "maintainer", "owner", "admin"):
            with undone():
                (form,) = line["post"][2:] or ({},)
                answer = call_page(world, caller, "post", world.address(template), form)
                said = answer.content.decode()
                said += "".join(str(one) for one in get_messages(answer.wsgi_request))
            assert ("This needs the role" not in said) == (caller in allowed), (template, caller)


@pytest.mark.slow
def test_the_pages_take_no_other_method(db):
    world = World("public")
    for template, line in PAGES.items():
        for method in {*METHODS, "trace"} - line.keys():
            with undone():
                answer = call_page(world, "owner", method, world.address(template))
            assert answer.status_code == 405, (template, method)


@pytest.mark.slow
def test_every_form_needs_its_csrf_token_and_our_origin(db):
    world = World("public")
    for template, line in PAGES.items():
        if "post" not in line:
            continue
        form = line["post"][2] if len(line["post"]) > 2 else {}
        address = world.address(template)
        with undone():
            bare = call_page(world, "owner", "post", address, form, strict=True)
            assert bare.status_code == 403, template
            secret = {"csrfmiddlewaretoken": "a" * 32}
            client_of = partial(call_page, world, "owner", "post", address, {**form, **secret})
            headers = {"Cookie": f"csrftoken={'a' * 32}", "Origin": "https://evil.example"}
            foreign = client_of(strict=True, headers=headers)
            assert foreign.status_code == 403, template


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.slow
def test_a_foreign_host_is_refused_at_every_door(db, settings, method):
    world = World("public")
    settings.ALLOWED_HOSTS = ["registry.example"]
    foreign = {"Host": "evil.example"}
    for template, line in [*each_kind(API), *PAGES.items()]:
        if method in line:
            address = world.address(template)
            with undone():
                answer = call_page(world, "admin", method, address, headers=foreign)
            assert answer.status_code == 400, template


# --- The streams, through the application that the web server runs --------------------------------


def call_stream(world, caller, method, address, headers=None):
    sent = {key.title(): value for key, value in (headers or {}).items()}
    page = not address.startswith("/api/")
    client = Client()
    if caller != "anonymous" and (page != (caller == "wrong key")):
        client.force_login(world.people.get(caller, world.owner))
        session = client.cookies["sessionid"].value
        sent["Cookie"] = f"sessionid={session}; csrftoken={'a' * 32}"
        sent |= {"Origin": "http://testserver", "X-Csrftoken": "a" * 32} if page else {}
    elif caller != "anonymous":
        secret = world.secrets["owner" if caller == "wrong key" else caller]
        sent["Authorization"] = f"Bearer {secret}"
        # The page door first asks whether one of our pages sent the request.
        if page:
            sent |= {"Origin": "http://testserver", "X-Csrftoken": "a" * 32}
            sent["Cookie"] = f"csrftoken={'a' * 32}"
    elif page:
        sent |= {"Origin": "http://testserver", "X-Csrftoken": "a" * 32}
        sent["Cookie"] = f"csrftoken={'a' * 32}"
    body = b""
    if sent.get("Content-Type", "").startswith("multipart/"):
        body = TOKEN + FORM if page else FORM
    return asyncio.run(_ask(method, address, sent, body))


TOKEN = (
    b'--b\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n'
    + b"a" * 32
    + b"\r\n"
)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="notes.txt"; filename="notes.txt"\r\n\r\n'
    b"notes\r\n--b--\r\n"
)


async def _ask(method, address, headers, body):
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        return await client.request(method.upper(), address, headers=headers, content=body)


@pytest.mark.slow
@pytest.mark.parametrize(("visibility", "callers"), ASKED, ids=("public", "internal", "private"))
def test_the_streams_answer_each_caller_as_declared(transactional_db, visibility, callers):
    check(list(differences(World(visibility), each_kind(STREAMS), call_stream, callers)))


def test_the_streams_take_no_other_method(transactional_db):
    world = World("public")
    for template, line in each_kind(STREAMS):
        # Where Django answers the other methods, the tables above speak of them.
        shared = ("/versions", "/versions/new", "/{path}", "/exports/{file}")
        if template.endswith(shared) and not template.startswith("/api/v1/up"):
            continue
        for method in {*METHODS} - line.keys():
            answer = call_stream(world, "owner", method, world.address(template))
            assert answer.status_code == 405, (template, method)


def test_a_foreign_host_is_refused_at_every_stream(transactional_db, settings):
    world = World("public")
    settings.ALLOWED_HOSTS = ["testserver"]
    for template, line in each_kind(STREAMS):
        for method, (_, success, *sent) in line.items():
            address, headers = world.address(template), dict(sent[0]) if sent else {}
            for host in ("evil.example", "testserver.evil.example", "testserver, evil.example", ""):
                answer = call_stream(world, "owner", method, address, {**headers, "Host": host})
                assert answer.status_code == 400, (template, method, host)
                assert method == "head" or answer.json()["code"] == "bad_host", (template, method)
            if method in {"get", "options"}:
                own = call_stream(
                    world, "owner", method, address, {**headers, "Host": "testserver:80"}
                )
                assert own.status_code == success, (template, method)


# --- What operators look at ----------------------------------------------------------------------


@pytest.mark.slow
def test_what_operators_look_at_names_nothing_that_is_registered(db):
    world = World("private")
    for address, status in OPEN.items():
        for caller in ("anonymous", "stranger", "wrong key"):
            answer = call_page(world, caller, "get", address)
            assert answer.status_code == status, address
            text = answer.content.decode()
            assert not re.search(r"\b(team|thing|stranger|extra)\b", text), address


def test_other_addresses_outside_the_tables_are_declared():
    beside = {
        address
        for address, _ in django_routes()
        if not address.startswith("/api/v1/") and address.replace("{kind}", "{kinds}") not in PAGES
    }
    assert beside - OPEN.keys() == {"/^api(?:/[\\s\\S]*)?$"}


# --- Names inside bodies and queries -------------------------------------------------------------


def test_a_hidden_name_in_a_request_is_refused_like_one_that_nobody_has(db):
    world = World("private")
    for method, template, body in REFERENCES:
        answers = []
        for it in ("team/thing", "teem/thong"):
            space, name = it.split("/")
            address, sent = (
                json.loads(
                    json.dumps(text)
                    .replace("{it}", it)
                    .replace("{space}", space)
                    .replace("{name}", name)
                )
                for text in (template, body)
            )
            call = call_api if template.startswith("/api/") else call_page
            with undone():
                answer = call(world, "stranger", method, address, sent)
            answers.append(standing(answer))
        assert answers[0] == answers[1], (method, template, body)
        assert answers[0][0] < 500, (method, template)
