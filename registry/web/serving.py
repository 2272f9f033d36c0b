"""What pages say of endpoints: the calls that reach one, and the lines of its history."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

from django.conf import settings
from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop, pgettext_lazy

from registry.errors import Conflict
from registry.models import AuditAction, Deployment, Endpoint, Event, Version, Visibility
from registry.services.gate import Evidence, evidence_of
from registry.services.succession import require_taking
from registry.web.snippets import Snippet
from registry.web.wording import DEPLOYMENT_ROLES

EMBEDDING_TASKS = frozenset({"sentence-similarity", "feature-extraction"})
_SHOWN = 30
# Beyond so many characters an example comes from input.json, as in playground-code.js.
_LARGE = 6000
# A zero, a comma and a space.
_ZERO = 3
# A row of more numbers makes a page heavy: some 256 x 256 pixels in colours.
_MOST_ZEROS = 200_000


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the serving process of this installation answers, as a visitor of `host` reaches it."""

    rest: str
    # A host and a port, which clients of gRPC take without a scheme.
    grpc: str
    grpc_is_secure: bool = False

    @classmethod
    def seen_from(cls, host: str) -> "Address":
        """Take what the settings say, else the host of the page with the ports of serving."""
        parts = urlsplit(host)
        name = parts.hostname or "127.0.0.1"
        bare = f"[{name}]" if ":" in name else name
        grpc = urlsplit(settings.GRPC_ADDRESS)
        return cls(
            rest=settings.INFER_URL or f"http://{bare}:{settings.INFER_PORT}",
            grpc=grpc.netloc or f"{bare}:{settings.GRPC_PORT}",
            grpc_is_secure=grpc.scheme == "grpcs",
        )


def calls(host: str, endpoint: Endpoint, version: Version | None) -> list[Snippet]:
    """Write how programs call an endpoint; private models send a token."""
    address = Address.seen_from(host)
    name = endpoint.full_name
    private = endpoint.repository.visibility != Visibility.PUBLIC
    token = ' \\\n  -H "Authorization: Bearer $MODELYARD_TOKEN"' if private else ""
    before, sent = _sent(version)
    found = [
        Snippet(
            key="predict",
            title="curl",
            code=f"{before}curl {address.rest}/predict/{name}{token} \\\n  --json {sent}",
        ),
        Snippet(
            key="triton-http",
            title="tritonclient",
            code=_triton(address, name, private=private),
        ),
        Snippet(key="triton-grpc", title="gRPC", code=_grpc(address, name, private=private)),
    ]
    if endpoint.repository.task in EMBEDDING_TASKS:
        body = {"model": name, "input": ["How do I read a file?"]}
        found.append(
            Snippet(
                key="embeddings",
                title="/v1/embeddings",
                code=f"curl {address.rest}/v1/embeddings{token} \\\n  --json {_quoted(body)}",
            )
        )
    return found


def _sent(version: Version | None) -> tuple[str, str]:
    """Give an example as curl takes it, and before it what makes the file of one that is large."""
    shapes = _shapes_of(version)
    if _ZERO * sum(map(math.prod, shapes.values())) <= _LARGE:
        return "", _quoted(example_of(version))
    fields = [f"{json.dumps(name)}: {_written(shape)}" for name, shape in shapes.items()]
    return _MADE % ",\n    ".join(fields), "@input.json"


def _written(shape: Sequence[int]) -> str:
    """Write zeros in a shape as Python."""
    inner = f"[0] * {shape[-1]}" if shape else "0"
    for size in reversed(shape[:-1]):
        inner = f"[{inner}] * {size}"
    return inner


_MADE: Final = """\
python3 > input.json << 'END'
import json

print(json.dumps({
    %s,
}))
END
"""


def _quoted(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, ensure_ascii=True).replace("'", "'\\''")
    return f"'{text}'"


def preprocessing_of(version: Version | None) -> dict[str, Any]:
    """Read how the fields of a version become its inputs, as far as its config.json says."""
    said = version.config.get("preprocessing") if version else None
    return said if isinstance(said, dict) else {}


def example_of(version: Version | None) -> dict[str, Any]:
    """Make a row that the version takes, as far as its files say what it takes."""
    preprocessing = preprocessing_of(version)
    columns = preprocessing.get("columns")
    columns = columns if isinstance(columns, dict) else {}
    if preprocessing.get("kind") == "image":
        row = [0] * 28
        return {str(columns.get("image", "image")): [row] * 28}
    shapes = _shapes_of(version)
    if not shapes:
        return example_of_text(preprocessing)
    if sum(map(math.prod, shapes.values())) > _MOST_ZEROS:
        shapes = {name: [min(size, 1) for size in shape] for name, shape in shapes.items()}
    return {name: _zeros(shape) for name, shape in shapes.items()}


