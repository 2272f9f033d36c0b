"""What the fields of a query keep: conditions over repositories, their tags and measurements."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from django.db.models import Exists, OuterRef, Q, QuerySet

from registry.lexicon import concepts_named
from registry.models import Evaluation, Tag, Version
from registry.models.catalog import RepositoryQuerySet
from registry.pieces import holding
from registry.query_language import Bounds, Narrowing

_MOMENTS = {"created": "created_at", "updated": "updated_at"}
_COLUMNS = {"params": "parameters_count", "size": "size_bytes", "downloads": "downloads_count"}
# Numbers that belong to the machine they were measured on.
_OF_DEVICE = ("latency", "throughput", "peak_memory")
_LARGEST = 2**63 - 1
_MEASURED = frozenset({"metric", "device"})


def narrow(matches: RepositoryQuerySet, narrowings: Sequence[Narrowing]) -> RepositoryQuerySet:
    """Keep what every field asks for, but for those that measurements answer."""
    for one in narrowings:
        if one.field not in _MEASURED:
            kept = _condition(one)
            matches = matches.exclude(kept) if one.negated else matches.filter(kept)
    return matches


def narrow_measured(
    matches: RepositoryQuerySet, narrowings: Sequence[Narrowing]
) -> RepositoryQuerySet:
    """Keep what was measured as it is asked for; gives `matches` itself where nothing is.

    Measurements and the device hold of one version together: a model does not match with the
    accuracy of one version and the latency of another.
    """
    measured = [one for one in narrowings if one.field in _MEASURED]
    if wanted := [one for one in measured if not one.negated]:
        matches = matches.filter(Exists(_versions(wanted)))
    for one in measured:
        if one.negated:
            matches = matches.exclude(Exists(_versions([one])))
    return matches


def measured_rarely(narrowings: Sequence[Narrowing], *, most: int) -> list[int] | None:
    """Give the versions of which one of the wanted measurements is true; None for more than `most`.

    All that is asked for is true of these or of none.
    """
    for one in narrowings:
        if one.field == "metric" and not one.negated:
            held = Evaluation.objects.filter(_within("value", one.bounds), metric=one.detail)
            found = list(held.values_list("version_id", flat=True)[: most + 1])
            if len(found) <= most:
                return found
    return None


def _condition(one: Narrowing) -> Q:
    text, lowered = one.text, one.text.lower()
    if one.field in _COLUMNS:
        return _within(_COLUMNS[one.field], one.bounds)
    if one.field in _MOMENTS:
        return _within(_MOMENTS[one.field], one.bounds, _moment)
    if one.field == "name":
        # The text that is searched holds the name.
        held = holding(lowered)
        near = held.rows if held else Q(search_text__contains=lowered)
        return near & Q(name__icontains=text)
    if one.field == "tag":
        return Q(pk__in=_tagged(one).values("repository_id"))
    return {
        "task": Q(task__in=dict.fromkeys((text, lowered, *concepts_named(lowered)))),
        "library": Q(library__in=(text, lowered)),
        "license": Q(license__in=(text, lowered)),
        "format": Q(formats__contains=[lowered]),
        "label": Q(labels__contains=[text]),
        "owner": Q(namespace__slug__iexact=text),
        "base": Q(base_model__iexact=text),
    }[one.field]


def _tagged(one: Narrowing) -> QuerySet[Tag]:
    tags = Tag.objects.filter(version=None, key=one.detail)
    return tags.filter(value=one.text) if one.text else tags


def _within(
    column: str, bounds: Bounds | None, convert: Callable[[float], float | datetime] | None = None
) -> Q:
    kept = Q()
    for value, operator, included in (
        (bounds.low if bounds else None, "gt", bounds.with_low if bounds else False),
        (bounds.high if bounds else None, "lt", bounds.with_high if bounds else False),
    ):
        if value is not None:
            plain = convert(value) if convert else min(value, _LARGEST)
            kept &= Q(**{f"{column}__{operator}{'e' if included else ''}": plain})
    return kept


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _versions(wanted: Sequence[Narrowing]) -> QuerySet[Version]:
    """Keep the usable versions of one repository that have all that is asked for."""
    versions = Version.objects.usable().filter(repository=OuterRef("pk"))
    devices = [one.text for one in wanted if one.field == "device"]
    metrics = [one for one in wanted if one.field == "metric"]
    for one in metrics:
        on_device = devices if one.detail.startswith(_OF_DEVICE) else []
        versions = versions.filter(
            Exists(_evaluations(on_device).filter(_within("value", one.bounds), metric=one.detail))
        )
    if devices and not any(one.detail.startswith(_OF_DEVICE) for one in metrics):
        versions = versions.filter(Exists(_evaluations(devices)))
    return versions


def _evaluations(devices: Sequence[str]) -> QuerySet[Evaluation]:
    rows = Evaluation.objects.filter(version=OuterRef("pk"))
    for device in devices:
        rows = rows.filter(device__icontains=device)
    return rows
