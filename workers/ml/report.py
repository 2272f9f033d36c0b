"""The numbers of a job: report.json, what the registry keeps as evaluations of the version."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE_NAME = "report.json"


@dataclass(frozen=True)
class Metric:
    """One measured number, with the interval that 95 of 100 repetitions would fall in."""

    metric: str
    value: float
    unit: str = ""
    n: int | None = None
    low: float | None = None
    high: float | None = None
    split: str | None = None
    dataset: str | None = None
    device: str = "cpu"
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """One of several versions that a job made: its files lie in files/{name}."""

    name: str
    message: str
    metrics: list[Metric]
    summary: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What report.json says.

    A job that makes several versions lists them in `variants`, the recommended one first.
    """

    kind: str
    metrics: list[Metric]
    environment: dict[str, Any]
    message: str
    summary: dict[str, Any] = field(default_factory=dict)
    variants: list[Variant] = field(default_factory=list)

    def find(self, metric: str) -> Metric | None:
        return next((found for found in self.metrics if found.metric == metric), None)

    def write(self, out: Path) -> None:
        """Write report.json; it appears last and whole, so that it marks a finished job."""
        text = json.dumps(
            _finite({"schema": 1, **asdict(self)}), ensure_ascii=False, indent=2, allow_nan=False
        )
        partial = out / f"{FILE_NAME}.partial"
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(out / FILE_NAME)


def _finite(value: Any) -> Any:
    """JSON has no NaN; a number that could not be measured is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
