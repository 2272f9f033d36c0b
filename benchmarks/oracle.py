"""The same questions to Triton's own server and to ours: what is answered differently.

Triton is the server in pytriton's wheel, which computes through a bound function; the model is the
tiny network in both. Compared are the status of each answer, its keys and its types, and numbers,
names and shapes where both must agree. Known differences are listed with their reason.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np

from benchmarks.report import Figure, keep
from benchmarks.served.asking import BINARY, JSON, outputs_of, protocol_body
from benchmarks.served.contenders import Ours, Server, TritonServer, all_contenders
from benchmarks.served.graphs import Graph, all_graphs

_TENSOR = {"name": "x", "shape": [1, 16], "datatype": "FP32", "data": [0.5] * 16}

REASONS: Mapping[str, str] = {
    "broken JSON": "Triton calls a caller's broken JSON an error of its own (500)",
    "empty body": "Triton calls a caller's broken JSON an error of its own (500)",
    "unknown model ready": "Triton says 400 without a word; ours says 404, as elsewhere",
    "unknown version ready": "Triton says 400 without a word; ours says 404, as above",
    "wrong count": "Triton calls data of another length than its shape an error of its own (500)",
    "text for a number": "Triton calls a text among numbers an error of its own (500)",
    "negative shape": "Triton calls a negative size an error of its own (500)",
    "huge shape": "Triton's server ends at a shape of 16 * 10^9 numbers",
    "unknown statistics": "Triton says 400 to a name that it does not know; ours says 404",
    "config": "ours serves the one version that it names, not the latest it finds",
}
"""Differences that we mean, and why."""


def questions(model: str) -> dict[str, tuple[str, str, Any]]:
    """Give each question's name, method, path and body."""
    at = f"/v2/models/{model}"

    def infer(**changes: Any) -> dict[str, Any]:
        return {"inputs": [{**_TENSOR, **changes}]}

    return {
        "health live": ("GET", "/v2/health/live", None),
        "health ready": ("GET", "/v2/health/ready", None),
        "server metadata": ("GET", "/v2", None),
        "model ready": ("GET", f"{at}/ready", None),
        "version ready": ("GET", f"{at}/versions/1/ready", None),
        "unknown model ready": ("GET", "/v2/models/nobody/ready", None),
        "unknown version ready": ("GET", f"{at}/versions/99/ready", None),
        "metadata": ("GET", at, None),
        "version metadata": ("GET", f"{at}/versions/1", None),
        "unknown metadata": ("GET", "/v2/models/nobody", None),
        "unknown version metadata": ("GET", f"{at}/versions/99", None),
        "config": ("GET", f"{at}/config", None),
        "unknown config": ("GET", "/v2/models/nobody/config", None),
        "index": ("POST", "/v2/repository/index", b""),
        "index of the ready": ("POST", "/v2/repository/index", {"ready": True}),
        "statistics": ("GET", f"{at}/stats", None),
        "version statistics": ("GET", f"{at}/versions/1/stats", None),
        "all statistics": ("GET", "/v2/models/stats", None),
        "unknown statistics": ("GET", "/v2/models/nobody/stats", None),
        "infer": ("POST", f"{at}/infer", infer()),
        "infer a version": ("POST", f"{at}/versions/1/infer", infer()),
        "infer with an id": ("POST", f"{at}/infer", {"id": "seven", **infer()}),
        "infer nested": ("POST", f"{at}/infer", infer(data=[[0.5] * 16])),
        "infer one output": ("POST", f"{at}/infer", {**infer(), "outputs": [{"name": "y"}]}),
        "infer two rows": ("POST", f"{at}/infer", infer(shape=[2, 16], data=[0.5] * 32)),
        "unknown model": ("POST", "/v2/models/nobody/infer", infer()),
        "unknown version": ("POST", f"{at}/versions/99/infer", infer()),
        "wrong shape": ("POST", f"{at}/infer", infer(shape=[1, 15], data=[0.5] * 15)),
        "wrong rank": ("POST", f"{at}/infer", infer(shape=[16])),
        "wrong count": ("POST", f"{at}/infer", infer(data=[0.5] * 15)),
        "wrong datatype": ("POST", f"{at}/infer", infer(datatype="INT64", data=[1] * 16)),
        "unknown datatype": ("POST", f"{at}/infer", infer(datatype="FP99")),
        "wrong name": ("POST", f"{at}/infer", infer(name="z")),
        "no inputs": ("POST", f"{at}/infer", {"inputs": []}),
        "unknown output": ("POST", f"{at}/infer", {**infer(), "outputs": [{"name": "q"}]}),
        "text for a number": ("POST", f"{at}/infer", infer(data=["a"] * 16)),
        "broken JSON": ("POST", f"{at}/infer", b'{"inputs": ['),
        "empty body": ("POST", f"{at}/infer", b""),
        "unknown path": ("GET", "/v2/nothing", None),
        "wrong method": ("GET", f"{at}/infer", None),
        "shared memory": ("GET", "/v2/systemsharedmemory/status", None),
        # Last, for it may be the last that Triton hears.
        "negative shape": ("POST", f"{at}/infer", infer(shape=[-1, 16])),
        "huge shape": ("POST", f"{at}/infer", infer(shape=[10**9, 16])),
    }


