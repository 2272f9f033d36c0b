"""What changed from one version to another, as the API says it."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from registry.api.v1 import wire
from registry.errors import Text
from registry.models import Actor, Version
from registry.services import beside, diffs
from registry.services.diffs import Setting, TextDiff, WeightsDiff
from registry.services.weights import Weights

_MOST_LINES: Final = 1000


def compare_versions(actor: Actor, before: Version, after: Version) -> dict[str, Any]:
    """Say what changed, as far as `actor` may see it."""
    signatures = diffs.compare_signatures(actor, before, after)
    return {
        "before": wire.version_name(before),
        "after": wire.version_name(after),
        "files": _compare_files(before, after),
        "texts": [
            _text_body(text)
            for text in diffs.compare_texts(
                actor, before, after, diffs.compare_files(before, after)
            )
        ],
        "config": [_setting_body(one) for one in diffs.compare_config(actor, before, after)],
        "tags": _compare_tags(before, after),
        "signature": {
            "accepts": signatures.accepts,
            "why": _words(signatures.why),
            "before": before.signature,
            "after": after.signature,
        },
        "parameters_count": {
            "before": before.parameters_count,
            "after": after.parameters_count,
        },
        "size_bytes": {"before": before.size_bytes, "after": after.size_bytes},
        "metrics": diffs.compare_metrics(actor, before, after),
        "weights": weights_body(diffs.compare_weights(actor, before, after), tensors=False),
    }


def line_up(actor: Actor, versions: Sequence[Version], *, only_differences: bool) -> dict[str, Any]:
    """Set versions beside each other, as far as `actor` may see them."""
    found = beside.lay_out(actor, versions, only_differences=only_differences, most=_MOST_LINES)
    return {
        "versions": [wire.version_name(version) for version in versions],
        "sections": [
            {
                "name": section.part,
                "lines": [_line_body(section.part, line) for line in section.lines],
                "alike_count": section.alike,
                "cut_count": section.cut,
            }
            for section in found
        ],
    }


def _line_body(part: str, line: beside.Line) -> dict[str, Any]:
    measured = part == "metrics"
    return {
        "name": line.name,
        "values": line.values,
        "differs": line.differs,
        "best": line.best if measured else None,
        "unit": line.unit if measured else None,
        "split": line.split if measured else None,
        "dataset": line.dataset,
    }


def _words(why: Text | None) -> str | None:
    return None if why is None else why.detail


def _split(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], ...]:
    """Give the keys that came, went, changed and stayed."""
    shared = before.keys() & after.keys()
    changed = {key for key in shared if before[key] != after[key]}
    return (
        sorted(after.keys() - shared),
        sorted(before.keys() - shared),
        sorted(changed),
        sorted(shared - changed),
    )


def _compare_files(before: Version, after: Version) -> dict[str, Any]:
    files = wire.files_of({before.revision_id, after.revision_id})
    old = {file["path"]: file for file in files.get(before.revision_id, [])}
    new = {file["path"]: file for file in files.get(after.revision_id, [])}
    came, went, changed, stayed = _split(old, new)
    return {
        "added": [new[path] for path in came],
        "removed": [old[path] for path in went],
        "changed": [{"path": path, "before": old[path], "after": new[path]} for path in changed],
        "unchanged_count": len(stayed),
    }


def _compare_tags(before: Version, after: Version) -> dict[str, Any]:
    old, new = diffs.tags_of(before), diffs.tags_of(after)
    came, went, changed, _ = _split(old, new)
    return {
        "added": {key: new[key] for key in came},
        "removed": {key: old[key] for key in went},
        "changed": {key: {"before": old[key], "after": new[key]} for key in changed},
    }


def _text_body(text: TextDiff) -> dict[str, Any]:
    return {
        "path": text.path,
        "lines": [f"{line.sign}{line.text}" for line in text.lines],
        "truncated": text.is_cut,
        "why": _words(text.why),
    }


def _setting_body(setting: Setting) -> dict[str, Any]:
    return {"name": setting.name, "before": setting.before, "after": setting.after}


def _weight_files(weights: Weights | None) -> dict[str, Any]:
    if weights is None:
        return {"compared": None, "left_out": None}
    return {
        "compared": {"before": list(weights.before.paths), "after": list(weights.after.paths)},
        "left_out": {"before": list(weights.beside_before), "after": list(weights.beside_after)},
    }


def weights_body(found: WeightsDiff, *, tensors: bool) -> dict[str, Any]:
    """Say what is known of the weights; all of it, or without a line for each tensor."""
    summary = dict(found.summary or {})
    listed = summary.pop("tensors", [])
    return {
        "state": found.state,
        "why": _words(found.why),
        "job": found.job.pk if found.job else None,
        "size_bytes": found.weights.size_bytes if found.weights else None,
        **_weight_files(found.weights),
        "summary": summary or None,
        **({"tensors": listed} if tensors else {}),
    }
