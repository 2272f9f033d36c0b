"""Write the README.md of a version that a job made: where it comes from and what it measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from registry.formats.card import Card, parse_card
from workers.ml.report import Metric, Report

FILE_NAME = "README.md"
_MAX_BYTES = 1024 * 1024


def read_card(folder: Path) -> Card:
    """Read the card of an input version; an empty one where it has none."""
    file = folder / FILE_NAME
    if not file.is_file():
        return parse_card("")
    with file.open("rb") as card:
        return parse_card(card.read(_MAX_BYTES).decode(errors="replace"))


def write_card(
    folder: Path, *, head: Mapping[str, Any], title: str, paragraphs: Sequence[str], report: Report
) -> None:
    """Write the card: a YAML head of what is known, the text, the numbers."""
    known = {name: value for name, value in head.items() if value not in ("", None, [], ())}
    parts = [f"# {title}", *paragraphs]
    if report.metrics:
        parts += ["## Measured", _table(report.metrics), _machine(report.environment)]
    text = "---\n" + yaml.safe_dump(known, sort_keys=False, allow_unicode=True) + "---\n\n"
    (folder / FILE_NAME).write_text(text + "\n\n".join(parts) + "\n", encoding="utf-8")


def _table(metrics: Sequence[Metric]) -> str:
    lines = ["| | value | 95 % interval | n | parent |", "|---|---|---|---|---|"]
    for metric in metrics:
        interval = ""
        if metric.low is not None and metric.high is not None:
            interval = f"{_number(metric.low)} to {_number(metric.high)}"
        parent = metric.details.get("parent")
        before = _number(parent["value"]) if isinstance(parent, dict) else ""
        name = f"{metric.metric} ({metric.split})" if metric.split else metric.metric
        unit = f" {metric.unit}" if metric.unit not in {"", "share", "count", "cosine"} else ""
        lines.append(
            f"| {name} | {_number(metric.value)}{unit} | {interval} | {metric.n or ''} | {before} |"
        )
    return "\n".join(lines)


def _number(value: float) -> str:
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) >= 0.001 else f"{value:.2g}"


def _machine(environment: Mapping[str, Any]) -> str:
    where = environment.get("gpu") or environment.get("cpu") or environment.get("device")
    flags = ", ".join(environment.get("cpu_flags", [])) or "no vector flags known"
    return (
        f"Measured on {where} with {environment.get('threads')} thread(s); "
        f"CPU instructions: {flags}; torch {environment.get('torch')}, "
        f"ONNX Runtime {environment.get('onnxruntime')}."
    )
