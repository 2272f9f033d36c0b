"""Who may do what: the declared answer to every address and method, for everybody.

`test_authorization.py` beside this file holds the running doors against it, and fails on whatever
nobody declared. When you add a route, add its line here:

1. Find the table of its door: `API` (Django under /api/v1), `PAGES` (Django, in one language),
   `STREAMS` (registry/stream/routes.py) or `OPEN` (what operators look at).
2. Write its address with {slots} and, for each method, `(rule, success, body)`: the rule is a row
   of `RULES`, the success is the status that those who may get. A line with {kinds} stands for
   models and for datasets.
3. What a slot stands for is in `SLOTS`; a route that needs something of its own (a job that has
   ended, a second alias) names it in `INSTEAD`, and `World` in the test makes it.
4. `pytest tests/attacks/test_authorization.py -k declared` says whether the line is complete,
   without the rest the same file asks each caller.

A method that is not declared must answer 405 to everybody.
"""

import hashlib
from collections.abc import Mapping

import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from registry import signing
from tests.factories import safetensors_bytes

CALLERS = (
    "anonymous",  # nobody: no token, no session
    "stranger",  # a member of another organisation
    "reader",
    "contributor",
    "maintainer",
    "owner",
    "admin",  # an administrator of the installation
    "read only",  # the owner, with a token of the scope read
    "elsewhere",  # the owner, with a token that is limited to another namespace
    "wrong key",  # the owner's session at a machine door, the owner's token at a page
)

