"""A team at work, for the pages on sharing, approvals, signatures and files that can run code."""

import io
import pickle
import re
import struct
import time
import zipfile

import httpx
import orjson
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from registry import signing
from tests.factories import safetensors_bytes

PASSWORD = "a long sentence for tests"
MODEL, HELD = "/models/vision/digits-classifier", "/models/vision/digits-from-a-stranger"
# Each page with something real on it.
TEAM_PAGES = (
    "/namespaces/vision",
    "/namespaces/new",
    "/namespaces/vision/deleted",
    MODEL,
    f"{MODEL}?tab=versions",
    f"{MODEL}/access",
    f"{MODEL}/proposals",
    f"{MODEL}/proposals/1",
    f"{MODEL}/proposals/2",
    f"{MODEL}/settings",
    f"{MODEL}/versions/1",
    f"{MODEL}/versions/3",
    f"{HELD}/versions/1",
    f"{HELD}/versions/2",
    HELD,
    "/requests",
    "/settings",
    "/settings/tokens",
    "/settings/audit",
    "/settings/audit?action=version.",
    "/settings/webhooks",
    "/settings/webhooks/1",
    "/users",
    "/users/mei",
)


def furnish_team(address: str, token: str) -> None:
    """Let an administrator and three others fill an organisation, over REST and by forms."""
    with httpx.Client(
        base_url=f"{address}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60
    ) as api:
        _people(api)
        _models(api)
        _held(api)
        _signed(api)
        _approvals(api)
        _beside(api)
        _from_outside(address)
        _settled(api)


def _done(answer: httpx.Response) -> httpx.Response:
    assert answer.is_success or answer.is_redirect, f"{answer.url}: {answer.text}"
    return answer


def _people(api: httpx.Client) -> None:
    for name in ("mei", "noor", "tom-from-another-department"):
        about = {"username": name, "password": PASSWORD, "email": f"{name}@example.org"}
        _done(api.post("/users", json=about))
    _done(api.post("/namespaces", json={"slug": "vision", "display_name": "Vision Research"}))
    for name, role in (("mei", "contributor"), ("noor", "maintainer")):
        _done(api.put(f"/namespaces/vision/members/{name}", json={"role": role}))


def _models(api: httpx.Client) -> None:
    about = {
        "namespace": "vision",
        "name": "digits-classifier",
        "visibility": "internal",
        "summary": "Tells the ten digits apart on small grey images.",
        "task": "image-classification",
    }
    _done(api.post("/models", json=about))
    for number in range(1, 4):
        _version(api, MODEL, f"Round {number}.", **{"model.safetensors": _weights(number)})
        evaluations = (
            ("accuracy", 0.93 + number / 100, "share"),
            ("latency_p50_batch1", 3.1, "ms"),
        )
        for metric, value, unit in evaluations:
            number_of = {"metric": metric, "value": value, "unit": unit, "n": 10_000}
            _done(api.post(f"{MODEL}/versions/{number}/evaluations", json=number_of))
    for number, changes in (
        (1, {"state": "archived", "state_reason": "Trained on the wrong split."}),
        (2, {"state": "deprecated", "state_reason": "It mistakes 7 for 1; use version 3."}),
    ):
        _done(api.patch(f"{MODEL}/versions/{number}", json=changes))


def _version(api: httpx.Client, model: str, message: str, **files: bytes) -> None:
    form = {path: (path, content) for path, content in files.items()}
    form["README.md"] = ("README.md", b"---\nlicense: mit\n---\n# Digits\n\nReads digits.\n")
    _done(api.post(f"{model}/versions", files=form, data={"message": message}))


def _weights(number: int) -> bytes:
    return safetensors_bytes(**{"layer.weight": [float(number)] * 12, "layer.bias": [0.5] * 3})


def _held(api: httpx.Client) -> None:
    """Upload what can run code: one that is converted, one that is only kept."""
    about = {"namespace": "vision", "name": "digits-from-a-stranger", "visibility": "internal"}
    _done(api.post("/models", json=about))
    _version(api, HELD, "As it was found.", **{"pytorch_model.bin": _checkpoint()})
    _version(api, HELD, "With the helper.", **{"helper.pkl": pickle.dumps(_Calls())})


