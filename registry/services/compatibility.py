"""Whether a version takes what another one takes, and gives what it gives: by their signatures."""

from collections.abc import Mapping, Sequence
from typing import Any

from registry.errors import Text
from registry.models import Version

Port = Mapping[str, Any]
_MAX_LABELS = 100_000


def why_incompatible(present: Version, candidate: Version) -> Text | None:
    """Say what callers of `present` would miss at `candidate`; None where nothing is known to.

    Versions that do not say what they take (weights alone) cannot be compared, but for the labels
    of their answers, where both name some.
    """
    before, after = present.signature, candidate.signature
    problem = None
    if before and after:
        problem = _of_inputs(_ports(before, "inputs"), _ports(after, "inputs")) or _of_outputs(
            _ports(before, "outputs"), _ports(after, "outputs")
        )
    return problem or _of_labels(labels_of(present), labels_of(candidate))


def labels_of(version: Version) -> list[str]:
    """Give the labels that a version's config.json names, in the order of its outputs."""
    labels = version.config.get("labels")
    if isinstance(labels, list):
        return [str(label) for label in labels[:_MAX_LABELS]]
    named = version.config.get("id2label")
    if not isinstance(named, dict):
        return []
    numbers = sorted((key for key in named if str(key).isdecimal()), key=lambda key: int(key[:9]))
    return [str(named[key]) for key in numbers[:_MAX_LABELS]]


def _of_labels(before: Sequence[str], after: Sequence[str]) -> Text | None:
    if not before or not after or before == after:
        return None
    if len(before) != len(after):
        return Text(
            "it answers with {after} labels, where callers know {before}",
            after=len(after),
            before=len(before),
        )
    at = next(at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
    return Text(
        "its label {number} is {after!r}, where callers know {before!r}",
        number=at,
        after=after[at][:80],
        before=before[at][:80],
    )


def _ports(signature: Mapping[str, Any], side: str) -> dict[str, Port]:
    return {port["name"]: port for port in signature.get(side, [])}


def _of_inputs(before: Mapping[str, Port], after: Mapping[str, Port]) -> Text | None:
    for name, port in after.items():
        if name not in before:
            return Text("it needs the input {name!r}, which callers do not send", name=name)
        sent = before[name]
        if port.get("dtype") != sent.get("dtype") or not _takes(
            port.get("shape"), sent.get("shape")
        ):
            return _changed_input(name, sent, port)
    missing = next((name for name in before if name not in after), None)
    if missing is not None:
        return Text("it does not know the input {name!r}, which callers send", name=missing)
    return None


def _of_outputs(before: Mapping[str, Port], after: Mapping[str, Port]) -> Text | None:
    for name, port in before.items():
        if name not in after:
            return Text("it does not give the output {name!r}, which callers read", name=name)
        given = after[name]
        if given.get("dtype") != port.get("dtype") or not _takes(
            port.get("shape"), given.get("shape")
        ):
            return _changed_output(name, port, given)
    return None


def _takes(wider: Sequence[object] | None, narrower: Sequence[object] | None) -> bool:
    """Say whether every tensor of the shape `narrower` has the shape `wider`."""
    if wider is None or narrower is None:
        return True
    return len(wider) == len(narrower) and all(
        not _is_fixed(wide) or wide == narrow for wide, narrow in zip(wider, narrower, strict=True)
    )


def _is_fixed(size: object) -> bool:
    """Say whether a dimension has one size; names and -1 stand for any."""
    return isinstance(size, int) and size >= 0


def _changed_input(name: str, before: Port, after: Port) -> Text:
    return Text(
        "its input {name!r} is {after}, where callers send {before}",
        name=name,
        after=_described(after),
        before=_described(before),
    )


def _changed_output(name: str, before: Port, after: Port) -> Text:
    return Text(
        "its output {name!r} is {after}, where callers read {before}",
        name=name,
        after=_described(after),
        before=_described(before),
    )


def _described(port: Port) -> str:
    shape = ", ".join("?" if not _is_fixed(size) else str(size) for size in port.get("shape") or ())
    return f"{port.get('dtype')}[{shape}]"