# What each caller gets, in the order of CALLERS: a status, `ok` for the declared success, `login`
# for the way to the sign-in page. Pages know no tokens: the two columns of tokens are left out.
RULES: Mapping[str, Mapping[str, str]] = {
    "public": {
        "see": "           ok  ok  ok  ok  ok  ok  ok  ok  404 ok",
        "write": "         401 403 403 ok  ok  ok  ok  403 404 401",
        "maintain": "      401 403 403 403 ok  ok  ok  403 404 401",
        "own": "           401 403 403 403 403 ok  ok  403 404 401",
        "withdraw": "      401 403 403 ok  403 403 403 403 404 401",
        # An organisation exists for whoever sees something in it.
        "in namespace: see": "    ok  ok  ok  ok  ok  ok  ok  ok  404 ok",
        "in namespace: read": "   401 403 ok  ok  ok  ok  ok  ok  404 401",
        "in namespace: write": "  401 403 403 ok  ok  ok  ok  403 404 401",
        "in namespace: own": "    401 403 403 403 403 ok  ok  403 404 401",
        "in namespace: administer": "401 403 403 403 403 403 ok  403 404 401",
        "submit": "        401 403 403 ok  ok  ok  ok  403 404 401",
        "page: in namespace": "     ok  ok  ok  ok  ok  ok  ok  .   .   ok",
        "page: change namespace": "login ok ok ok ok ok ok . . login",
        "in namespace: maintain": "401 403 403 403 ok ok ok 403 404 401",
        "page: in namespace: maintain": "login 403 403 403 ok ok ok . . login",
        "page: see": "     ok  ok  ok  ok  ok  ok  ok  .   .   ok",
        "page: write": "   login 403 403 ok  ok  ok  ok  .   .   login",
        "page: maintain": " login 403 403 403 ok  ok  ok  .   .   login",
        "page: own": "     login 403 403 403 403 ok  ok  .   .   login",
        # A small change answers with the page it came from, which says whether it was done.
        "page: change": "  login ok  ok  ok  ok  ok  ok  .   .   login",
        "page: signed in who see": "  login ok  ok  ok  ok  ok  ok  .   .   login",
    },
    "internal": {
        "see": "           404 ok  ok  ok  ok  ok  ok  ok  404 404",
        "write": "         404 403 403 ok  ok  ok  ok  403 404 404",
        "maintain": "      404 403 403 403 ok  ok  ok  403 404 404",
        "own": "           404 403 403 403 403 ok  ok  403 404 404",
        "withdraw": "      404 403 403 ok  403 403 403 403 404 404",
        "in namespace: see": "    404 ok  ok  ok  ok  ok  ok  ok  404 404",
        "in namespace: read": "   404 403 ok  ok  ok  ok  ok  ok  404 404",
        "in namespace: write": "  404 403 403 ok  ok  ok  ok  403 404 404",
        "in namespace: own": "    404 403 403 403 403 ok  ok  403 404 404",
        "in namespace: administer": "404 403 403 403 403 403 ok  403 404 404",
        "submit": "        401 403 403 ok  ok  ok  ok  403 404 401",
        "page: in namespace": "     404 ok  ok  ok  ok  ok  ok  .   .   404",
        "page: change namespace": "login ok ok ok ok ok ok . . login",
        "in namespace: maintain": "404 403 403 403 ok ok ok 403 404 404",
        "page: in namespace: maintain": "login 403 403 403 ok ok ok . . login",
        "page: see": "     404 ok  ok  ok  ok  ok  ok  .   .   404",
        "page: write": "   login 403 403 ok  ok  ok  ok  .   .   login",
        "page: maintain": " login 403 403 403 ok  ok  ok  .   .   login",
        "page: own": "     login 403 403 403 403 ok  ok  .   .   login",
        "page: change": "  login ok  ok  ok  ok  ok  ok  .   .   login",
        "page: signed in who see": "  login ok  ok  ok  ok  ok  ok  .   .   login",
    },
    "private": {
        "see": "           404 404 ok  ok  ok  ok  ok  ok  404 404",
        "write": "         404 404 403 ok  ok  ok  ok  403 404 404",
        "maintain": "      404 404 403 403 ok  ok  ok  403 404 404",
        "own": "           404 404 403 403 403 ok  ok  403 404 404",
        "withdraw": "      404 404 403 ok  403 403 403 403 404 404",
        "in namespace: see": "    404 404 ok  ok  ok  ok  ok  ok  404 404",
        "in namespace: read": "   404 404 ok  ok  ok  ok  ok  ok  404 404",
        "in namespace: write": "  404 404 403 ok  ok  ok  ok  403 404 404",
        "in namespace: own": "    404 404 403 403 403 ok  ok  403 404 404",
        "in namespace: administer": "404 404 403 403 403 403 ok  403 404 404",
        "submit": "        401 404 403 ok  ok  ok  ok  403 404 401",
        "page: in namespace": "     404 404 ok  ok  ok  ok  ok  .   .   404",
        "page: change namespace": "login 404 ok ok ok ok ok . . login",
        "in namespace: maintain": "404 404 403 403 ok ok ok 403 404 404",
        "page: in namespace: maintain": "login 404 403 403 ok ok ok . . login",
        "page: see": "     404 404 ok  ok  ok  ok  ok  .   .   404",
        "page: write": "   login 404 403 ok  ok  ok  ok  .   .   login",
        "page: maintain": " login 404 403 403 ok  ok  ok  .   .   login",
        "page: own": "     login 404 403 403 403 ok  ok  .   .   login",
        "page: change": "  login 404 ok  ok  ok  ok  ok  .   .   login",
        "page: signed in who see": "  login 404 ok  ok  ok  ok  ok  .   .   login",
    },
    # Rows that do not depend on a repository's visibility.
    "always": {
        # What was deleted exists only for those who maintain it, and its owner brings it back.
        "deleted": "       401 404 404 404 403 ok  ok  403 404 401",
        "everybody": "     ok  ok  ok  ok  ok  ok  ok  ok  ok  ok",
        "signed in": "     401 ok  ok  ok  ok  ok  ok  ok  ok  401",
        "signed in, read": "401 ok  ok  ok  ok  ok  ok  ok  ok  401",
        "signed in, write": "401 ok  ok  ok  ok  ok  ok  403 ok  401",
        "signed in, write anywhere": "401 ok ok ok ok ok ok 403 403 401",
        "signed in, admin": "401 ok  ok  ok  ok  ok  ok  403 ok  401",
        "administer": "    401 403 403 403 403 403 ok  403 403 401",
        "signed in, admin anywhere": "401 ok ok ok ok ok ok 403 400 401",
        # The contributor submitted the job.
        "see the job": "   401 404 ok  ok  ok  ok  ok  ok  404 401",
        "move the job": "  401 404 403 ok  ok  ok  ok  403 404 401",
        # The contributor asked for access; maintainers decide.
        "see the request": "401 404 404 ok ok  ok  ok  404 404 401",
        "decide": "        404 404 404 404 ok  ok  ok  404 404 404",
        "ask back": "      404 404 404 ok  404 404 404 404 404 404",
        # What belongs to the contributor alone.
        "of contributor": "401 404 404 ok  404 404 ok  403 404 401",
        "contributor's own": "401 404 404 ok 404 404 404 403 404 401",
        # A webhook that hears of the whole namespace.
        "webhook": "       401 404 404 404 404 ok  ok  403 404 401",
        "upload": "        401 404 404 ok  404 404 404 403 404 401",
        "page: everybody": " ok ok  ok  ok  ok  ok  ok  .   .   ok",
        "page: signed in": " login ok ok ok ok  ok  ok  .   .   login",
        "page: request": " login 404 404 ok ok  ok  ok  .   .   login",
        "page: job": "     login 404 ok  ok  ok  ok  ok  .   .   login",
        "page: move the job": "login 404 ok ok ok ok ok  .   .   login",
        "page: of contributor": "login 404 404 ok 404 404 ok . . login",
        "page: administer": "login 403 403 403 403 403 ok  .   .   login",
        "page: webhook": " login 404 404 404 404 ok ok .   .   login",
        "page upload: begin": "401 ok  ok  ok  ok  ok  ok  .   .   401",
        "page upload": "   401 404 404 ok  404 404 404 .   .   401",
        "page events": "   404 404 ok  ok  ok  ok  ok  .   .   404",
        "events": "        404 404 ok  ok  ok  ok  ok  ok  404 404",
    },
}