class _Calls:
    def __reduce__(self):
        return print, ("never printed",)


def _checkpoint() -> bytes:
    """Write what torch.save writes of one tensor, without torch."""
    out = io.BytesIO()
    body = (
        b"\x80\x02}q\x00X\x06\x00\x00\x00weightq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02"
        b"((X\x07\x00\x00\x00storageq\x03ctorch\nFloatStorage\nq\x04X\x01\x00\x00\x000q\x05"
        b"X\x03\x00\x00\x00cpuq\x06K\x04tq\x07QK\x00K\x02K\x02\x86q\x08K\x02K\x01\x86q\t\x89"
        b"ccollections\nOrderedDict\nq\n)Rq\x0btq\x0cRq\rs."
    )
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in (
            ("data.pkl", body),
            ("byteorder", b"little"),
            ("data/0", struct.pack("<4f", 1, 2, 3, 4)),
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", content)
    return out.getvalue()


def _signed(api: httpx.Client) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key = signing.SigningKey(private=private, public_pem=public.decode())
    listed = api.get(f"{MODEL}/versions/3/files").json()["items"]
    files = {file["path"]: file["sha256"] for file in listed}
    bundle = orjson.loads(signing.sign("release", files, key))
    signed = {"bundle": bundle, "public_key": key.public_pem}
    _done(api.post(f"{MODEL}/versions/3/signatures", json=signed))


def _approvals(api: httpx.Client) -> None:
    _done(api.put(f"{MODEL}/aliases/production", json={"version": 2}))
    for number, message in ((3, "Better on the hard ones."), (2, "Back, if 3 disappoints.")):
        asked = {"alias": "production", "version": number, "message": message}
        _done(api.post(f"{MODEL}/proposals", json=asked))
        if number == 3:
            seen = {"expected_version": 2, "note": "Well measured."}
            _done(api.post(f"{MODEL}/proposals/1/approve", json=seen))


def _beside(api: httpx.Client) -> None:
    _done(api.put(f"{MODEL}/grants/tom-from-another-department", json={"role": "reader"}))
    for name in ("an-old-experiment", "an-older-one"):
        _done(api.post("/models", json={"namespace": "vision", "name": name}))
        _done(api.delete(f"/models/vision/{name}"))
    hook = {
        "namespace": "vision",
        "url": "https://hooks.example.org/services/registry/a-rather-long-path",
        "events": ["version.created", "alias.moved"],
    }
    made = _done(api.post("/webhooks", json=hook)).json()
    _done(api.post(f"/webhooks/{made['id']}/test"))
    _done(api.post("/tokens", json={"name": "nightly training", "scopes": ["read", "write"]}))


def _from_outside(address: str) -> None:
    """Ask for access as somebody does who is no member, in the form of the page."""
    with httpx.Client(base_url=address, timeout=60) as visitor:
        sign_in_by_form(visitor, "tom-from-another-department")
        asked = {
            "kind": "model",
            "name": "vision/digits-from-a-stranger",
            "role": "contributor",
            "message": "I would like to add a version that was trained on scanned forms.",
        }
        _done(post_form(visitor, "/requests", asked))


def sign_in_by_form(visitor: httpx.Client, name: str) -> None:
    _done(post_form(visitor, "/login", {"username": name, "password": PASSWORD}))


def post_form(visitor: httpx.Client, path: str, fields: dict[str, str]) -> httpx.Response:
    page = visitor.get(path).text
    (token, *_) = re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    headers = {"Origin": str(visitor.base_url).rstrip("/"), "Referer": f"{visitor.base_url}{path}"}
    return visitor.post(path, data={**fields, "csrfmiddlewaretoken": token}, headers=headers)


def _settled(api: httpx.Client) -> None:
    """Wait until the sandbox has converted what it can, and the webhook was tried."""
    patience = time.monotonic() + 300
    while time.monotonic() < patience:
        screened = api.get(f"{HELD}/versions/1/derivatives").json()["screening"]
        tried = api.get("/webhooks/1/deliveries").json()["items"]
        if screened == "done" and tried and tried[0]["attempts"]:
            return
        time.sleep(0.5)
    raise TimeoutError("the workers have not settled")