def _shapes_of(version: Version | None) -> dict[str, list[int]]:
    """Give the shape of one row of each input of a version that takes numbers as they are.

    An axis of any size gets one place.
    """
    kind = preprocessing_of(version).get("kind")
    ports = version.signature.get("inputs", []) if version else []
    shapes = {
        port["name"]: [
            size if isinstance(size, int) and size > 0 else 1
            for size in (port.get("shape") or [])[1:]
        ]
        for port in ports
    }
    return {} if kind in {"image", "words"} or "input_ids" in shapes else shapes


def example_of_text(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    columns = preprocessing.get("columns")
    name = columns.get("text", "text") if isinstance(columns, dict) else "text"
    return {str(name): "How do I read a file?"}


def _zeros(shape: Sequence[int]) -> Any:
    value: Any = 0
    for size in reversed(shape):
        value = [value] * size
    return value


def _triton(address: Address, name: str, *, private: bool) -> str:
    return f"""{"import os" + chr(10) + chr(10) if private else ""}import numpy as np
import tritonclient.http as triton
from tritonclient.utils import triton_to_np_dtype

client = triton.InferenceServerClient({_at(address)})
name = "{name}"{_headers(private=private)}

# One input of zeros for each that the model takes
inputs = []
for one in client.get_model_metadata(name{_sending(private=private)})["inputs"]:
    shape = [max(size, 1) for size in one["shape"]]
    zeros = np.zeros(shape, triton_to_np_dtype(one["datatype"]))
    inputs.append(triton.InferInput(one["name"], shape, one["datatype"]))
    inputs[-1].set_data_from_numpy(zeros)

answer = client.infer(name, inputs{_sending(private=private)}).get_response()
print(answer["model_version"], answer["parameters"])"""


def _at(address: Address) -> str:
    """Write where the client of Triton finds the server: it takes no scheme, but a path."""
    web = urlsplit(address.rest)
    return f'"{web.netloc}{web.path}"{_tls(secure=web.scheme == "https")}'


def _tls(*, secure: bool) -> str:
    return ", ssl=True" if secure else ""


def _grpc(address: Address, name: str, *, private: bool) -> str:
    return f"""{"import os" + chr(10) + chr(10) if private else ""}import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import triton_to_np_dtype

client = triton.InferenceServerClient("{address.grpc}"{_tls(secure=address.grpc_is_secure)})
name = "{name}"{_headers(private=private)}

# One input of zeros for each that the model takes
inputs = []
for one in client.get_model_metadata(name{_sending(private=private)}).inputs:
    shape = [max(size, 1) for size in one.shape]
    zeros = np.zeros(shape, triton_to_np_dtype(one.datatype))
    inputs.append(triton.InferInput(one.name, shape, one.datatype))
    inputs[-1].set_data_from_numpy(zeros)

answer = client.infer(name, inputs{_sending(private=private)}).get_response()
print(answer.model_version, answer.parameters)"""


def _headers(*, private: bool) -> str:
    if not private:
        return ""
    return '\nheaders = {"authorization": f"Bearer {os.environ[\'MODELYARD_TOKEN\']}"}'


def _sending(*, private: bool) -> str:
    return ", headers=headers" if private else ""


# --- History -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """Something that was done to an endpoint: what, who by, when, and why if they said."""

    text: str
    actor: str
    at: datetime
    reason: str
    evidence: str


def history_of(endpoint: Endpoint) -> list[Line]:
    """Read what was done to an endpoint, newest first."""
    own = Q(
        action__in=[action.value for action in AuditAction if action.family in _FAMILIES],
        data__endpoint=endpoint.pk,
    )
    followed = Q(action=AuditAction.ALIAS_SET.value, data__endpoints__contains=[endpoint.pk])
    rows = Event.objects.filter(own | followed, repository_id=endpoint.repository_id)
    return [
        Line(
            text=_said(event),
            actor=event.actor,
            at=event.at,
            reason=str(event.data.get("reason", "")),
            evidence=_evidence(event.data.get("evidence")),
        )
        for event in rows.order_by("-at", "-pk")[:_SHOWN]
    ]


_FAMILIES: Final = frozenset({"canary", "deployment", "endpoint"})


_LINES: Final = {
    AuditAction.ALIAS_SET: gettext_noop(
        "@%(alias)s, which is followed here, moved from v%(before)s to %(version)s"
    ),
    AuditAction.CANARY_WIDEN: gettext_noop(
        "%(version)s does as well as the others: from %(before)s %% to %(weight)s %%"
    ),
    AuditAction.CANARY_ROLL_BACK: gettext_noop(
        "%(version)s does worse than the others: from %(before)s %% back to 0 %%"
    ),
    AuditAction.DEPLOYMENT_CREATE: gettext_noop("%(version)s deployed: %(role)s, %(weight)s %%"),
    AuditAction.DEPLOYMENT_CHANGE: gettext_noop("%(version)s is served with other options"),
    AuditAction.DEPLOYMENT_PROMOTE: gettext_noop("%(version)s promoted: it answers everything"),
    AuditAction.DEPLOYMENT_DELETE: gettext_noop("%(version)s undeployed"),
    AuditAction.ENDPOINT_SPLIT: gettext_noop("Traffic split anew"),
    AuditAction.ENDPOINT_ROLL_BACK: gettext_noop("Rolled back to the split before"),
    AuditAction.ENDPOINT_CREATE: gettext_noop("Endpoint made"),
}


_NOT_LOADED: Final = gettext_noop(
    "%(version)s could not be loaded: from %(before)s %% back to 0 %%"
)


def _said(event: Event) -> str:
    data = event.data
    names = {
        "version": f"@{data['alias']}" if data.get("alias") else f"v{data.get('version')}",
        "role": DEPLOYMENT_ROLES.get(data.get("role", ""), ""),
        "weight": data.get("weight", 0),
        "before": data.get("before", 0),
        "alias": event.target.rpartition("@")[2],
    }
    said = _LINES.get(AuditAction(event.action), gettext_noop("Endpoint changed"))
    if data.get("cause") == "load_failed":
        said = _NOT_LOADED
    return _(said) % names


def _evidence(said: Any) -> str:
    """Say the numbers that a canary was judged by."""
    if not isinstance(said, dict):
        return ""
    ours, others = said["canary"], said["others"]
    return _(
        "%(requests)s requests, %(failures)s failed, %(mean)s ms on average; "
        "the others: %(other_requests)s, %(other_failures)s, %(other_mean)s ms."
    ) % {
        "requests": ours["requests"],
        "failures": ours["failures"],
        "mean": ours["mean_ms"],
        "other_requests": others["requests"],
        "other_failures": others["failures"],
        "other_mean": others["mean_ms"],
    }


VERDICTS: Final = {
    "allow": pgettext_lazy("verdict on a shadow", "may be promoted"),
    "differs": pgettext_lazy("verdict on a shadow", "agrees too seldom"),
    "slow": pgettext_lazy("verdict on a shadow", "too slow"),
    "undecided": pgettext_lazy("verdict on a shadow", "not decided yet"),
}
VERDICT_TONES: Final = {"allow": "good", "differs": "bad", "slow": "bad", "undecided": "now"}


def shadow_of(deployment: Deployment) -> dict[str, Any] | None:
    """Say what is known of a shadow; None of what is none."""
    evidence = evidence_of(deployment)
    if evidence is None:
        return None
    counts = {"agreed": evidence.agreed, "compared": evidence.compared}
    if not evidence.compared:
        words = _("no answers were compared yet")
    elif evidence.latency_ratio is None:
        words = _("%(agreed)s of %(compared)s alike") % counts
    else:
        words = _("%(agreed)s of %(compared)s alike, %(ratio)s of the time") % {
            **counts,
            "ratio": f"{evidence.latency_ratio:.2f}",
        }
    if evidence.timed:
        timed = _("%(in_time)s of %(timed)s in at most %(percent)s %% of the live time") % {
            "in_time": evidence.in_time,
            "timed": evidence.timed,
            "percent": evidence.time_percent,
        }
        words = f"{words}; {timed}"
    found = _verdict_of(evidence)
    return {"words": words, "verdict": VERDICTS[found], "tone": VERDICT_TONES[found]}


def _verdict_of(evidence: Evidence) -> str:
    """Say what the evidence allows, or which part of it does not."""
    if evidence.agreement_verdict == "block":
        return "differs"
    return "slow" if evidence.latency_verdict == "block" else evidence.verdict


def needs_reason(deployment: Deployment, present: Sequence[Deployment]) -> bool:
    """Say whether a deployment begins to answer, or to answer everything, only for a reason."""
    if deployment.serves is None:
        return False
    try:
        require_taking(deployment.endpoint, present, deployment.serves)
    except Conflict:
        return True
    return False


def name_of(deployment: Deployment) -> str:
    """Name a deployment by what it serves."""
    if deployment.alias:
        return f"@{deployment.alias}"
    return f"v{deployment.serves.number}" if deployment.serves else ""