def main() -> int:
    graphs = {"mlp": all_graphs()["mlp"]}
    with all_contenders(graphs, [TritonServer.name]) as (contenders, absent):
        if TritonServer.name in absent:
            print(f"Triton is not to be had here: {absent[TritonServer.name]}")
            return 1
        ours = next(one for one in contenders if isinstance(one, Ours))
        theirs = next(one for one in contenders if isinstance(one, TritonServer))
        found = compare(ours, theirs, graphs["mlp"])
    open_ones = {name: one for name, one in found.items() if one and name not in REASONS}
    meant = {name: REASONS[name] for name, one in found.items() if one and name in REASONS}
    keep(
        "oracle",
        [
            Figure(what="questions asked of Triton and of us", value=len(found), unit=""),
            Figure(what="answered differently, as we mean to", value=len(meant), unit=""),
            Figure(what="answered differently", value=len(open_ones), unit="", aim="< 1"),
        ],
        different=open_ones,
        meant=meant,
    )
    for name, one in found.items():
        if one:
            print(f"{name}{' (meant)' if name in REASONS else ''}: {'; '.join(one)}")
    return 0


def compare(ours: Ours, theirs: Server, graph: Graph) -> dict[str, list[str]]:
    """Ask both everything; give what differs, by the question."""
    found = {}
    with _client(ours) as us, _client(theirs) as them:
        for form in (JSON, BINARY):
            same = np.allclose(
                _numbers(us, ours.model(graph), graph, form),
                _numbers(them, theirs.model(graph), graph, form),
                atol=1e-5,
            )
            found[f"numbers, {form}"] = [] if same else ["other numbers"]
        mine, other = questions(ours.model(graph)), questions(theirs.model(graph))
        for name in mine:
            found[name] = _difference(_ask(them, *other[name]), _ask(us, *mine[name]))
    return found


def _client(one: Server) -> httpx.Client:
    headers = {"Authorization": f"Bearer {one.token}"} if one.token else {}
    return httpx.Client(base_url=f"http://127.0.0.1:{one.port}", headers=headers, timeout=30)


def _ask(client: httpx.Client, method: str, path: str, body: Any) -> httpx.Response:
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    headers = {"content-type": "application/json"} if content else {}
    try:
        return client.request(method, path, content=content, headers=headers)
    except httpx.TransportError as error:
        # Triton closes the connection on some of what is no request.
        return httpx.Response(0, content=str(error))


def _numbers(client: httpx.Client, model: str, graph: Graph, form: str) -> Any:
    body, json_bytes = protocol_body(graph.row, form)
    headers = {} if json_bytes is None else {"Inference-Header-Content-Length": str(json_bytes)}
    answer = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    said = answer.headers.get("inference-header-content-length")
    return outputs_of(answer.content, int(said) if said else None)


def _difference(theirs: httpx.Response, ours: httpx.Response) -> list[str]:
    """Say what we answer otherwise; what we say besides is allowed."""
    found = []
    if theirs.status_code != ours.status_code:
        said = f"{theirs.text[:120]!r}, ours {ours.text[:120]!r}"
        found.append(f"status {theirs.status_code}, ours {ours.status_code}: {said}")
    try:
        expected = theirs.json() if theirs.content else None
    except ValueError:
        expected = None
    if expected is None:
        return found
    try:
        said = ours.json()
    except ValueError:
        return [*found, f"no JSON: {ours.text[:100]}"]
    return [*found, *_missing("", expected, said)]


def _missing(place: str, expected: Any, said: Any) -> list[str]:
    """Say which keys and types of an answer ours lacks."""
    if isinstance(expected, dict):
        if not isinstance(said, dict):
            return [f"{place or 'the answer'} is no object"]
        return [
            one
            for key, value in expected.items()
            for one in (
                _missing(f"{place}.{key}".lstrip("."), value, said[key])
                if key in said
                else [f"{place}.{key} is missing".lstrip(".")]
            )
        ]
    if isinstance(expected, list):
        if not isinstance(said, list):
            return [f"{place or 'the answer'} is no list"]
        if expected and said:
            return _missing(f"{place}[0]", expected[0], said[0])
        return [f"{place} is empty"] if expected else []
    numbers = (int, float)
    same = type(expected) is type(said) or (
        isinstance(expected, numbers) and isinstance(said, numbers)
    )
    return [] if same else [f"{place} is {said!r}; Triton has {expected!r}"]


if __name__ == "__main__":
    sys.exit(main())
