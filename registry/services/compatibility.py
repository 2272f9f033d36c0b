"""Whether a version takes what another one takes, and gives what it gives: by their signatures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from registry.errors import Text
from registry.models import Version

Port = Mapping[str, Any]
_MAX_LABELS = 100_000
_MAX_DIGITS = 18


def why_incompatible(
    present: Version, candidate: Version, *, with_labels: bool = True
) -> Text | None:
    """Say what callers of `present` would miss at `candidate`; None where nothing is known to.

    Callers of a version that does not say what it takes (weights alone), or names no labels, rely
    on nothing that could be compared. Labels lie in a file, which not everybody may read.
    """
    problem = _of_signatures(present.signature, candidate.signature)
    if problem is not None or not with_labels:
        return problem
    return _of_labels(labels_of(present), labels_of(candidate))


def labels_of(version: Version) -> dict[int, str]:
    """Give the labels that a version's config.json names, by the numbers of its outputs."""
    labels = version.config.get("labels")
    if isinstance(labels, list):
        return {at: str(label) for at, label in enumerate(labels[:_MAX_LABELS])}
    named = version.config.get("id2label")
    if not isinstance(named, dict):
        return {}
    numbered = [key for key in named if key.isdecimal() and len(key) <= _MAX_DIGITS]
    return {int(key): str(named[key]) for key in numbered[:_MAX_LABELS]}


def _of_labels(before: Mapping[int, str], after: Mapping[int, str]) -> Text | None:
    if not before or before == after:
        return None
    if not after:
        return Text("it names no labels, where callers know {before}", before=len(before))
    if len(before) != len(after):
        return Text(
            "it answers with {after} labels, where callers know {before}",
            after=len(after),
            before=len(before),
        )
    # There are as many of both: where they differ, one of those before is not there, or other.
    at = next(at for at in sorted(before) if after.get(at) != before[at])
    if at not in after:
        return Text(
            "it has no label {number}, where callers know {before!r}",
            number=at,
            before=before[at][:80],
        )
    return Text(
        "its label {number} is {after!r}, where callers know {before!r}",
        number=at,
        after=after[at][:80],
        before=before[at][:80],
    )


def why_untold(present: Version, candidate: Version) -> Text | None:
    """Say that nobody knows whether `candidate` fits, where `present` says what callers rely on."""
    if not present.signature or candidate.signature:
        return None
    return Text("it does not say what it takes and gives, which callers rely on")


def _of_signatures(before: Mapping[str, Any], after: Mapping[str, Any]) -> Text | None:
    if not before or not after:
        return None
    if (name := _named_twice(after.get("inputs", []))) is not None:
        return Text("it names the input {name!r} twice", name=name)
    if (name := _named_twice(after.get("outputs", []))) is not None:
        return Text("it names the output {name!r} twice", name=name)
    return _of_inputs(_ports(before, "inputs"), _ports(after, "inputs")) or _of_outputs(
        _ports(before, "outputs"), _ports(after, "outputs")
    )


def _named_twice(ports: Sequence[Port]) -> str | None:
    """Give a name that two ports have; of signatures that nobody declared, or long ago."""
    counts = Counter(port["name"] for port in ports)
    return next((name for name, count in counts.items() if count > 1), None)


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