SLOTS: Mapping[str, str] = {
    "namespace": "team",
    "name": "thing",
    "version": "2",
    "number": "2",
    "other": "1",
    "key": "stage",
    "alias": "champion",
    "kind": "compress",
    "username": "extra",
    "path": "model.safetensors",
    "file": "program.pt2",
    # Nobody's.
    "session": "999999999",
    "pk": "999999999",
}

COMPRESS = {
    "kind": "compress",
    "schema": 1,
    "model": "team/thing@1",
    "steps": [{"method": "quantize_dynamic"}],
}

HOOK = "https://hooks.example.org/modelyard"

# What every version of the world holds.
FILES = {"model.safetensors": safetensors_bytes(weight=[1.0])}


def _signature():
    """Sign those files with a key of somebody's own."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key = signing.SigningKey(private=private, public_pem=public.decode())
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}
    bundle = orjson.loads(signing.sign("mine", digests, key))
    return {"bundle": bundle, "public_key": key.public_pem}


Line = Mapping[str, tuple]
_ONE = "/api/v1/{kinds}/{namespace}/{name}"
_VERSION = f"{_ONE}/versions/{{version}}"
_ENDPOINT = "/api/v1/endpoints/{namespace}/{name}"

API: Mapping[str, Line] = {
    # --- models and datasets
    "/api/v1/{kinds}": {
        "get": ("everybody", 200),
        "post": ("in namespace: write", 201, {"namespace": "team", "name": "another"}),
    },
    _ONE: {
        "get": ("see", 200),
        "patch": ("write", 200, {"summary": "x"}),
        "delete": ("own", 204),
    },
    f"{_ONE}/tags/{{key}}": {"put": ("write", 200, {"value": "x"}), "delete": ("write", 204)},
    f"{_ONE}/aliases": {"get": ("see", 200)},
    f"{_ONE}/aliases/{{alias}}": {
        "get": ("see", 200),
        "put": ("write", 200, {"version": 1}),
        "delete": ("write", 204),
    },
    f"{_ONE}/access": {"get": ("maintain", 200)},
    f"{_ONE}/grants": {"get": ("maintain", 200)},
    f"{_ONE}/grants/{{username}}": {
        "put": ("maintain", 200, {"role": "reader"}),
        "delete": ("maintain", 204),
    },
    f"{_ONE}/transfer": {"post": ("own", 200, {"namespace": "lab"})},
    f"{_ONE}/protection": {
        "get": ("see", 200),
        "put": ("maintain", 200, {"aliases": ["production"]}),
    },
    f"{_ONE}/proposals": {
        "get": ("see", 200),
        "post": ("write", 201, {"alias": "champion", "version": 2}),
    },
    # The contributor proposed it.
    f"{_ONE}/proposals/{{number}}": {"get": ("see", 200)},
    f"{_ONE}/proposals/{{number}}/approve": {"post": ("maintain", 200, {"expected_version": None})},
    f"{_ONE}/proposals/{{number}}/decline": {"post": ("maintain", 200, {"note": "no"})},
    f"{_ONE}/proposals/{{number}}/withdraw": {"post": ("withdraw", 200)},
    f"{_ONE}/lineage": {"get": ("see", 200)},
    # It names no version, which only those who see the repository are told.
    f"{_ONE}/compare": {"get": ("see", 400)},
    f"{_ONE}/similar": {"get": ("see", 200)},
    f"{_ONE}/restore": {"post": ("deleted", 200, {})},
    # --- versions
    f"{_ONE}/versions": {"get": ("see", 200), "post": ("write", 201, {"message": "x"})},
    _VERSION: {
        "get": ("see", 200),
        "patch": ("write", 200, {"message": "x"}),
        "delete": ("maintain", 204),
    },
    f"{_VERSION}/files": {"get": ("see", 200)},
    f"{_VERSION}/derivatives": {"get": ("see", 200)},
    f"{_VERSION}/storage": {"get": ("see", 200)},
    "/api/v1/models/{namespace}/{name}/versions/{version}/tunings": {"get": ("see", 200)},
    "/api/v1/models/{namespace}/{name}/versions/{version}/exports": {
        "get": ("see", 200),
        "post": ("write", 202, {"file": "torchscript.pt"}),
    },
    "/api/v1/models/{namespace}/{name}/versions/{version}/exports/{file}": {
        "delete": ("write", 204)
    },
    f"{_VERSION}/tags/{{key}}": {"put": ("write", 200, {"value": "x"}), "delete": ("write", 204)},
    f"{_VERSION}/lineage": {"get": ("see", 200)},
    f"{_VERSION}/lineage/graph": {"get": ("see", 200)},
    f"{_VERSION}/restore": {"post": ("maintain", 200)},
    f"{_VERSION}/restore-as-new": {"post": ("write", 201, {})},
    f"{_VERSION}/diff/{{other}}": {"get": ("see", 200)},
    f"{_VERSION}/diff/{{other}}/weights": {"get": ("see", 200), "post": ("see", 200)},
    f"{_VERSION}/evaluations": {
        "get": ("see", 200),
        "post": ("write", 201, {"metric": "accuracy", "value": 0.5}),
    },
    f"{_VERSION}/signatures": {"get": ("see", 200), "post": ("write", 201, _signature())},
    # The contributor added the signature.
    f"{_VERSION}/signatures/{{signature}}": {"get": ("see", 200), "delete": ("write", 204)},
    "/api/v1/signing-key": {"get": ("everybody", 200)},
    # --- serving
    "/api/v1/endpoints": {
        "get": ("everybody", 200),
        "post": ("maintain", 201, {"model": "team/thing"}),
    },
    _ENDPOINT: {
        "get": ("see", 200),
        "patch": ("maintain", 200, {"sticky": True}),
        "delete": ("maintain", 204),
    },
    f"{_ENDPOINT}/traffic": {"put": ("maintain", 400, {"weights": {}})},
    f"{_ENDPOINT}/roll-back": {"post": ("maintain", 200)},
    f"{_ENDPOINT}/standing": {"get": ("see", 200)},
    f"{_ENDPOINT}/deployments/{{deployment}}": {
        "get": ("see", 200),
        "patch": ("maintain", 200, {"options": {"threads": 2}}),
        "delete": ("maintain", 204),
    },
    f"{_ENDPOINT}/deployments/{{deployment}}/promote": {"post": ("maintain", 200)},
    "/api/v1/deployments": {
        "post": ("maintain", 201, {"model": "team/thing", "version": "1"}),
    },
    # --- jobs; submitting is a write in the model's repository, whose visibility therefore matters
    "/api/v1/jobs": {"get": ("signed in", 200), "post": ("submit", 202, {"recipe": COMPRESS})},
    "/api/v1/jobs/estimate": {"post": ("submit", 200, {"recipe": COMPRESS})},
    "/api/v1/jobs/{job}": {"get": ("see the job", 200)},
    "/api/v1/jobs/{job}/log": {"get": ("see the job", 200)},
    "/api/v1/jobs/{job}/cancel": {"post": ("move the job", 202)},
    "/api/v1/jobs/{job}/resume": {"post": ("move the job", 202)},
    "/api/v1/jobs/{job}/reproduce": {"post": ("move the job", 202)},
    "/api/v1/recipes": {"get": ("everybody", 200)},
    "/api/v1/recipes/{kind}": {"get": ("everybody", 200)},
    "/api/v1/workers": {"get": ("signed in", 200)},
    # --- people
    "/api/v1/whoami": {"get": ("signed in", 200)},
    "/api/v1/tokens": {
        "get": ("signed in, admin", 200),
        "post": ("signed in, admin anywhere", 201, {"name": "x"}),
    },
    "/api/v1/tokens/{token}": {"delete": ("of contributor", 204)},
    "/api/v1/searches": {
        "get": ("signed in", 200),
        "post": ("signed in, write anywhere", 201, {"name": "mine", "query": "q=tiny"}),
    },
    "/api/v1/searches/{search}": {"delete": ("contributor's own", 204)},
    "/api/v1/namespaces": {
        "get": ("signed in, read", 200),
        "post": ("signed in, write anywhere", 201, {"slug": "new-team"}),
    },
    "/api/v1/namespaces/{namespace}/deleted": {"get": ("in namespace: maintain", 200)},
    "/api/v1/namespaces/{namespace}": {
        "get": ("in namespace: see", 200),
        "patch": ("in namespace: own", 200, {"display_name": "x"}),
        # It holds models.
        "delete": ("in namespace: own", 409),
    },
    "/api/v1/namespaces/{namespace}/quota": {
        "get": ("in namespace: read", 200),
        "patch": ("in namespace: administer", 200, {"bytes": 1 << 40}),
    },
    "/api/v1/namespaces/{namespace}/storage": {
        "get": ("in namespace: read", 200),
        "patch": ("in namespace: own", 200, {"compress_weights": True}),
    },
    "/api/v1/namespaces/{namespace}/members": {"get": ("in namespace: read", 200)},
    "/api/v1/namespaces/{namespace}/members/{username}": {
        "put": ("in namespace: own", 200, {"role": "reader"}),
        "delete": ("in namespace: own", 204),
    },
    "/api/v1/users": {
        "get": ("administer", 200),
        "post": ("administer", 201, {"username": "newcomer", "password": "quite long enough"}),
    },
    "/api/v1/users/{username}": {
        "get": ("administer", 200),
        "patch": ("administer", 200, {"is_active": False}),
    },
    "/api/v1/users/{username}/password": {
        "put": ("administer", 204, {"password": "quite long enough"}),
    },
    "/api/v1/users/{username}/factors": {"delete": ("administer", 204)},
    # There is no bucket here: whoever may ask hears that.
    "/api/v1/uploads/direct": {"post": ("signed in, write", 409, {"length": 4})},
    "/api/v1/uploads/direct/{direct}": {
        "get": ("upload", 200),
        "delete": ("upload", 204),
    },
    "/api/v1/uploads/direct/{direct}/parts": {"post": ("upload", 409, {"numbers": [1]})},
    "/api/v1/uploads/direct/{direct}/complete": {
        "post": ("upload", 409, {"parts": [{"number": 1, "etag": "x"}]}),
    },
    "/api/v1/requests": {
        "get": ("signed in, read", 200),
        "post": ("signed in, write anywhere", 202, {"namespace": "team", "name": "thing"}),
    },
    "/api/v1/requests/{number}": {"get": ("see the request", 200)},
    "/api/v1/requests/{number}/approve": {"post": ("decide", 200, {"expected_role": "maintainer"})},
    "/api/v1/requests/{number}/decline": {"post": ("decide", 200, {"note": "x"})},
    "/api/v1/requests/{number}/ignore": {"post": ("decide", 200)},
    "/api/v1/requests/{number}/withdraw": {"post": ("ask back", 200)},
    "/api/v1/events": {"get": ("signed in, write", 200)},
    "/api/v1/events/export": {"get": ("signed in, write", 200)},
    # --- webhooks
    "/api/v1/webhooks": {
        "get": ("signed in, write", 200),
        "post": (
            "in namespace: own",
            201,
            {"namespace": "team", "url": HOOK, "events": ["alias.moved"]},
        ),
    },
    "/api/v1/webhooks/{webhook}": {
        "get": ("webhook", 200),
        "patch": ("webhook", 200, {"is_active": False}),
        "delete": ("webhook", 204),
    },
    "/api/v1/webhooks/{webhook}/secret": {"post": ("webhook", 200)},
    "/api/v1/webhooks/{webhook}/test": {"post": ("webhook", 202)},
    "/api/v1/webhooks/{webhook}/deliveries": {"get": ("webhook", 200)},
    "/api/v1/webhooks/{webhook}/deliveries/{delivery}/redeliver": {"post": ("webhook", 202)},
    "/api/v1/openapi.json": {"get": ("everybody", 200)},
}

_PAGE = "/{kinds}/{namespace}/{name}"
_PAGE_VERSION = f"{_PAGE}/versions/{{number}}"

PAGES: Mapping[str, Line] = {
    "/": {"get": ("page: everybody", 200)},
    "/login": {
        # Whoever is signed in is led on.
        "get": ("page: everybody", {200, 302}),
        "post": ("page: everybody", {200, 302}, {"username": "x", "password": "y"}),
    },
    "/logout": {"post": ("page: everybody", 302)},
    # Strangers make no accounts here, and there is no identity provider.
    "/login/new": {"get": ("page: everybody", 404), "post": ("page: everybody", 404)},
    "/login/provider": {"post": ("page: everybody", 404)},
    "/login/provider/callback": {"get": ("page: everybody", 404)},
    "/login/again/provider": {"get": ("page: signed in", 404)},
    "/login/switched-off": {"get": ("page: everybody", 403)},
    # Nobody here has begun to sign in, or holds a factor: they are led on.
    "/login/second-factor": {"get": ("page: everybody", 302), "post": ("page: everybody", 302)},
    "/login/passkey": {"get": ("page: everybody", 302), "post": ("page: everybody", 302)},
    "/login/again": {"get": ("page: signed in", 200), "post": ("page: signed in", 200)},
    "/login/again/code": {"get": ("page: signed in", 302), "post": ("page: signed in", 302)},
    "/login/again/passkey": {"get": ("page: signed in", 302), "post": ("page: signed in", 302)},
    "/settings": {"get": ("page: signed in", 200)},
    "/settings/password": {"get": ("page: signed in", 200), "post": ("page: signed in", 200)},
    "/settings/sessions": {"get": ("page: signed in", 200)},
    "/settings/sessions/others": {"post": ("page: signed in", 302)},
    "/settings/sessions/{session}/end": {"post": ("page: signed in", 404)},
    "/settings/second-factors": {"get": ("page: signed in", 200)},
    # What matters first asks who one is.
    "/settings/second-factors/app": {
        "get": ("page: signed in", 302),
        "post": ("page: signed in", 302),
    },
    "/settings/second-factors/app/remove": {
        "get": ("page: signed in", 404),
        "post": ("page: signed in", 404),
    },
    "/settings/second-factors/codes": {"get": ("page: signed in", 404)},
    "/settings/second-factors/codes/new": {
        "get": ("page: signed in", 302),
        "post": ("page: signed in", 302),
    },
    "/settings/passkeys": {"get": ("page: signed in", 302)},
    "/settings/passkeys/add": {
        "get": ("page: signed in", 302),
        "post": ("page: signed in", 302),
    },
    "/settings/passkeys/{pk}/remove": {
        "get": ("page: signed in", 302),
        "post": ("page: signed in", 302),
    },
    "/settings/identity": {"get": ("page: signed in", 200), "post": ("page: signed in", 200)},
    "/users": {"get": ("page: administer", 200), "post": ("page: administer", 302)},
    "/users/{username}": {"get": ("page: administer", 200), "post": ("page: administer", 302)},
    "/users/{username}/change": {"post": ("page: administer", 302, {"change": "is_admin=1"})},
    "/users/{username}/factors": {"post": ("page: administer", 302)},
    "/settings/tokens": {
        "get": ("page: signed in", 200),
        "post": ("page: signed in", 200, {"name": "x", "scopes": ["read"], "days": "30"}),
    },
    "/settings/searches/{kinds}": {
        "post": ("page: signed in", 302, {"name": "mine", "query": "q=tiny"}),
    },
    # Says on the page it came from whether there was one.
    "/settings/searches/{kinds}/{search}/forget": {"post": ("page: signed in", 302)},
    "/settings/tokens/{token}/revoke": {"post": ("page: of contributor", 302)},
    "/settings/audit": {"get": ("page: signed in", 200)},
    "/settings/audit/export": {"get": ("page: signed in", 200)},
    "/settings/webhooks": {
        "get": ("page: signed in", 200),
        # Others get the form back, with the refusal in it.
        "post": (
            "page: signed in",
            {200, 422},
            {"place": "team", "kind": "model", "url": HOOK, "events": ["alias.moved"]},
        ),
    },
    "/settings/webhooks/{webhook}": {"get": ("page: webhook", 200)},
    "/settings/webhooks/{webhook}/change": {
        "post": ("page: webhook", 302, {"url": HOOK, "events": ["alias.moved"]}),
    },
    "/settings/webhooks/{webhook}/switch": {"post": ("page: webhook", 302, {"on": "1"})},
    "/settings/webhooks/{webhook}/test": {"post": ("page: webhook", 302)},
    "/settings/webhooks/{webhook}/secret": {"post": ("page: webhook", 200)},
    "/settings/webhooks/{webhook}/delete": {"post": ("page: webhook", 302)},
    "/settings/webhooks/{webhook}/deliveries/{delivery}/redeliver": {
        "post": ("page: webhook", 302),
    },
    "/jobs": {"get": ("page: signed in", 200)},
    "/jobs/new": {"get": ("page: signed in", 200), "post": ("page: signed in", 200)},
    "/jobs/{job}": {"get": ("page: job", 200)},
    "/jobs/{job}/compare": {"get": ("page: job", 200)},
    "/jobs/{job}/cancel": {"post": ("page: move the job", 302)},
    "/jobs/{job}/resume": {"post": ("page: move the job", 302)},
    "/jobs/{job}/reproduce": {"post": ("page: move the job", 302)},
    "/endpoints/new": {
        "get": ("page: signed in", 200),
        # Others get the form back, with the refusal in it.
        "post": ("page: signed in", {302, 422}, {"model": "team/thing", "version": "1"}),
    },
    "/endpoints/{namespace}/{name}": {"get": ("page: see", 200)},
    # Whoever may not is sent back to the page, which says so.
    "/endpoints/{namespace}/{name}/change": {
        "post": ("page: change", 302, {"change": "roll-back"}),
    },
    "/namespaces/{namespace}/deleted": {"get": ("page: in namespace: maintain", 200)},
    "/namespaces/{namespace}/deleted/restore": {
        "post": ("page: in namespace: maintain", 302, {"what": "repository:0"})
    },
    "/namespaces/new": {
        "get": ("page: signed in", 200),
        "post": ("page: signed in", {200, 302}, {"slug": "new-team"}),
    },
    "/namespaces/{namespace}": {"get": ("page: in namespace", 200)},
    # Whoever may not is sent back to the page, which says so.
    "/namespaces/{namespace}/change": {
        "post": ("page: change namespace", 302, {"change": "set", "username": "extra"})
    },
    "/requests": {
        "get": ("page: signed in", 200),
        "post": (
            "page: signed in",
            302,
            {"kind": "model", "name": "team/thing", "role": "reader"},
        ),
    },
    "/requests/{number}/decide": {
        "post": ("page: request", 302, {"decision": "approve", "expected_role": "maintainer"})
    },
    "/{kinds}": {"get": ("page: everybody", 200)},
    "/{kinds}/new": {
        "get": ("page: signed in", 200),
        # Only namespaces that may be written in can be chosen; others get the form back.
        "post": ("page: signed in", {200, 302}, {"namespace": "team", "name": "another"}),
    },
    "/{kinds}/{namespace}": {"get": ("page: everybody", 302)},
    _PAGE: {"get": ("page: see", 200)},
    "/models/{namespace}/{name}/playground": {"get": ("page: see", 200)},
    "/models/{namespace}/{name}/playground/key": {"post": ("page: signed in who see", 200)},
    f"{_PAGE}/settings": {
        "get": ("page: write", 200),
        "post": ("page: write", {200, 302}, {"name": "thing", "summary": "x"}),
    },
    # Without its name typed in, whoever sees the repository is sent back to its settings.
    f"{_PAGE}/delete": {"post": ("page: own", 302, {"confirm": "team/thing-unnamed"})},
    f"{_PAGE}/access": {"get": ("page: maintain", 200)},
    f"{_PAGE}/access/change": {
        "post": ("page: change", 302, {"change": "grant", "username": "extra", "role": "reader"})
    },
    f"{_PAGE}/proposals": {"get": ("page: see", 200)},
    f"{_PAGE}/proposals/new": {"post": ("page: write", 302, {"alias": "champion", "version": "2"})},
    f"{_PAGE}/proposals/{{number}}": {"get": ("page: see", 200)},
    f"{_PAGE}/proposals/{{number}}/decide": {
        "post": ("page: change", {302, 422}, {"decision": "approve"})
    },
    f"{_PAGE}/tags": {"post": ("page: change", 302, {"key": "stage", "value": "x"})},
    f"{_PAGE}/tags/delete": {"post": ("page: change", 302, {"key": "stage"})},
    f"{_PAGE}/aliases": {"post": ("page: change", 302, {"alias": "champion", "version": "1"})},
    f"{_PAGE}/aliases/delete": {"post": ("page: change", 302, {"alias": "champion"})},
    f"{_PAGE}/versions/new": {
        "get": ("page: write", 200),
        "post": ("page: write", {302, 422}, {"message": "x"}),
    },
    _PAGE_VERSION: {"get": ("page: see", 200)},
    f"{_PAGE}/compare": {"get": ("page: see", 200)},
    f"{_PAGE_VERSION}/diff/{{other}}": {"get": ("page: see", 200)},
    f"{_PAGE_VERSION}/diff/{{other}}/weights": {"post": ("page: signed in who see", 302)},
    f"{_PAGE_VERSION}/edit": {"post": ("page: write", 302, {"message": "x"})},
    f"{_PAGE_VERSION}/signatures": {"post": ("page: write", 422)},
    f"{_PAGE_VERSION}/signatures/{{signature}}": {"get": ("page: see", 200)},
    # Who may not write is told so on the page that it leads back to.
    f"{_PAGE_VERSION}/signatures/{{signature}}/delete": {"post": ("page: change", 302, {})},
    f"{_PAGE_VERSION}/restore-as-new": {"post": ("page: change", 302)},
    f"{_PAGE_VERSION}/exports/delete": {"post": ("page: change", 302, {"file": "program.pt2"})},
    f"{_PAGE_VERSION}/exports": {"post": ("page: change", 302, {"file": "torchscript.pt"})},
    f"{_PAGE_VERSION}/delete": {"post": ("page: change", 302, {"confirm": "team/thing@2"})},
}

_TUS = {"Tus-Resumable": "1.0.0"}
_BEGIN = {**_TUS, "Upload-Length": "3"}
_PART = {**_TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}

# Here the third place holds the headers, and the address is that of the pattern in routes.py.
STREAMS: Mapping[str, Line] = {
    "/api/v1/{kinds}/{namespace}/{name}/versions/{version}/files/{path}": {
        "get": ("see", 200),
        "head": ("see", 200),
    },
    "/api/v1/{kinds}/{namespace}/{name}/versions/{version}/derivatives/{path}": {
        "get": ("see", 200),
        "head": ("see", 200),
    },
    "/api/v1/models/{namespace}/{name}/versions/{version}/exports/{file}": {
        "get": ("see", 200),
        "head": ("see", 200),
    },
    "/api/v1/{kinds}/{namespace}/{name}/versions": {
        "post": ("write", 201, {"Content-Type": "multipart/form-data; boundary=b"}),
    },
    "/api/v1/uploads": {
        "options": ("everybody", 204),
        "post": ("signed in, write", 201, _BEGIN),
    },
    "/api/v1/uploads/{upload}": {
        "options": ("everybody", 204),
        "head": ("upload", 200, _TUS),
        "patch": ("upload", 204, _PART),
        "delete": ("upload", 204, _TUS),
    },
    "/api/v1/jobs/{job}/events": {"get": ("events", 200)},
    "/{kinds}/{namespace}/{name}/versions/{version}/files/{path}": {
        "get": ("page: see", 200),
        "head": ("page: see", 200),
    },
    "/{kinds}/{namespace}/{name}/versions/new": {
        "post": ("page: write", 302, {"Content-Type": "multipart/form-data; boundary=b"}),
    },
    "/{kinds}/{namespace}/{name}/versions/{version}/derivatives/{path}": {
        "get": ("page: see", 200),
        "head": ("page: see", 200),
    },
    "/models/{namespace}/{name}/versions/{version}/exports/{file}": {
        "get": ("page: see", 200),
        "head": ("page: see", 200),
    },
    "/uploads": {
        "options": ("page: everybody", 204),
        "post": ("page upload: begin", 201, _BEGIN),
    },
    "/uploads/{upload}": {
        "options": ("page: everybody", 204),
        "head": ("page upload", 200, _TUS),
        "patch": ("page upload", 204, _PART),
        "delete": ("page upload", 204, _TUS),
    },
    "/jobs/{job}/events": {"get": ("page events", 200)},
}

# What operators look at, and what answers for the addresses that are not there. Everybody gets the
# same here; none of it may name what somebody registered.
OPEN: Mapping[str, int] = {
    "/healthz": 200,
    "/readyz": 200,
    "/metrics": 200,
    "/api/docs": 200,
    "/api": 404,
    "/api/v1/nothing": 404,
}

# Where a slot of one line stands for something of its own; `World` knows these names.
INSTEAD: Mapping[str, Mapping[str, str]] = {
    "/{kinds}/{namespace}/{name}/delete": {"name": "unaliased thing"},
    _ONE: {"name": "unaliased thing"},
    f"{_ONE}/restore": {"name": "deleted thing"},
    f"{_VERSION}/restore": {"version": "deleted version"},
    f"{_VERSION}/restore-as-new": {"version": "older version"},
    "/api/v1/jobs/{job}/resume": {"job": "ended job"},
    "/api/v1/jobs/{job}/reproduce": {"job": "done job"},
    "/jobs/{job}/resume": {"job": "ended job"},
    "/jobs/{job}/reproduce": {"job": "done job"},
    "/api/v1/jobs/{job}/events": {"job": "ended job"},
    "/jobs/{job}/events": {"job": "ended job"},
    "/requests/{number}/decide": {"number": "request"},
    f"{_PAGE}/proposals/{{number}}": {"number": "proposal"},
    f"{_PAGE}/proposals/{{number}}/decide": {"number": "proposal"},
    **{address: {"name": "served"} for address in API if address.startswith(_ENDPOINT)},
    "/endpoints/{namespace}/{name}": {"name": "served"},
    "/endpoints/{namespace}/{name}/change": {"name": "served"},
    **{
        address: {"number": "request"} for address in API if address.startswith("/api/v1/requests/")
    },
    **{
        address: {"number": "proposal"}
        for address in API
        if address.startswith(f"{_ONE}/proposals/")
    },
}

# Bodies and queries that name something by reference: a hidden name there must be refused exactly
# like one that is nobody's. {it} is the hidden or the absent repository, {space} its namespace.
REFERENCES: tuple[tuple[str, str, object], ...] = (
    ("post", "/api/v1/jobs", {"recipe": {**COMPRESS, "model": "{it}@1"}}),
    ("post", "/api/v1/jobs", {"recipe": {**COMPRESS, "model": "{it}@champion"}}),
    ("post", "/api/v1/jobs/estimate", {"recipe": {**COMPRESS, "model": "{it}@1"}}),
    ("post", "/api/v1/tokens", {"name": "x", "model": "{it}"}),
    (
        "post",
        "/api/v1/models/lab/open/versions",
        {"parents": [{"version": "{it}@1", "role": "weights"}]},
    ),
    (
        "post",
        "/api/v1/models/lab/open/versions/1/evaluations",
        {"metric": "accuracy", "value": 0.5, "dataset": "{it}@1"},
    ),
    (
        "post",
        "/api/v1/webhooks",
        {"model": "{it}", "url": HOOK, "events": ["alias.moved"]},
    ),
    ("post", "/api/v1/deployments", {"model": "{it}", "version": "1"}),
    ("post", "/api/v1/endpoints", {"model": "{it}"}),
    ("get", "/api/v1/endpoints?namespace={space}", None),
    ("get", "/api/v1/endpoints?model={it}", None),
    ("post", "/api/v1/models", {"namespace": "{space}", "name": "x"}),
    ("post", "/api/v1/tokens", {"name": "x", "namespace": "{space}"}),
    ("post", "/api/v1/models/lab/open/transfer", {"namespace": "{space}"}),
    # Whoever asks for access hears nothing either.
    ("post", "/api/v1/requests", {"namespace": "{space}", "name": "{name}", "role": "owner"}),
    ("post", "/api/v1/requests", {"kind": "namespace", "namespace": "{space}"}),
    ("get", "/api/v1/events?namespace={space}", None),
    ("get", "/api/v1/jobs?namespace={space}", None),
    ("get", "/api/v1/models?owner={space}", None),
    ("get", "/models?owner={space}", None),
    ("get", "/api/v1/models?q={it}", None),
    ("get", "/models?q={it}", None),
    ("get", "/jobs/new?kind=compress&model={it}@1", None),
)
