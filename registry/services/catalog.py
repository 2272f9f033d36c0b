"""Repositories (models and datasets): registered, described, tagged, given aliases, deleted."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from registry import lexicon
from registry.errors import AlreadyExists, Conflict, Denied, NotFound, PreconditionFailed
from registry.models import (
    QUALITY_METRICS,
    Actor,
    Alias,
    AuditAction,
    Evaluation,
    Kind,
    Namespace,
    Redirect,
    Ref,
    Repository,
    Revision,
    Role,
    SearchWord,
    Tag,
    Version,
    Visibility,
)
from registry.models.catalog import NAME_PATTERN, VersionQuerySet
from registry.permissions import allowed, require
from registry.services.audit import record_event
from registry.services.namespaces import find_namespace, hold_namespaces
from registry.services.placement import follow_model, remove_endpoints, require_unfollowed
from registry.services.quotas import free_room
from registry.services.succession import require_followed, require_protected
from registry.services.texts import check_text, invalid_field

# Field of a repository -> the longest text it takes.
DESCRIBABLE: Mapping[str, int] = {
    "summary": 1000,
    "task": 64,
    "library": 64,
    "license": 64,
    "base_model": 200,
}
_SEARCHED_CHARACTERS = 4000
# What one repository or version may carry in tags: pages and answers show all of them.
MAX_TAGS = 100
_MAX_REASON = 2000
MAX_TAGS_CHARACTERS = 256 * 1024


# --- Reading one -------------------------------------------------------------------------------


def find_repository(actor: Actor, kind: str, namespace: str, name: str) -> Repository:
    """Find what the actor may see; what they may not see answers as if it did not exist.

    Raises:
        NotFound: nothing visible has that name, nor had it once.

    """
    visible = Repository.objects.visible_to(actor).select_related("namespace").filter(kind=kind)
    found = None
    if "\0" not in namespace + name:
        found = visible.named(namespace, name).first()
        if found is None:
            moved = Redirect.objects.filter(
                kind=kind, namespace__slug__iexact=namespace, name__iexact=name
            )
            found = visible.filter(redirects__in=moved).first()
    if found is None:
        raise NotFound(
            "There is no {kind} {namespace}/{name} that you may see.",
            code=f"{Kind(kind).value}_not_found",
            kind=Kind(kind).value,
            namespace=namespace,
            name=name,
        )
    return found


def find_version(actor: Actor, repository: Repository, reference: str) -> Version:
    """Find a version by number (`3`), alias (`@champion`) or `latest`.

    Raises:
        NotFound: there is no such version, or the repository is not visible.

    """
    versions = Version.objects.visible_to(actor).filter(repository=repository)
    versions = versions.select_related("revision", "created_by", "job")
    found = None
    if re.fullmatch(r"[0-9]{1,9}", reference):
        found = versions.filter(number=int(reference)).first()
    elif reference.startswith("@") and "\0" not in reference:
        found = versions.filter(aliases__name=reference[1:], aliases__repository=repository).first()
    elif reference == "latest" and repository.latest_number:
        found = versions.filter(number=repository.latest_number).first()
    if found is None:
        raise NotFound(
            "{repository} has no version {reference!r}; a version is a number, an @alias "
            "or 'latest'.",
            code="version_not_found",
            repository=repository,
            reference=reference,
        )
    found.repository = repository
    return found


# --- Registering -------------------------------------------------------------------------------


def check_name(name: object) -> str:
    """Return the second half of a name, or refuse it."""
    text = check_text("name", name, max_length=96)
    if "/" in text:
        raise invalid_field(
            "name",
            "bad_name",
            "The name {text!r} holds a slash; send the namespace in its own field.",
            text=text,
        )
    if (
        not re.fullmatch(NAME_PATTERN, text)
        or ".." in text
        or "--" in text
        or text.lower().endswith((".git", ".ipynb"))
    ):
        raise invalid_field(
            "name",
            "bad_name",
            "The name {text!r} is not valid: use 1 to 96 letters, digits, '-', '_' and '.', "
            "starting with a letter or digit, without '..' or '--'.",
            text=text,
        )
    return text


def register_repository(  # noqa: PLR0913 - a registration is this wide
    *,
    actor: Actor,
    kind: str,
    namespace: str,
    name: object,
    visibility: str = Visibility.PUBLIC,
    summary: object = "",
    task: object = "",
    library: object = "",
    license: object = "",  # noqa: A002 - the glossary's word
    base_model: object = "",
    tags: Mapping[str, str] | None = None,
) -> Repository:
    """Register a model or a dataset; its first, empty revision gives it an id for every protocol.

    Raises:
        NotFound: the namespace does not exist.
        AlreadyExists: the name is taken in it, in whatever case.

    """
    space = find_namespace(actor, namespace)
    require(actor, "write", space)
    plain = check_name(name)
    if visibility not in Visibility.values:
        raise _bad_visibility(visibility)
    facts = {
        "summary": summary,
        "task": task,
        "library": library,
        "license": license,
        "base_model": base_model,
    }
    checked = {
        field: check_text(field, facts[field], max_length=longest)
        for field, longest in DESCRIBABLE.items()
    }
    labelled = check_tags(tags or {})
    try:
        with transaction.atomic():
            hold_namespaces(space)
            repository = Repository.objects.create(
                kind=kind,
                namespace=space,
                name=plain,
                visibility=visibility,
                created_by_id=actor.user_id,
                **checked,
            )
            _first_revision(repository, actor)
            Tag.objects.bulk_create(
                Tag(repository=repository, key=key, value=value) for key, value in labelled.items()
            )
            Redirect.objects.filter(kind=kind, namespace=space, name__iexact=plain).delete()
            refresh_search(repository)
            record_event(
                actor,
                AuditAction.of_kind(kind, "register"),
                repository=repository,
                visibility=visibility,
            )
    except IntegrityError as error:
        if "repository_name_unique" not in str(error):
            raise
        raise AlreadyExists(
            "{namespace}/{name} already exists; add a version to it, or choose another name.",
            code=f"{kind}_already_exists",
            namespace=space,
            name=plain,
        ) from error
    return repository


def _first_revision(repository: Repository, actor: Actor) -> None:
    seed = f"{repository.pk}/{repository.created_at.isoformat()}".encode()
    revision = Revision.objects.create(
        repository=repository,
        commit=hashlib.sha1(seed, usedforsecurity=False).hexdigest(),
        author_id=actor.user_id,
        message="initial",
    )
    Ref.objects.create(repository=repository, name="main", revision=revision)


def _bad_visibility(value: object) -> Exception:
    return invalid_field(
        "visibility",
        "bad_choice",
        "{value!r} is not one of {choices}.",
        value=value,
        choices=", ".join(Visibility.values),
    )


# --- Describing --------------------------------------------------------------------------------


def describe_repository(
    *,
    actor: Actor,
    repository: Repository,
    changes: Mapping[str, object],
    expected_etag: str | None = None,
) -> Repository:
    """Change what is said about a repository: its summary, facts, visibility or name.

    Raises:
        PreconditionFailed: it changed since the caller read `expected_etag`.

    """
    require(actor, "write", repository)
    if "name" in changes or "visibility" in changes:
        require(actor, "maintain", repository)
    with transaction.atomic():
        row = lock_repository(repository)
        check_etag(expected_etag, row.etag, row.full_name)
        name_before, visibility_before = row.name, row.visibility
        for field, value in changes.items():
            _apply_change(row, field, value)
        _touch(row)
        try:
            with transaction.atomic():
                row.save()
        except IntegrityError as error:
            raise AlreadyExists(
                "{repository} already exists; choose another name.", repository=row.full_name
            ) from error
        if row.name.lower() != name_before.lower():
            Redirect.objects.filter(
                kind=row.kind, namespace=row.namespace, name__iexact=row.name
            ).delete()
            Redirect.objects.update_or_create(
                kind=row.kind,
                namespace=row.namespace,
                name=name_before,
                defaults={"repository": row},
            )
        if row.name != name_before:
            follow_model(row, name_before=name_before)
        refresh_search(row)
        moved: dict[str, Any] = {}
        if row.visibility != visibility_before:
            moved = {"visibility_before": visibility_before, "visibility": row.visibility}
        record_event(
            actor,
            AuditAction.of_kind(row.kind, "describe"),
            repository=row,
            fields=sorted(changes),
            name=row.name,
            **moved,
        )
    return row


def _apply_change(row: Repository, field: str, value: object) -> None:
    if field == "name":
        row.name = check_name(value)
    elif field == "visibility":
        if not isinstance(value, str) or value not in Visibility.values:
            raise _bad_visibility(value)
        row.visibility = value
    elif field in DESCRIBABLE:
        setattr(row, field, check_text(field, value, max_length=DESCRIBABLE[field]))
    else:
        raise invalid_field(
            field,
            "unknown_field",
            "{field!r} cannot be changed; there are name, visibility, {fields}.",
            field=field,
            fields=", ".join(DESCRIBABLE),
        )


def check_etag(expected: str | None, present: str, what: str) -> None:
    """Refuse a write that was based on an older state (RFC 9110 `If-Match`)."""
    if expected is None or expected.strip() == "*":
        return
    if present not in {tag.strip().removeprefix("W/") for tag in expected.split(",")}:
        raise PreconditionFailed(
            "{what} changed since you read it; read it again and retry.", what=what
        )


def lock_repository(repository: Repository) -> Repository:
    """Lock a repository before anything below it, and read what it is now.

    Raises:
        NotFound: somebody deleted it at the same moment.

    """
    row = (
        Repository.objects.select_for_update(of=("self",))
        .select_related("namespace")
        .get(pk=repository.pk)
    )
    if row.deleted_at is not None:
        raise NotFound(
            "{repository} was deleted.", code="repository_deleted", repository=row.full_name
        )
    return row


def _touch(repository: Repository) -> None:
    repository.updated_at = timezone.now()


def refresh_search(repository: Repository) -> None:
    """Rewrite what a search looks through, from the row and its tags; bumps `updated_at`."""
    tags = Tag.objects.filter(repository=repository, version=None).order_by("key")
    words: Iterable[str] = [
        repository.full_name,
        repository.summary,
        repository.task,
        repository.library,
        repository.license,
        *repository.labels,
        *(f"{tag.key} {tag.value[:200]}" for tag in tags),
    ]
    text = " ".join(word for word in words if word).lower()[:_SEARCHED_CHARACTERS]
    repository.search_text = text
    repository.search_terms = lexicon.search_terms_of(repository.full_name, text)
    repository.word_pairs = lexicon.word_pairs_in(text)
    _touch(repository)
    repository.save(update_fields=["search_text", "search_terms", "word_pairs", "updated_at"])
    known = Repository.objects.words_of([repository.pk])
    if missing := lexicon.words_in(text) - known:
        # The database cuts some words elsewhere: `-4bit` is a number and a word for it.
        repository.search_terms = " ".join([repository.search_terms, *sorted(missing)])
        repository.save(update_fields=["search_terms"])
        known = Repository.objects.words_of([repository.pk])
    SearchWord.objects.bulk_create(
        [SearchWord(word=word) for word in sorted(known)], ignore_conflicts=True
    )


def set_quality(repository: Repository) -> None:
    """Let the row repeat how good its latest version is; does not save it."""
    numbers = dict(
        Evaluation.objects.filter(
            version__repository=repository,
            version__number=repository.latest_number or 0,
            metric__in=QUALITY_METRICS,
        )
        .order_by("metric", "-measured", "-created_at", "-pk")
        .distinct("metric")
        .values_list("metric", "value")
    )
    metric = next((name for name in QUALITY_METRICS if name in numbers), "")
    repository.quality_metric, repository.quality = metric, numbers.get(metric)


def delete_repository(
    *, actor: Actor, repository: Repository, expected_etag: str | None = None
) -> None:
    """Delete a repository; it can be brought back for a time, its bytes stay as long.

    Raises:
        PreconditionFailed: it changed since the caller read `expected_etag`.
        Conflict: an alias names one of its versions, or a job that is not finished reads one.

    """
    require(actor, "own", repository)
    with transaction.atomic():
        row = lock_repository(repository)
        check_etag(expected_etag, row.etag, row.full_name)
        require_unheld(Version.objects.live().filter(repository=row))
        row.deleted_at = timezone.now()
        row.save(update_fields=["deleted_at"])
        remove_endpoints(row)
        free_room(row.namespace, Version.objects.live().filter(repository=row))
        record_event(actor, AuditAction.of_kind(row.kind, "delete"), repository=repository)


def require_unheld(versions: VersionQuerySet) -> None:
    """Pass when all these versions may vanish.

    Raises:
        Conflict: an alias names one of them, it is deployed, or an unfinished job reads one.

    """
    held = versions.held().select_related("repository__namespace").order_by("number").first()
    if held is None:
        return
    alias = held.aliases.order_by("name").first()
    if alias is not None:
        raise Conflict(
            "{version} has the alias {alias!r}; move or delete the alias first.",
            code="version_aliased",
            version=held.ref,
            alias=alias.name,
        )
    deployment = held.deployments.select_related("endpoint__namespace").order_by("pk").first()
    if deployment is not None:
        raise Conflict(
            "{version} is deployed at {endpoint}; undeploy it first.",
            code="version_deployed",
            version=held.ref,
            endpoint=deployment.endpoint,
        )
    raise Conflict(
        "A job is reading {version}; cancel it or wait for it to end.",
        code="version_in_use",
        version=held.ref,
    )


# --- Tags --------------------------------------------------------------------------------------


def check_tag_key(key: object) -> str:
    """Return a tag's key, or refuse it."""
    text = check_text("key", key, max_length=250)
    if not text or "/" in text or "\n" in text or "\r" in text:
        raise invalid_field(
            "key",
            "bad_key",
            "The tag key {text!r} is empty or holds a slash or a line break.",
            text=text,
        )
    return text


