"""Endpoints and what is deployed at them: made, split, promoted, rolled back, taken down.

The model's row is locked before its endpoints change, so that two people never split the same
traffic at once.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Count
from django.utils import timezone

from registry.errors import AlreadyExists, Conflict, Invalid, NotFound
from registry.models import (
    Actor,
    Alias,
    AuditAction,
    Deployment,
    DeploymentRole,
    Endpoint,
    Kind,
    Repository,
    Version,
)
from registry.models.serving import FULL_WEIGHT
from registry.permissions import require
from registry.services.audit import record_event
from registry.services.catalog import (
    check_etag,
    check_name,
    find_alias,
    find_repository,
    find_version,
    lock_repository,
)
from registry.services.quotas import require_deployment_place
from registry.services.succession import answering_of, require_successor, require_taking
from registry.services.texts import check_text, invalid_field
from registry.services.versions import require_runnable
from registry.serving_options import ServingOptions

_MAX_REASON = 2000
_FIRST_CANARY = 1
_LISTED = 200


# --- Reading -------------------------------------------------------------------------------------


def find_endpoint(actor: Actor, namespace: str, name: str) -> Endpoint:
    """Find an endpoint of a model that the actor may see.

    Raises:
        NotFound: there is none of that name.

    """
    visible = Endpoint.objects.visible_to(actor).with_names()
    found = visible.named(namespace, name).first() if "\0" not in namespace + name else None
    if found is None:
        raise NotFound(
            "There is no endpoint {namespace}/{name} that you may see.",
            code="endpoint_not_found",
            namespace=namespace,
            name=name,
        )
    return found


def list_endpoints(actor: Actor, **where: Any) -> list[Endpoint]:
    """List the endpoints in a namespace or of a model, with how much is deployed at each."""
    rows = Endpoint.objects.visible_to(actor).with_names().filter(**where)
    return list(rows.annotate(deployments_count=Count("deployments")).order_by("pk")[:_LISTED])


def find_deployment(endpoint: Endpoint, number: int) -> Deployment:
    """Find what is deployed at an endpoint, by the number of the deployment.

    Raises:
        NotFound: nothing of that number is.

    """
    for one in deployments_of(endpoint):
        if one.pk == number:
            return one
    raise NotFound(
        "{endpoint} has no deployment {number}.",
        code="deployment_not_found",
        endpoint=endpoint,
        number=number,
    )


def deployments_of(endpoint: Endpoint) -> list[Deployment]:
    """List what is deployed at an endpoint with the version that each serves now, oldest first."""
    return deployments_of_each([endpoint])[endpoint.pk]


def deployments_of_each(endpoints: Iterable[Endpoint]) -> Mapping[int, list[Deployment]]:
    """List what is deployed at each of some endpoints, by their keys, in two queries for all."""
    places = {endpoint.pk: endpoint for endpoint in endpoints}
    found: dict[int, list[Deployment]] = {key: [] for key in places}
    rows = list(
        Deployment.objects.filter(endpoint__in=places)
        .select_related("version", "created_by")
        .order_by("pk")
    )
    following = Alias.objects.filter(
        repository__in={places[row.endpoint_id].repository_id for row in rows if row.alias},
        name__in={row.alias for row in rows if row.alias},
    )
    aliases = {
        (alias.repository_id, alias.name): alias.version
        for alias in following.select_related("version")
    }
    for row in rows:
        row.endpoint = endpoint = places[row.endpoint_id]
        row.serves = row.version or aliases.get((endpoint.repository_id, row.alias))
        if row.serves is not None:
            row.serves.repository = endpoint.repository
        found[endpoint.pk].append(row)
    return found


# --- Endpoints -----------------------------------------------------------------------------------


def create_endpoint(
    *, actor: Actor, repository: Repository, name: object = None, sticky: bool = False
) -> Endpoint:
    """Make an address for a model, under the model's own name unless another is given.

    Raises:
        Denied: the actor does not maintain the model; or, for another name, its namespace.
        AlreadyExists: the name is taken.

    """
    require(actor, "maintain", repository)
    with transaction.atomic():
        return _make_endpoint(actor, lock_repository(repository), name, sticky=sticky)


def _make_endpoint(
    actor: Actor, repository: Repository, name: object, *, sticky: bool = False
) -> Endpoint:
    _require_model(repository)
    plain = repository.name if name is None or name == "" else check_name(name)
    if plain.lower() != repository.name.lower():
        # The name may be that of another model, which a guest of this one may not know.
        require(actor, "maintain", repository.namespace)
    try:
        with transaction.atomic():
            endpoint = Endpoint.objects.create(
                namespace=repository.namespace,
                name=plain,
                repository=repository,
                sticky=sticky,
                created_by_id=actor.user_id,
            )
    except IntegrityError as error:
        raise AlreadyExists(
            "The endpoint {namespace}/{name} exists already; choose another name.",
            code="endpoint_already_exists",
            namespace=repository.namespace,
            name=plain,
        ) from error
    _record(actor, AuditAction.ENDPOINT_CREATE, endpoint, sticky=sticky)
    return endpoint


def _require_model(repository: Repository) -> None:
    if repository.kind != Kind.MODEL:
        raise Invalid("{repository} is a dataset; only models are served.", repository=repository)


def describe_endpoint(
    *, actor: Actor, endpoint: Endpoint, sticky: bool, expected_etag: str | None = None
) -> Endpoint:
    """Say whether callers keep to the deployment that answered them first."""
    require(actor, "maintain", endpoint.repository)
    with transaction.atomic():
        row = _lock(endpoint, expected_etag)
        row.sticky = sticky
        touch(row, "sticky")
        _record(actor, AuditAction.ENDPOINT_DESCRIBE, row, sticky=sticky)
    return row


def delete_endpoint(*, actor: Actor, endpoint: Endpoint, expected_etag: str | None = None) -> None:
    """Take an address away, and what is deployed there."""
    require(actor, "maintain", endpoint.repository)
    with transaction.atomic():
        row = _lock(endpoint, expected_etag)
        _record(actor, AuditAction.ENDPOINT_DELETE, row, split=_split_of(deployments_of(row)))
        row.delete()


# --- Deployments ---------------------------------------------------------------------------------


def deploy(  # noqa: PLR0913 - a deployment is this wide
    *,
    actor: Actor,
    model: str,
    version: str,
    endpoint: object = None,
    role: str = DeploymentRole.LIVE,
    weight: int | None = None,
    widens: bool = False,
    options: ServingOptions | None = None,
    reason: object = "",
) -> Deployment:
    """Let a version serve at an endpoint of its model, which is made where there is none.

    `version` is a number, `latest`, or an `@alias`, which the deployment then follows. The first
    one takes all traffic; later ones take what `weight` says, a canary one percent, a live one
    none: it waits to be promoted. A canary that `widens` goes on by itself
    (`registry.services.canaries`). `reason` overrides the check that it takes what callers send,
    and that it agrees where a shadow tries it.

    Raises:
        Conflict: the version is not ready, is deployed there already, may not answer callers
            of the endpoint, or its weight leaves nothing to others that answer.
        QuotaExceeded: the namespace has as many deployments as it may.

    """
    namespace, _, name = model.partition("/")
    repository = find_repository(actor, Kind.MODEL, namespace, name)
    require(actor, "maintain", repository)
    if role not in DeploymentRole.values:
        raise invalid_field(
            "role",
            "bad_choice",
            "{value!r} is not one of {choices}.",
            value=role,
            choices=", ".join(DeploymentRole.values),
        )
    share = _check_weight(role, weight)
    if widens and role != DeploymentRole.CANARY:
        raise invalid_field("widens", "not_allowed", "Only a canary widens by itself.")
    why = check_text("reason", reason, max_length=_MAX_REASON)
    with transaction.atomic():
        row = lock_repository(repository)
        served = find_version(actor, row, version)
        require_runnable(served)
        place = _find_or_make(actor, row, endpoint)
        present = deployments_of(place)
        if share:
            overridden = require_taking(place, present, served, reason=why)
        else:
            overridden = require_successor(place, answering_of(present), served, reason=why)
        require_deployment_place(place.namespace)
        deployment = _insert(actor, place, served, version, role, options or ServingOptions())
        deployment.trial = {"begun": True} if widens else {}
        deployment.save(update_fields=["trial"])
        if share:
            # What takes nothing from the others leaves the way back where it leads.
            remember_split(place, present)
        if not any(one.weight for one in present) and role != DeploymentRole.SHADOW:
            share = FULL_WEIGHT if weight is None else share
        give_share(deployment, share, present)
        touch(place)
        record_change(actor, AuditAction.DEPLOYMENT_CREATE, deployment, served, **overridden)
    deployment.serves = served
    return deployment


def _check_weight(role: str, weight: int | None) -> int:
    if role == DeploymentRole.SHADOW:
        if weight:
            raise invalid_field(
                "weight", "not_allowed", "A shadow answers nobody, so it takes no weight."
            )
        return 0
    if weight is None:
        return _FIRST_CANARY if role == DeploymentRole.CANARY else 0
    return _in_percent(weight)


def _in_percent(weight: int) -> int:
    if not 0 <= weight <= FULL_WEIGHT:
        raise invalid_field("weight", "out_of_range", "A weight is between 0 and 100 percent.")
    return weight


def _find_or_make(actor: Actor, repository: Repository, name: object) -> Endpoint:
    wanted = repository.name if name is None or name == "" else check_name(name)
    rows = Endpoint.objects.select_related("namespace").filter(repository=repository)
    found = rows.filter(name__iexact=wanted).first()
    if found is None:
        return _make_endpoint(actor, repository, wanted)
    found.repository = repository
    return found


def _insert(
    actor: Actor,
    endpoint: Endpoint,
    version: Version,
    asked: str,
    role: str,
    options: ServingOptions,
) -> Deployment:
    follows = asked[1:] if asked.startswith("@") else ""
    try:
        with transaction.atomic():
            return Deployment.objects.create(
                endpoint=endpoint,
                version=None if follows else version,
                alias=follows and find_alias(endpoint.repository, follows).name,
                role=role,
                options=options.model_dump(mode="json", exclude_defaults=True),
                created_by_id=actor.user_id,
            )
    except IntegrityError as error:
        raise AlreadyExists(
            "{version} is deployed at {endpoint} already; change that deployment.",
            code="already_deployed",
            version=f"{endpoint.repository.full_name}@{follows}" if follows else version.ref,
            endpoint=endpoint,
        ) from error


def change_deployment(
    *, actor: Actor, deployment: Deployment, options: ServingOptions
) -> Deployment:
    """Serve a deployment with other options; replicas load it anew and swap."""
    require(actor, "maintain", deployment.endpoint.repository)
    with transaction.atomic():
        endpoint = _lock(deployment.endpoint)
        row = find_deployment(endpoint, deployment.pk)
        row.options = options.model_dump(mode="json", exclude_defaults=True)
        row.save(update_fields=["options"])
        touch(endpoint)
        record_change(actor, AuditAction.DEPLOYMENT_CHANGE, row, row.serves, options=row.options)
    return row


def split_traffic(
    *,
    actor: Actor,
    endpoint: Endpoint,
    weights: Mapping[int, int],
    reason: object = "",
    expected_etag: str | None = None,
) -> Endpoint:
    """Say how many percent of the requests each deployment answers; those left out get none.

    One that begins to answer by this is held against what answers now, as one that is promoted;
    `reason` overrides that, and stays in the history in any case.

    Raises:
        NotFound: one of them is not deployed there.
        Invalid: it does not come to 100, or a shadow is to answer.
        Conflict: what one of them serves may not answer callers of the endpoint.

    """
    require(actor, "maintain", endpoint.repository)
    why = check_text("reason", reason, max_length=_MAX_REASON)
    with transaction.atomic():
        row = _lock(endpoint, expected_etag)
        present = {one.pk: one for one in deployments_of(row)}
        for number, weight in weights.items():
            one = present.get(number) or find_deployment(row, number)
            if _in_percent(weight) and one.role == DeploymentRole.SHADOW:
                raise invalid_field(
                    "weights", "not_allowed", "A shadow answers nobody, so it takes no weight."
                )
        if sum(weights.values()) != FULL_WEIGHT:
            raise invalid_field(
                "weights",
                "wrong_sum",
                "The weights come to {total}; they must come to 100.",
                total=sum(weights.values()),
            )
        begin = [one for one in present.values() if weights.get(one.pk) and not one.weight]
        facts = _require_beginning(row, [*present.values()], begin, reason=why)
        before = remember_split(row, present.values())
        for one in present.values():
            _set(one, weight=weights.get(one.pk, 0))
        touch(row)
        after = _split_of_row(row)
        _record(actor, AuditAction.ENDPOINT_SPLIT, row, before=before, after=after, **facts)
    return row


def _require_beginning(
    endpoint: Endpoint,
    present: Sequence[Deployment],
    begin: Iterable[Deployment],
    *,
    reason: str,
) -> dict[str, Any]:
    """Pass when all that begin to answer may; give what the audit log is to remember of it."""
    facts = _given(reason)
    for one in begin:
        served = _require_serving(one)
        facts |= require_taking(endpoint, present, served, reason=reason)
    return facts


def _given(reason: str) -> dict[str, Any]:
    """Have a reason remembered that nothing asked for, too."""
    return {"reason": reason} if reason else {}


def _require_serving(deployment: Deployment) -> Version:
    """Give the version that a deployment serves, which must be able to run."""
    if deployment.serves is None:
        raise Conflict(
            "The alias {alias!r} points at no version, so nothing would answer.",
            code="version_not_ready",
            alias=deployment.alias,
        )
    require_runnable(deployment.serves)
    return deployment.serves


def promote(*, actor: Actor, deployment: Deployment, reason: object = "") -> Endpoint:
    """Let a deployment answer everything; the others stay, for a roll-back, and answer by number.

    A shadow is promoted on its evidence (`registry.services.gate`). A `reason` overrides that,
    and the check that it takes what callers send.

    Raises:
        Conflict: what it serves cannot run now or does not take what callers send, or its
            evidence does not allow it.

    """
    require(actor, "maintain", deployment.endpoint.repository)
    why = check_text("reason", reason, max_length=_MAX_REASON)
    with transaction.atomic():
        endpoint = _lock(deployment.endpoint)
        present = {one.pk: one for one in deployments_of(endpoint)}
        promoted = find_deployment(endpoint, deployment.pk)
        served = _require_serving(promoted)
        facts = require_taking(endpoint, [*present.values()], served, reason=why)
        remember_split(endpoint, present.values())
        for one in present.values():
            if one.pk != promoted.pk:
                _set(one, weight=0)
        _set(promoted, weight=FULL_WEIGHT, role=DeploymentRole.LIVE)
        touch(endpoint)
        record_change(
            actor,
            AuditAction.DEPLOYMENT_PROMOTE,
            promoted,
            served,
            **{**facts, **_given(why)},
        )
    return endpoint


def roll_back(*, actor: Actor, endpoint: Endpoint, reason: object = "") -> Endpoint:
    """Split the traffic as it was split before somebody last changed it.

    What answered then answers again, whatever it is: a way back is never closed. But where an
    alias has moved meanwhile, it would be another version, which is held against what answers now.
    A `reason` may always be given, and stays in the history.

    Raises:
        Conflict: it never changed, or what answered then is gone, or is another version by now
            that may not answer, and there is no reason.

    """
    require(actor, "maintain", endpoint.repository)
    why = check_text("reason", reason, max_length=_MAX_REASON)
    with transaction.atomic():
        row = _lock(endpoint)
        present = {str(one.pk): one for one in deployments_of(row)}
        before = row.previous
        answering = sum(weight for key, (_, weight, *_) in before.items() if key in present)
        if answering != FULL_WEIGHT:
            raise Conflict(
                "{endpoint} has nothing to go back to: what answered before is not deployed any "
                "more.",
                code="nothing_to_roll_back",
                endpoint=row,
            )
        begin = [
            one
            for key, one in present.items()
            if key in before and not one.weight and _is_another(one, before[key])
        ]
        facts = _require_beginning(row, [*present.values()], begin, reason=why)
        left = remember_split(row, present.values())
        for key, one in present.items():
            role, weight, *_ = before.get(key, (one.role, 0))
            _set(one, weight=weight, role=role)
        touch(row)
        _record(
            actor,
            AuditAction.ENDPOINT_ROLL_BACK,
            row,
            before=left,
            after=_split_of_row(row),
            **facts,
        )
    return row


def _is_another(deployment: Deployment, before: Sequence[Any]) -> bool:
    """Say whether a deployment that is to answer again serves another version than it did then."""
    _role, weight, *served = before
    now = deployment.serves.pk if deployment.serves else None
    # What the previous release remembered names no version.
    return bool(weight and served and served != [now])


def undeploy(*, actor: Actor, deployment: Deployment) -> None:
    """Take a deployment down.

    Raises:
        Conflict: it answers requests which others there could answer instead.

    """
    require(actor, "maintain", deployment.endpoint.repository)
    with transaction.atomic():
        endpoint = _lock(deployment.endpoint)
        row = find_deployment(endpoint, deployment.pk)
        others = endpoint.deployments.exclude(pk=row.pk).exclude(role=DeploymentRole.SHADOW)
        if row.weight and others.exists():
            raise Conflict(
                "It answers {weight} percent of the requests to {endpoint}; give them to another "
                "deployment first.",
                code="deployment_answers",
                weight=row.weight,
                endpoint=endpoint,
            )
        touch(endpoint)
        record_change(actor, AuditAction.DEPLOYMENT_DELETE, row, row.serves)
        row.delete()


# --- Under the lock ------------------------------------------------------------------------------


def _lock(endpoint: Endpoint, expected_etag: str | None = None) -> Endpoint:
    """Lock the model of an endpoint, and read what the endpoint is now."""
    repository = lock_repository(endpoint.repository)
    row = Endpoint.objects.select_related("namespace").filter(pk=endpoint.pk).first()
    if row is None:
        raise NotFound(
            "The endpoint {endpoint} was deleted.", code="endpoint_not_found", endpoint=endpoint
        )
    row.repository = repository
    check_etag(expected_etag, row.etag, row.full_name)
    return row


def give_share(deployment: Deployment, weight: int, others: Sequence[Deployment]) -> None:
    """Give a deployment its part; the others share the rest as they shared what they had.

    What answers goes on answering one percent at least, unless the deployment is given all. Where
    nothing else answers, it answers everything.

    Raises:
        Conflict: the rest is too little for so many others.

    """
    answering = [one for one in others if one.weight]
    if answering:
        if not leaves_room(weight, answering):
            raise Conflict(
                "{weight} percent leave less than one percent for each of the {others} "
                "deployments that answer too; give it less, or everything.",
                code="no_share_left",
                weight=weight,
                others=len(answering),
            )
        parts = _parts_of(FULL_WEIGHT - weight, answering)
        for one in answering:
            _set(one, weight=parts[one.pk])
    elif weight:
        weight = FULL_WEIGHT
    _set(deployment, weight=weight)


def leaves_room(weight: int, others: Iterable[Deployment]) -> bool:
    """Say whether a part leaves each of the others that answer one percent, or is everything."""
    answering = sum(1 for one in others if one.weight)
    return weight == FULL_WEIGHT or FULL_WEIGHT - weight >= answering


def _parts_of(rest: int, answering: Sequence[Deployment]) -> dict[int, int]:
    """Cut what is left into parts like those that deployments had, none of them 0 by rounding."""
    total = sum(one.weight for one in answering)
    least = 1 if rest else 0
    parts = {one.pk: max(least, one.weight * rest // total) for one in answering}
    for one in sorted(answering, key=lambda one: -one.weight)[: max(0, rest - sum(parts.values()))]:
        parts[one.pk] += 1
    while sum(parts.values()) > rest:
        # What the smallest were lifted by, the largest have less.
        parts[max(parts, key=lambda key: parts[key])] -= 1
    return parts


def _set(deployment: Deployment, *, weight: int, role: str | None = None) -> None:
    deployment.weight = weight
    deployment.role = role or deployment.role
    decided = deployment.role == DeploymentRole.CANARY and weight in {0, FULL_WEIGHT}
    if decided or deployment.role == DeploymentRole.LIVE:
        # Whoever takes a canary's requests away, or promotes something, ends its trial; and where
        # it answers everything, nothing is left to hold it against. No share comes to 0 by itself.
        deployment.trial = {}
    deployment.save(update_fields=["weight", "role", "trial"])


Split = dict[str, tuple[str, int]]


def _split_of(deployments: Sequence[Deployment]) -> Split:
    return {str(one.pk): (one.role, one.weight) for one in deployments}


def _split_of_row(endpoint: Endpoint) -> Split:
    return _split_of(list(endpoint.deployments.order_by("pk")))


def remember_split(endpoint: Endpoint, deployments: Iterable[Deployment]) -> Split:
    """Keep how the traffic was split and between what, for a roll-back, while something answered.

    The deployments know what they serve. Only what people do is gone back on: what a canary does
    by itself leads nowhere that anybody chose.
    """
    rows = list(deployments)
    split = _split_of(rows)
    if any(weight for _, weight in split.values()):
        endpoint.previous = {
            str(one.pk): (one.role, one.weight, one.serves.pk if one.serves else None)
            for one in rows
        }
    endpoint.updated_at = timezone.now()
    endpoint.save(update_fields=["previous", "updated_at"])
    return split


def touch(endpoint: Endpoint, *fields: str) -> None:
    """Save that an endpoint has changed, which its etag says, and the fields that did."""
    endpoint.updated_at = timezone.now()
    endpoint.save(update_fields=["updated_at", *fields])


def _record(actor: Actor, action: AuditAction, endpoint: Endpoint, **data: Any) -> None:
    record_event(
        actor,
        action,
        repository=endpoint.repository,
        target=endpoint.full_name,
        endpoint=endpoint.pk,
        **data,
    )


def record_change(
    actor: Actor, action: AuditAction, row: Deployment, version: Version | None, **data: Any
) -> None:
    _record(
        actor,
        action,
        row.endpoint,
        deployment=row.pk,
        version=version.number if version else None,
        alias=row.alias or None,
        role=row.role,
        weight=row.weight,
        **data,
    )
