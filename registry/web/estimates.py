"""An estimate as lines of a page: a figure in words, and its grounds in the reader's language."""

from collections.abc import Callable
from dataclasses import dataclass

from django.utils.translation import gettext as _

from registry.services.estimates import Estimate, Figure
from registry.web import wording
from registry.web.refusals import words_of


@dataclass(frozen=True)
class Line:
    """One figure on the page."""

    name: str
    said: str
    grounds: str
    verdict: str = ""
    tone: str = ""


def lines_of(estimate: Estimate) -> list[Line]:
    """Say an estimate figure by figure."""
    waiting = estimate.waiting
    memory, limit = estimate.memory_bytes, estimate.memory_limit_bytes
    return [
        _line(_("Wall time"), estimate.seconds, wording.duration_text),
        Line(
            _("In the queue before it"),
            str(waiting.before),
            words_of(waiting.grounds),
            *((_("no worker"), "warn") if not waiting.workers else ()),
        ),
        _line(_("It reads"), estimate.read_bytes, wording.size_text),
        _line(
            _("The result"),
            estimate.result_bytes,
            wording.size_text,
            fits=estimate.fits_quota,
            more=words_of(estimate.quota_grounds),
        ),
        _line(
            _("Memory"),
            memory,
            wording.size_text,
            fits=estimate.fits_memory if limit else True,
            more=""
            if limit is None
            else _("One job may hold %(size)s here.") % {"size": wording.size_text(limit)},
        ),
    ]


def _line(
    name: str,
    figure: Figure,
    say: Callable[[float | None], str],
    *,
    fits: bool | None = True,
    more: str = "",
) -> Line:
    grounds = words_of(figure.grounds)
    if more and more != grounds:
        grounds = f"{grounds} {more}"
    verdict = ("", "")
    if fits is False:
        verdict = (_("does not fit"), "bad")
    elif fits is None and figure.high is not None:
        # Of what is only known to be "at least" so much, it would frighten for nothing.
        verdict = (_("may not fit"), "warn")
    return Line(name, _between(figure, say), grounds, *verdict)


def _between(figure: Figure, say: Callable[[float | None], str]) -> str:
    low, high = figure.low, figure.high
    if low is None and high is None:
        return _("not known")
    if low is None:
        return _("up to %(most)s") % {"most": say(high)}
    if high is None:
        return _("at least %(least)s") % {"least": say(low)}
    if say(low) == say(high):
        return say(low)
    return _("%(least)s to %(most)s") % {"least": say(low), "most": say(high)}