def check_tag_value(value: object) -> str:
    return check_text("value", value, max_length=100_000)


def check_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of something new, or refuse them."""
    checked = {check_tag_key(key): check_tag_value(value) for key, value in tags.items()}
    if not _fit(checked):
        raise invalid_field(
            "tags",
            "too_many",
            "At most {limit} tags with {characters} characters in all fit on one thing.",
            limit=MAX_TAGS,
            characters=MAX_TAGS_CHARACTERS,
        )
    return checked


def _fit(tags: Mapping[str, str]) -> bool:
    total = sum(len(key) + len(value) for key, value in tags.items())
    return len(tags) <= MAX_TAGS and total <= MAX_TAGS_CHARACTERS


def set_tag(
    *,
    actor: Actor,
    repository: Repository,
    key: object,
    value: object,
    version: Version | None = None,
) -> Tag:
    """Set a tag of a repository, or of one of its versions.

    Raises:
        Conflict: it has as many tags as fit.

    """
    require(actor, "write", repository)
    checked_key, checked_value = check_tag_key(key), check_tag_value(value)
    with transaction.atomic():
        repository = lock_repository(repository)
        present = Tag.objects.filter(repository=repository, version=version)
        others = dict(present.exclude(key=checked_key).values_list("key", "value"))
        if not _fit({**others, checked_key: checked_value}):
            raise Conflict(
                "{owner} has no room for this tag: at most {limit} tags with {characters} "
                "characters in all fit on one thing. Delete some, or keep long texts in a file.",
                code="too_many_tags",
                owner=version.ref if version else repository.full_name,
                limit=MAX_TAGS,
                characters=MAX_TAGS_CHARACTERS,
            )
        tag, _ = Tag.objects.update_or_create(
            repository=repository,
            version=version,
            key=checked_key,
            defaults={"value": checked_value},
        )
        _after_tag(actor, repository, version, AuditAction.TAG_SET, checked_key)
    return tag


def delete_tag(
    *, actor: Actor, repository: Repository, key: str, version: Version | None = None
) -> None:
    """Delete a tag.

    Raises:
        NotFound: there is none with that key.

    """
    require(actor, "write", repository)
    with transaction.atomic():
        repository = lock_repository(repository)
        deleted, _ = Tag.objects.filter(
            repository=repository, version=version, key=check_tag_key(key)
        ).delete()
        if not deleted:
            raise NotFound(
                "{owner} has no tag {key!r}.",
                code="tag_not_found",
                owner=version or repository,
                key=key,
            )
        _after_tag(actor, repository, version, AuditAction.TAG_DELETE, key)


def _after_tag(
    actor: Actor, repository: Repository, version: Version | None, action: AuditAction, key: str
) -> None:
    if version is None:
        refresh_search(repository)
    else:
        Version.objects.filter(pk=version.pk).update(updated_at=timezone.now())
    record_event(
        actor,
        action,
        repository=repository,
        target=str(version.ref if version else repository.full_name),
        key=key,
    )


# --- Aliases -----------------------------------------------------------------------------------


def check_alias(alias: object) -> str:
    """Return an alias, or refuse it; the grammar is MLflow's, less names that look like numbers."""
    text = check_text("alias", alias, max_length=255)
    if not re.fullmatch(r"[\w\-]+", text):
        raise invalid_field(
            "alias",
            "bad_alias",
            "The alias {text!r} is not valid: use letters, digits, '-' and '_'.",
            text=text,
        )
    if text.lower() == "latest" or re.fullmatch(r"v?[0-9]+", text, re.IGNORECASE):
        raise invalid_field(
            "alias",
            "reserved_alias",
            "The alias {text!r} is reserved: it would read like a version number or 'latest'.",
            text=text,
        )
    return text


