"""What a report refuses or warns of: a model that only guesses, a training stopped too soon."""

from collections.abc import Mapping, Sequence
from typing import Any

from registry.errors import Invalid, Text, pack
from workers.ml.report import Metric

_STILL_FALLING = 0.005
_FEWEST_EPOCHS = 2
# How the names end under which steps note what they trained beside the model itself.
_CONTROL = "control"


def refuse_guessing(accuracy: Metric) -> None:
    """Refuse a classifier that does no better than always naming the most frequent class.

    Raises:
        Invalid: it does not.

    """
    majority = float(accuracy.details["majority_class"])
    if accuracy.n and majority < 1 and accuracy.value <= majority:
        before = accuracy.details.get("parent", {}).get("value")
        raise Invalid(
            "The result is right on {accuracy} of {n} rows; always naming the most frequent class "
            "is right on {majority}. {parent}",
            code="no_better_than_guessing",
            accuracy=_percent(accuracy.value),
            n=accuracy.n,
            majority=_percent(majority),
            parent=_of_parent(before, majority),
        )


def _of_parent(before: float | None, majority: float) -> Text:
    if before is None:
        return Text("Train it longer, or on other data.")
    if before <= majority:
        return Text(
            "The version it was made from is right on {before}, no better than guessing either: "
            "choose another, or name no dataset.",
            before=_percent(before),
        )
    return Text(
        "The version it was made from is right on {before}: choose gentler steps, or train after "
        "them.",
        before=_percent(before),
    )


def _percent(share: float) -> str:
    return f"{share * 100:.1f}%"


def still_falling(history: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the loss on held-out rows was lowest at the end, and falling noticeably."""
    losses = [entry.get("loss") for entry in history]
    known = [float(loss) for loss in losses if isinstance(loss, int | float)]
    if len(known) < _FEWEST_EPOCHS or len(known) < len(losses):
        return False
    *earlier, last = known
    return last < min(earlier) * (1 - _STILL_FALLING)


def warnings_of(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List what to say of the trainings that steps noted, wherever in their notes those stand."""
    return [
        warning("still_falling", _stopped(number, name))
        for number, notes in enumerate(steps, 1)
        for name, history in _histories(notes, "")
        if still_falling(history)
    ]


def _stopped(number: int, name: str) -> Text:
    """Say that a training of a step might have gone on: its own, or one that it is held against."""
    if name.endswith(_CONTROL):
        return Text(
            "What step {number} is compared with stopped training while its loss was still "
            "falling: with more epochs it may come out better.",
            number=number,
        )
    return Text(
        "Step {number} stopped training while the loss was still falling: more epochs may give a "
        "better result.",
        number=number,
    )


def _histories(notes: Mapping[str, Any], name: str) -> list[tuple[str, list[dict[str, Any]]]]:
    found = []
    for key, value in notes.items():
        if key == "validation" and isinstance(value, list):
            found.append((name, value))
        elif isinstance(value, dict):
            found += _histories(value, key)
    return found


def warning(code: str, said: Text) -> dict[str, Any]:
    """Write a warning as reports keep it: in English, and so that pages can translate it."""
    return {"code": code, "detail": said.detail, "said": pack(said)}
