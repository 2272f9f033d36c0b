"""Requests per second and CPU per request of serving, beside MLServer, LitServe, Triton and none.

The same files, requests and callers for all, in short turns: who does not have the turn stands
still. `SERVING_ROWS=mlp` (a model, `swap` or `mixed`; several with commas) measures a part anew and
keeps the rest. What cannot be installed or started is named with its reason.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.report import RESULTS, Figure, keep, write_page, write_part
from benchmarks.served.asking import BINARY, FORMS
from benchmarks.served.contenders import (
    BARE,
    OURS,
    Bare,
    Contender,
    LitServe,
    MlServer,
    MlServerAlone,
    Ours,
    Server,
    TritonServer,
    all_contenders,
    ask,
    helper,
)
from benchmarks.served.graphs import Graph, all_graphs
from benchmarks.served.proofs import mix_sizes, swap_alias

PEERS = (MlServer.name, MlServerAlone.name, LitServe.name, TritonServer.name)
ROUNDS = int(os.environ.get("SERVING_ROUNDS", "3"))
SECONDS = 0.8
CLIENTS = {"large": (1, 4)}
USUAL_CLIENTS = (1, 8, 32)
MODEL_FORMS = {"large": (BINARY,)}
SWAP, MIXED = "swap", "mixed"
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, how it is called, and by how many at once."""

    model: str
    form: str
    clients: int

    @property
    def key(self) -> str:
        return f"{self.model} {self.form} {self.clients}"


def all_rows(models: Sequence[str]) -> Iterator[Row]:
    for model in models:
        for form in MODEL_FORMS.get(model, FORMS):
            for clients in CLIENTS.get(model, USUAL_CLIENTS):
                yield Row(model, form, clients)


def main() -> None:
    graphs = all_graphs()
    wanted = set(filter(None, os.environ.get("SERVING_ROWS", "").split(",")))
    if unknown := wanted - {*graphs, SWAP, MIXED}:
        raise SystemExit(f"there is no row {', '.join(sorted(unknown))}")
    kept = _kept() if wanted else {"rows": {}, "absent": {}, "proofs": {}}
    with (
        all_contenders(graphs, PEERS) as (contenders, absent),
        helper("benchmarks.served.caller") as caller,
    ):
        kept["absent"] = absent
        (ours,) = (one for one in contenders if isinstance(one, Ours))
        for name, proof in ((SWAP, swap_alias), (MIXED, mix_sizes)):
            if not wanted or name in wanted:
                kept["proofs"][name] = proof(ours)
                print(f"  {name}: {kept['proofs'][name]}", file=sys.stderr, flush=True)
                _keep(graphs, kept)
        for row in all_rows([name for name in graphs if not wanted or name in wanted]):
            kept["rows"][row.key] = _measure(row, graphs[row.model], contenders, caller)
            _tell(row, kept["rows"][row.key])
            _keep(graphs, kept)
    print("\n".join(_table(graphs, kept)))