def set_alias(
    *,
    actor: Actor,
    repository: Repository,
    alias: object,
    version: Version,
    expected_version: int | None = None,
    reason: object = "",
) -> Alias:
    """Point an alias at a version; it always points at exactly one.

    With a `reason`, a maintainer moves one that is protected, or that a deployment follows, to
    what does not fit its callers.

    Raises:
        Denied: the alias is protected, and the actor no maintainer, or a second one is needed.
        Conflict: the version cannot be used, the alias is no longer at `expected_version`, or a
            deployment follows it, or it is protected, and the version does not fit its callers.

    """
    require(actor, "write", repository)
    name = check_alias(alias)
    why = check_text("reason", reason, max_length=_MAX_REASON)
    with transaction.atomic():
        repository = lock_repository(repository)
        _require_unprotected(actor, repository, name)
        if expected_version is not None:
            require_present(repository, name, expected_version)
        return move_alias(actor, repository, name, version, reason=why)


def require_present(repository: Repository, alias: str, expected_version: int | None) -> None:
    """Pass when an alias is still where the caller saw it; None stands for one that is new.

    Raises:
        PreconditionFailed: it points elsewhere by now.

    """
    current = Alias.objects.filter(repository=repository, name=alias).values_list(
        "version__number", flat=True
    )
    if current.first() == expected_version:
        return
    if expected_version is None:
        raise PreconditionFailed("The alias {name!r} exists by now; read it again.", name=alias)
    raise PreconditionFailed(
        "The alias {name!r} is no longer at version {expected_version}; read it again.",
        name=alias,
        expected_version=expected_version,
    )


