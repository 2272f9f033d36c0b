"""How a model's answers differ from its parent's: what was lost, where, and rows to look at.

Rows of a dataset go into the report of the job alone, which is for those who see the dataset.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.ml.data import Labels, Rows
from workers.ml.report import Metric
from workers.ml.statistics import bootstrap_mean, probabilities, score_bounds, unit

_KEPT = {"lost": 12, "won": 12, "changed": 8, "same": 8}
_LONGEST_TEXT = 400
_LARGEST_SIDE = 64
_FAR_NEIGHBOURS = 12
_SAME_NEIGHBOURS = 8


def divergence(child: NDArray[np.float64], parent: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the Kullback-Leibler divergence of the child from the parent, row by row, in nats."""
    first, second = np.clip(parent, 1e-12, 1), np.clip(child, 1e-12, 1)
    return np.asarray(np.maximum(0, (first * np.log(first / second)).sum(1)))


@dataclass
class Differences:
    """What is gathered while a child and its parent answer the same labelled rows."""

    labels: Labels
    divergences: list[NDArray[np.float64]] = field(default_factory=list)
    kept: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(
        self,
        rows: Rows,
        numbers: NDArray[np.int64],
        actual: NDArray[np.int64],
        child: NDArray[Any],
        parent: NDArray[Any],
    ) -> None:
        """Take the scores of both for rows that stand at `numbers` in their split."""
        if not len(actual):
            return
        first, second = probabilities(child), probabilities(parent)
        self.divergences.append(divergence(first, second))
        said, before = first.argmax(1), second.argmax(1)
        for at, row in enumerate(numbers):
            outcome = _outcome(int(actual[at]), int(said[at]), int(before[at]))
            found = self.kept.setdefault(outcome, [])
            if len(found) < _KEPT[outcome]:
                found.append(
                    {
                        "row": int(row),
                        "outcome": outcome,
                        "input": _shown(rows, at),
                        "label": self.labels.names[int(actual[at])],
                        "parent": self._answer(second[at]),
                        "child": self._answer(first[at]),
                    }
                )

    def _answer(self, shares: NDArray[np.float64]) -> dict[str, Any]:
        best = int(shares.argmax())
        return {"answer": self.labels.names[best], "score": round(float(shares[best]), 4)}

    def sample(self) -> list[dict[str, Any]]:
        """Give rows on which the answers differ, then some on which they are the same."""
        return [row for outcome in _KEPT for row in self.kept.get(outcome, [])]

    def metric(self, like: Metric) -> Metric:
        values = np.concatenate(self.divergences) if self.divergences else np.zeros(1)
        low, high = bootstrap_mean(values)
        return _beside(
            like,
            metric="kl_to_parent",
            value=float(values.mean()),
            unit="nats",
            low=low,
            high=high,
            details={"interval": "bootstrap of the mean, 95 %", "largest": float(values.max())},
        )


def _outcome(actual: int, said: int, before: int) -> str:
    if said == before:
        return "same"
    if before == actual:
        return "lost"
    return "won" if said == actual else "changed"


def _shown(rows: Rows, at: int) -> dict[str, Any]:
    """Keep of a row what a page can show: texts, cut, and small grey pictures."""
    shown: dict[str, Any] = {}
    for name, values in rows.items():
        value = values[at]
        if isinstance(value, str):
            shown[name] = value[:_LONGEST_TEXT]
        elif isinstance(value, np.ndarray) and _is_picture(value):
            shown[name] = {
                "height": value.shape[0],
                "width": value.shape[1],
                "grey": base64.b64encode(np.ascontiguousarray(value).tobytes()).decode(),
            }
    return shown


def _is_picture(value: NDArray[Any]) -> bool:
    return value.dtype == np.uint8 and value.ndim == 2 and max(value.shape) <= _LARGEST_SIDE


def accuracy_change(child: Metric, agreement: Metric) -> Metric:
    """Bound the difference of both accuracies by the rows that only one of them has right."""
    lost, won, n = agreement.details["lost"], agreement.details["won"], agreement.n or 0
    least, most = score_bounds(lost, won, n)
    return _beside(
        child,
        metric="accuracy_change",
        value=(won - lost) / max(1, n),
        unit="share",
        low=-most,
        high=-least,
        details={"interval": "Tango's score interval of paired rows, 95 %"},
    )


def worst_class(
    actual: NDArray[np.int64],
    child: NDArray[np.int64],
    parent: NDArray[np.int64],
    labels: Labels,
    like: Metric,
) -> Metric | None:
    """Find the class that lost the largest share of its own rows."""
    worst: tuple[float, int] | None = None
    for number in np.unique(actual):
        own = actual == number
        change = float((child[own] == number).mean() - (parent[own] == number).mean())
        if worst is None or change < worst[0]:
            worst = (change, int(number))
    if worst is None:
        return None
    change, number = worst
    own = actual == number
    n = int(own.sum())
    lost = int(((parent == number) & (child != number) & own).sum())
    won = int(((parent != number) & (child == number) & own).sum())
    least, most = score_bounds(lost, won, n)
    return _beside(
        like,
        metric="worst_class_recall_change",
        value=change,
        unit="share",
        n=n,
        low=-most,
        high=-least,
        details={
            "class": labels.names[number],
            "recall": float((child[own] == number).mean()),
            "parent": {"value": float((parent[own] == number).mean())},
            "interval": "Tango's score interval of paired rows, 95 %, of this class alone",
        },
    )


def _beside(like: Metric, **changes: Any) -> Metric:
    given: dict[str, Any] = {
        "n": like.n,
        "split": like.split,
        "dataset": like.dataset,
        "device": like.device,
    }
    return Metric(**(given | changes))


# --- vectors --------------------------------------------------------------------------------------


def neighbours_sample(
    texts: Sequence[Any], child: NDArray[Any], parent: NDArray[Any]
) -> list[dict[str, Any]]:
    """Give texts whose nearest other text changed, farthest first, then some that kept theirs."""
    if len(texts) < 3 or not all(isinstance(text, str) for text in texts):
        return []
    first, second = unit(child), unit(parent)
    cosine = (first * second).sum(1)
    now, before = _nearest(first), _nearest(second)
    order = np.argsort(cosine, kind="stable")
    changed = [int(row) for row in order if now[row] != before[row]][:_FAR_NEIGHBOURS]
    same = [int(row) for row in order if now[row] == before[row]][:_SAME_NEIGHBOURS]
    return [
        {
            "row": row,
            "outcome": "changed" if now[row] != before[row] else "same",
            "input": {"text": texts[row][:_LONGEST_TEXT]},
            "cosine": round(float(cosine[row]), 4),
            "parent": {"answer": texts[int(before[row])][:_LONGEST_TEXT]},
            "child": {"answer": texts[int(now[row])][:_LONGEST_TEXT]},
        }
        for row in (*changed, *same)
    ]


def _nearest(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -np.inf)
    return np.asarray(alike.argmax(1))