def _measure(
    row: Row,
    graph: Graph,
    contenders: Sequence[Contender],
    caller: "subprocess.Popen[bytes]",
) -> dict[str, Any]:
    """Give everyone their turns; medians of them."""
    turns: dict[str, list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for one in contenders:
            if isinstance(one, Bare):
                turns.setdefault(one.name, []).append(one.run(graph, SECONDS))
            elif isinstance(one, Server) and row.form in one.forms:
                one.resume()
                said = ask(caller, one.plan(graph, row.form, row.clients, SECONDS))
                one.pause()
                turns.setdefault(one.name, []).append(said)
    expected = turns[BARE][0]["answer"]
    return {name: _medians(found, expected) for name, found in turns.items()}


def _medians(turns: Sequence[Mapping[str, Any]], expected: Sequence[float]) -> dict[str, Any]:
    failed = [one["error"] for one in turns if "error" in one]
    if failed:
        return {"error": failed[0]}
    answer = turns[0]["answer"]
    if isinstance(answer, str):
        return {"error": answer[:300]}
    if len(answer) != len(expected) or np.abs(np.subtract(answer, expected)).max() > _TOLERANCE:
        return {"error": "It computed something else."}
    middle = {
        what: statistics.median(one[what] for one in turns) for what in ("rate", "cpu_us", "p50_ms")
    }
    return {**middle, "bad": sum(one["bad"] for one in turns)}


def _kept() -> dict[str, Any]:
    """Give what former runs measured."""
    file = RESULTS / "serving.json"
    if not file.is_file():
        return {"rows": {}, "absent": {}, "proofs": {}}
    return dict(json.loads(file.read_text(encoding="utf-8"))["details"])


def _keep(graphs: Mapping[str, Graph], kept: Mapping[str, Any]) -> None:
    keep("serving", _figures(graphs, kept), **kept)
    write_part("serving", "\n".join([*_table(graphs, kept), ""]))
    write_page()


def _tell(row: Row, found: Mapping[str, Mapping[str, Any]]) -> None:
    said = ", ".join(
        f"{name} {one['rate']:,.0f}/s {one['cpu_us']:,.0f} µs"
        if "rate" in one
        else f"{name}: {one}"
        for name, one in found.items()
    )
    print(f"  {row.key}: {said}", file=sys.stderr, flush=True)


def _found(
    graphs: Mapping[str, Graph], kept: Mapping[str, Any]
) -> Iterator[tuple[Row, str, dict[str, Any]]]:
    for row in all_rows([*graphs]):
        if row.key in kept["rows"]:
            title = f"{graphs[row.model].title}, {row.form}, {_people(row.clients)}"
            yield row, title, kept["rows"][row.key]


def _people(clients: int) -> str:
    return "1 client" if clients == 1 else f"{clients} clients"


def _figures(graphs: Mapping[str, Graph], kept: Mapping[str, Any]) -> Iterator[Figure]:
    for row, title, found in _found(graphs, kept):
        ours = found.get(OURS, {})
        if "rate" not in ours:
            continue
        aim = ">= 700" if row.model == "large" else ""
        yield Figure(what=title, value=ours["rate"], unit="requests/s", aim=aim)
        for peer in PEERS:
            theirs = found.get(peer, {})
            if "rate" in theirs:
                yield from _beside(row, title, peer, ours, theirs)
        if row.model == "minilm":
            aim = "< 1.1" if row.clients == 8 else ""
            times = ours["cpu_us"] / found[BARE]["cpu_us"]
            yield Figure(what=f"{title}: CPU of the bare loop's", value=times, unit="x", aim=aim)
        yield Figure(what=f"{title}: refused", value=ours["bad"], unit="requests", aim="< 1")
    yield from _proven(kept["proofs"])


def _beside(
    row: Row, title: str, peer: str, ours: Mapping[str, float], theirs: Mapping[str, float]
) -> Iterator[Figure]:
    least = 4 if (row.model, peer) == ("mlp", MlServer.name) else 1
    yield Figure(
        what=f"{title}: requests/s of {peer}'s",
        value=ours["rate"] / theirs["rate"],
        unit="x",
        aim=f">= {least}",
    )
    yield Figure(
        what=f"{title}: CPU of {peer}'s",
        value=ours["cpu_us"] / theirs["cpu_us"],
        unit="x",
        aim="< 1",
    )


def _proven(proofs: Mapping[str, Mapping[str, Any]]) -> Iterator[Figure]:
    if (swap := proofs.get(SWAP)) is not None:
        what = f"alias moved {swap['moves']} times under load"
        yield Figure(what=f"{what}: requests", value=swap["requests"], unit="")
        yield Figure(what=f"{what}: errors", value=swap["errors"], unit="", aim="< 1")
        yield Figure(what=f"{what}: wrong answers", value=swap["wrong"], unit="", aim="< 1")
        yield Figure(
            what=f"{what}: moves seen",
            value=swap["moves_seen"],
            unit="",
            aim=f">= {swap['moves']}",
        )
    if (mixed := proofs.get(MIXED)) is not None:
        what = f"{mixed['requests']} requests of mixed sizes at once"
        yield Figure(what=f"{what}: errors", value=mixed["errors"], unit="", aim="< 1")
        yield Figure(what=f"{what}: mixed up", value=mixed["mixed_up"], unit="", aim="< 1")
        yield Figure(what=f"{what}: largest batch", value=mixed["largest_batch"], unit="rows")


def _table(graphs: Mapping[str, Graph], kept: Mapping[str, Any]) -> list[str]:
    names = (OURS, *PEERS, BARE)
    lines = [
        f"| requests/s, CPU µs | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for _, title, found in _found(graphs, kept):
        cells = [_cell(found.get(name)) for name in names]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", *(f"{name} is left out: {why}" for name, why in kept["absent"].items())]
    return lines


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    if "rate" not in found:
        return "failed"
    return f"{found['rate']:,.0f}, {found['cpu_us']:,.0f}"


if __name__ == "__main__":
    main()