def _require_unprotected(actor: Actor, repository: Repository, alias: str) -> None:
    if not repository.protects(alias):
        return
    if repository.second_approver:
        raise Denied(
            "The alias {alias!r} of {repository} moves only with a second person: propose it, and "
            "somebody else approves. POST /api/v1/{collection}/{repository}/proposals.",
            code="second_approver_needed",
            alias=alias,
            repository=repository,
            collection=f"{repository.kind}s",
        )
    if not allowed(actor, "maintain", repository):
        raise Denied(
            "The alias {alias!r} is protected: only maintainers of {repository} move it. Propose "
            "it: POST /api/v1/{collection}/{repository}/proposals.",
            code="alias_protected",
            alias=alias,
            repository=repository,
            collection=f"{repository.kind}s",
        )


def require_usable(version: Version) -> None:
    """Pass when an alias may point at a version, as it is now.

    Raises:
        Conflict: it is deleted, archived, quarantined, or not ready yet.

    """
    fresh = Version.objects.get(pk=version.pk)
    if fresh.deleted_at is not None or not fresh.is_usable:
        raise Conflict(
            "{version} is {state}; an alias needs a version that is ready.",
            code="version_not_ready",
            version=version.ref,
            state="deleted" if fresh.deleted_at else fresh.state,
        )


def move_alias(
    actor: Actor,
    repository: Repository,
    name: str,
    version: Version,
    *,
    reason: str = "",
    **facts: Any,
) -> Alias:
    """Point an alias of a locked repository at a version; who may is the caller's question.

    Raises:
        Conflict: the version cannot be used, or may not answer in place of what a deployment
            that follows the alias serves.

    """
    require_usable(version)
    facts |= require_followed(actor, repository, name, version, reason=reason)
    facts |= require_protected(actor, repository, name, version, reason=reason)
    current = (
        Alias.objects.filter(repository=repository, name=name).select_related("version").first()
    )
    moved, _ = Alias.objects.update_or_create(
        repository=repository,
        name=name,
        defaults={"version": version, "updated_at": timezone.now()},
    )
    _after_alias(repository, {version.pk, current.version_id if current else version.pk})
    record_event(
        actor,
        AuditAction.ALIAS_SET,
        repository=repository,
        target=f"{repository.full_name}@{name}",
        version=version.number,
        before=current.version.number if current else None,
        **facts,
    )
    return moved


def _after_alias(repository: Repository, versions: Iterable[int]) -> None:
    """Let the repository and each version whose aliases changed have a new ETag."""
    _touch(repository)
    repository.save(update_fields=["updated_at"])
    Version.objects.filter(pk__in=versions).update(updated_at=repository.updated_at)


def delete_alias(*, actor: Actor, repository: Repository, alias: str) -> None:
    """Delete an alias.

    Raises:
        NotFound: there is none of that name.
        Denied: it is protected, and the actor no maintainer, or a second one is needed.

    """
    require(actor, "write", repository)
    with transaction.atomic():
        repository = lock_repository(repository)
        found = find_alias(repository, alias)
        _require_unprotected(actor, repository, found.name)
        drop_alias(actor, repository, found)


def drop_alias(actor: Actor, repository: Repository, alias: Alias, **facts: Any) -> None:
    """Delete an alias of a locked repository; who may is the caller's question.

    Raises:
        Conflict: a deployment follows it.

    """
    require_unfollowed(repository, alias.name)
    alias.delete()
    _after_alias(repository, {alias.version_id})
    record_event(
        actor,
        AuditAction.ALIAS_DELETE,
        repository=repository,
        target=f"{repository.full_name}@{alias.name}",
        version=alias.version.number,
        **facts,
    )


def find_alias(repository: Repository, alias: str) -> Alias:
    """Find an alias of a repository by its exact name."""
    found = (
        Alias.objects.filter(repository=repository, name=alias).select_related("version").first()
        if "\0" not in alias
        else None
    )
    if found is None:
        raise NotFound(
            "{repository} has no alias {alias!r}.",
            code="alias_not_found",
            repository=repository,
            alias=alias,
        )
    return found


def namespaces_writable_by(actor: Actor) -> list[Namespace]:
    """List the namespaces in which `actor` may register, their own first."""
    if actor.is_anonymous:
        return []
    spaces = Namespace.objects.live().order_by("kind", "slug")
    if not actor.is_admin:
        spaces = spaces.filter(pk__in=actor.namespaces_as(Role.CONTRIBUTOR))
    return sorted(spaces, key=lambda space: space.slug.lower() != actor.username.lower())
