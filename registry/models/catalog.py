"""What is registered: repositories, their revisions and numbered versions, aliases and tags."""

from collections.abc import Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Self

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex, OpClass
from django.contrib.postgres.search import SearchVector, SearchVectorField
from django.core.exceptions import EmptyResultSet
from django.db import connection, models
from django.db.models import Exists, F, Func, OuterRef, Q, Value
from django.db.models.functions import Lower, Upper
from django.utils import timezone

from registry.errors import Saying, Text
from registry.lexicon import LONGEST_KNOWN, known_among
from registry.models.access import Actor, Namespace, Role, User

# How words of a `search_text` are marked in the `search_vector`: A as they stand, C as terms.
WEIGHTS_OF_TEXT = "AC"
NAME_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?$"


class Kind(models.TextChoices):
    """What a repository holds."""

    MODEL = "model"
    DATASET = "dataset"


class Visibility(models.TextChoices):
    """Who finds a repository: everybody, everybody who signed in, or its members."""

    PUBLIC = "public"
    INTERNAL = "internal"
    PRIVATE = "private"


class VersionState(models.TextChoices):
    """Where a version stands in its life."""

    PENDING = "pending"
    READY = "ready"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    DEPRECATED = "deprecated"
    ARCHIVED = "archived"


class Stage(models.TextChoices):
    """The four stages that old MLflow clients move versions through."""

    NONE = "None"
    STAGING = "Staging"
    PRODUCTION = "Production"
    ARCHIVED = "Archived"


def _visible(actor: Actor, prefix: str = "") -> Q:
    """Give the condition under which the repository at `prefix` exists for `actor`."""
    if "read" not in actor.scopes:
        return Q(pk__in=[])
    if actor.is_admin:
        seen = Q()
    else:
        seen = Q(**{f"{prefix}visibility": Visibility.PUBLIC})
        if not actor.is_anonymous:
            seen |= Q(**{f"{prefix}visibility": Visibility.INTERNAL})
            seen |= Q(**{f"{prefix}namespace_id__in": list(actor.roles)})
        if actor.grants:
            seen |= Q(**{f"{prefix}id__in": list(actor.grants)})
    if actor.limited_namespace_id is not None:
        seen &= Q(**{f"{prefix}namespace_id": actor.limited_namespace_id})
    if actor.limited_repository_id is not None:
        seen &= Q(**{f"{prefix}id": actor.limited_repository_id})
    return seen & Q(**{f"{prefix}deleted_at": None})


def protected_by_default() -> list[str]:
    return ["production"]


def _kept(actor: Actor, prefix: str = "") -> Q:
    """Give the condition under which `actor` maintains the repository at `prefix`."""
    if "read" not in actor.scopes:
        return Q(pk__in=[])
    kept = Q()
    if not actor.is_admin:
        kept = Q(**{f"{prefix}namespace_id__in": actor.namespaces_as(Role.MAINTAINER)})
        kept |= Q(**{f"{prefix}id__in": actor.repositories_as(Role.MAINTAINER)})
    if actor.limited_namespace_id is not None:
        kept &= Q(**{f"{prefix}namespace_id": actor.limited_namespace_id})
    if actor.limited_repository_id is not None:
        kept &= Q(**{f"{prefix}id": actor.limited_repository_id})
    return kept


class _IsOneOf(Func):
    template = "%(expressions)s::bigint[])"
    arg_joiner = " = ANY("
    output_field = models.BooleanField()
    conditional = True


class RepositoryQuerySet(models.QuerySet["Repository"]):
    def visible_to(self, actor: Actor) -> Self:
        return self.filter(_visible(actor))

    def deleted_for(self, actor: Actor) -> Self:
        """Keep what was deleted and `actor` knows of: those who maintain it do."""
        return self.filter(_kept(actor), deleted_at__isnull=False)

    def models(self) -> Self:
        return self.filter(kind=Kind.MODEL)

    def datasets(self) -> Self:
        return self.filter(kind=Kind.DATASET)

    def whichever(self, *columns: str, limit: int) -> list[tuple[Any, ...]]:
        """Read these columns of so many at most, in no order.

        The database plans as if it were to read them all. It takes words for more common than they
        are: told that few will do, it would read the whole table in the hope of soon meeting them.
        """
        try:
            inner, parameters = self.order_by().values(*columns).query.sql_with_params()
        except EmptyResultSet:
            return []
        with connection.cursor() as cursor:
            cursor.execute(
                f"WITH found AS MATERIALIZED ({inner}) SELECT * FROM found LIMIT {limit:d}",  # noqa: S608 - Django's own SQL
                parameters,
            )
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def words_of(self, keys: Sequence[int]) -> set[str]:
        """Give the words of the names, summaries and tags of these, as the index has them.

        What finds a row is thus known from this very row, whoever else has the word.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT lexeme FROM registry_repository, unnest(search_vector)"
                " WHERE id = ANY(%s) AND weights && %s",
                [list(keys), list(WEIGHTS_OF_TEXT)],
            )
            return known_among(lexeme for (lexeme,) in cursor.fetchall())

    def of_keys(self, keys: Sequence[int]) -> Self:
        """Keep these, told to the database as one value: thousands of them cost little so."""
        if not keys:
            return self.none()
        # Written out here: a field of an array looks at each of them three times.
        listed = ",".join(map(str, keys))
        told = Value(f"{{{listed}}}", output_field=models.TextField())
        return self.filter(_IsOneOf(F("pk"), told))

    def named(self, namespace: str, name: str) -> Self:
        return self.alias(name_lower=Lower("name"), slug_lower=Lower("namespace__slug")).filter(
            slug_lower=namespace.lower(), name_lower=name.lower()
        )


class SavedSearch(models.Model):
    """A search that somebody keeps: what stands behind `?` in the address of the page."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="saved_searches")
    kind = models.CharField(max_length=8, choices=Kind)
    name = models.CharField(max_length=100)
    query = models.CharField(max_length=2000)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name_plural = "saved searches"
        constraints = [
            models.UniqueConstraint(
                "user", "kind", Lower("name"), name="saved_search_name_unique_without_case"
            ),
            models.CheckConstraint(
                condition=Q(kind__in=Kind.values), name="saved_search_kind_known"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class SearchWord(models.Model):
    """A word of some name, summary or tag: what a piece of a word, or a mistyped one, may be of.

    Every word of every `search_text` is here as the index has it, but for Chinese and bare
    numbers: a piece is looked for among these words, and these in the index of whole words. Whose
    word it is does not stand here; a correction is shown only with what it finds.
    """

    word = models.CharField(max_length=LONGEST_KNOWN, primary_key=True)

    class Meta:
        indexes = [
            GinIndex(
                OpClass("word", name="gin_trgm_ops"), name="search_word_trigrams", fastupdate=False
            )
        ]

    def __str__(self) -> str:
        return self.word


class Repository(models.Model):
    """A named line of versions: a registered model or a dataset.

    The columns from `task` to `size_bytes` repeat facts of the card and of the latest main-line
    version, so that lists and search read one table.
    """

    kind = models.CharField(max_length=8, choices=Kind)
    namespace = models.ForeignKey(Namespace, on_delete=models.PROTECT, related_name="repositories")
    name = models.CharField(max_length=96)
    # A name that an MLflow client chose and that is not a valid name of ours (spaces, dots).
    mlflow_name = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001 - unique
    visibility = models.CharField(max_length=8, choices=Visibility, default=Visibility.PUBLIC)
    summary = models.CharField(max_length=1000, blank=True)
    task = models.CharField(max_length=64, blank=True)
    library = models.CharField(max_length=64, blank=True)
    license = models.CharField(max_length=64, blank=True)
    base_model = models.CharField(max_length=200, blank=True)
    labels = ArrayField(models.CharField(max_length=100), default=list, blank=True)
    formats = ArrayField(models.CharField(max_length=16), default=list, blank=True)
    latest_number = models.PositiveIntegerField(null=True, blank=True)
    last_number = models.PositiveIntegerField(default=0)
    parameters_count = models.BigIntegerField(null=True, blank=True)
    size_bytes = models.BigIntegerField(null=True, blank=True)
    downloads_count = models.BigIntegerField(default=0)
    # How good the latest version is, by the first of `QUALITY_METRICS` that it has.
    quality = models.FloatField(null=True, blank=True)
    quality_metric = models.CharField(max_length=64, blank=True, db_default="")
    # Patterns of aliases that only maintainers move; others propose.
    protected_aliases = ArrayField(
        models.CharField(max_length=255),
        default=protected_by_default,
        db_default=protected_by_default(),
        blank=True,
    )
    # Whether somebody other than the proposer has to approve.
    second_approver = models.BooleanField(default=False, db_default=False)
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)
    # Lower-case "namespace/name summary task library tags": what a substring is looked for in.
    search_text = models.TextField(blank=True)
    card_text = models.TextField(blank=True)
    # Concepts and Chinese words of both, and the pieces of the name (see registry/lexicon.py).
    search_terms = models.TextField(blank=True, db_default="")
    card_terms = models.TextField(blank=True, db_default="")
    # Which words of `search_text` stand side by side, as numbers: most pieces of names have two.
    word_pairs = ArrayField(models.IntegerField(), default=list, db_default=[], blank=True)
    # The letters tell whose word it is: A and C are words of `search_text`, B stems of them, D is
    # of the card.
    search_vector: Any = models.GeneratedField(
        expression=SearchVector("search_text", config="simple", weight="A")
        + SearchVector("search_text", config="english", weight="B")
        + SearchVector("search_terms", config="simple", weight="C")
        + SearchVector("card_text", config="english", weight="D")
        + SearchVector("card_terms", config="simple", weight="D"),
        output_field=SearchVectorField(),
        db_persist=True,
    )

    objects = RepositoryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "repositories"
        constraints = [
            models.UniqueConstraint(
                "kind",
                "namespace",
                Lower("name"),
                condition=Q(deleted_at=None),
                name="repository_name_unique_without_case",
            ),
            models.UniqueConstraint(
                fields=["kind", "namespace", "mlflow_name"],
                condition=Q(deleted_at=None),
                name="repository_mlflow_name_unique",
            ),
            models.CheckConstraint(
                condition=Q(name__regex=NAME_PATTERN), name="repository_name_is_plain"
            ),
            models.CheckConstraint(condition=Q(kind__in=Kind.values), name="repository_kind_known"),
            models.CheckConstraint(
                condition=Q(visibility__in=Visibility.values), name="repository_visibility_known"
            ),
        ]
        indexes = [
            models.Index(Lower("name"), name="repository_lower_name"),
            # Without fastupdate no search ever walks a pending list; registrations are rare.
            GinIndex(
                OpClass("search_text", name="gin_trgm_ops"),
                name="repository_search_trigrams",
                fastupdate=False,
            ),
            GinIndex(fields=["search_vector"], name="repository_search_words", fastupdate=False),
            GinIndex(fields=["word_pairs"], name="repository_word_pairs", fastupdate=False),
            GinIndex(fields=["labels"], name="repository_labels"),
            models.Index(
                Upper("base_model"), condition=~Q(base_model=""), name="repository_upper_base"
            ),
            # Holds what facets count and what visibility asks, so that they leave the table alone.
            models.Index(
                fields=["kind", "namespace"],
                include=["id", "visibility", "task", "library", "license", "formats"],
                condition=Q(deleted_at=None),
                name="repository_facets",
            ),
            # The two filters that are used most, and often together with others.
            models.Index(
                fields=["task", "library"],
                condition=Q(deleted_at=None),
                name="repository_task",
            ),
            models.Index(
                fields=["kind", "-updated_at", "-id"],
                condition=Q(deleted_at=None),
                name="repository_recent",
            ),
            models.Index(
                fields=["kind", "-downloads_count", "-id"],
                condition=Q(deleted_at=None),
                name="repository_downloaded",
            ),
            models.Index(
                fields=["kind", "-created_at", "-id"],
                condition=Q(deleted_at=None),
                name="repository_new",
            ),
            models.Index(
                fields=["kind", "-quality", "-id"],
                condition=Q(deleted_at=None, quality__isnull=False),
                name="repository_best",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.namespace.slug}/{self.name}"

    @property
    def full_name(self) -> str:
        return f"{self.namespace.slug}/{self.name}"

    @property
    def etag(self) -> str:
        return f'"{self.pk}-{int(self.updated_at.timestamp() * 1_000_000):x}"'

    def may_be_named_in(self, place: "Namespace | Repository") -> bool:
        """Say whether a text that stays in `place` may name this.

        Rows are shown to whoever may see what they speak of, as it is then. What is written once
        is not: lines of the audit log, messages to webhooks, cards. So those name nothing but what
        everybody may know, and what lies in the same place as they do.
        """
        if self.deleted_at is None and self.visibility == Visibility.PUBLIC:
            return True
        return (self.pk if isinstance(place, Repository) else self.namespace_id) == place.pk

    def protects(self, alias: str) -> bool:
        """Say whether only maintainers move this alias; however its letters are written."""
        return any(fnmatchcase(alias.lower(), one.lower()) for one in self.protected_aliases)


class Redirect(models.Model):
    """A name that a repository used to have; reading it leads to the repository."""

    kind = models.CharField(max_length=8, choices=Kind)
    namespace = models.ForeignKey(Namespace, on_delete=models.CASCADE, related_name="+")
    name = models.CharField(max_length=96)
    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="redirects")
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint("kind", "namespace", Lower("name"), name="redirect_name_unique")
        ]

    def __str__(self) -> str:
        return f"{self.name} -> {self.repository_id}"


class Revision(models.Model):
    """A snapshot of a repository's files, named by 40 hex digits; the Hub calls it a commit."""

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="revisions")
    commit = models.CharField(max_length=40)
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="children"
    )
    author = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL)
    message = models.TextField(blank=True)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["repository", "commit"], name="revision_unique_per_repository"
            ),
            models.CheckConstraint(
                condition=Q(commit__regex=r"^[0-9a-f]{40}$"), name="revision_commit_is_hex"
            ),
        ]

    def __str__(self) -> str:
        return self.commit


class Ref(models.Model):
    """A branch, a tag or a proposal (`main`, `v1.0`, `refs/pr/1`) that points at a revision."""

    class Kind(models.TextChoices):
        BRANCH = "branch"
        TAG = "tag"
        PROPOSAL = "proposal"

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="refs")
    kind = models.CharField(max_length=8, choices=Kind, default=Kind.BRANCH)
    name = models.CharField(max_length=255)
    revision = models.ForeignKey(Revision, on_delete=models.PROTECT, related_name="refs")
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["repository", "name"], name="ref_unique_per_repository")
        ]

    def __str__(self) -> str:
        return self.name


class VersionQuerySet(models.QuerySet["Version"]):
    def visible_to(self, actor: Actor) -> Self:
        return self.filter(_visible(actor, "repository__"), deleted_at=None)

    def live(self) -> Self:
        return self.filter(deleted_at=None)

    def deleted_for(self, actor: Actor) -> Self:
        """Keep what was deleted of repositories that are still there and `actor` maintains."""
        return self.filter(
            _kept(actor, "repository__"), deleted_at__isnull=False, repository__deleted_at=None
        )

    def held(self) -> Self:
        """Keep those that must not vanish: an alias names them, they serve, a job reads them.

        Whatever else comes to use versions while they are there belongs in this condition.
        """
        named = Alias.objects.filter(version=OuterRef("pk"))
        reading = Q(read_by_jobs__state__in=("queued", "running"))
        serving = Q(deployments__isnull=False)
        return self.filter(Exists(named) | reading | serving).distinct()

    def main_line(self) -> Self:
        return self.filter(variant="")

    def usable(self) -> Self:
        return self.live().filter(state__in=[VersionState.READY, VersionState.DEPRECATED])

    def downloadable_by(self, actor: Actor) -> Self:
        """Keep those whose files `actor` may read: of archived ones, what they maintain."""
        seen = self.visible_to(actor)
        if actor.is_admin:
            return seen
        maintained = Q(repository__namespace_id__in=actor.namespaces_as(Role.MAINTAINER))
        maintained |= Q(repository_id__in=actor.repositories_as(Role.MAINTAINER))
        return seen.filter(~Q(state=VersionState.ARCHIVED) | maintained)

    def with_names(self) -> Self:
        return self.select_related("repository__namespace", "revision", "created_by", "job")


class Version(models.Model):
    """A numbered revision; a job's output is one with a `variant`, beside the main line."""

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    revision = models.ForeignKey(Revision, on_delete=models.PROTECT, related_name="versions")
    variant = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=16, choices=VersionState, default=VersionState.READY)
    state_reason = models.TextField(blank=True)
    # The same as registry.errors.pack writes it, where the registry itself gave the reason.
    state_reason_said = models.JSONField(null=True, blank=True)
    # When somebody deprecated or archived it, or took that back.
    state_changed_at = models.DateTimeField(null=True, blank=True)
    stage = models.CharField(max_length=16, choices=Stage, default=Stage.NONE)
    # Where the bytes came from, as a client said; an opaque string that is never opened.
    source = models.TextField(blank=True)
    message = models.TextField(blank=True)
    formats = ArrayField(models.CharField(max_length=16), default=list, blank=True)
    # {"inputs": [{name, dtype, shape}], "outputs": [...]}, from the file that runs.
    signature = models.JSONField(default=dict, blank=True)
    config = models.JSONField(default=dict, blank=True)
    parameters_count = models.BigIntegerField(null=True, blank=True)
    size_bytes = models.BigIntegerField(default=0)
    files_count = models.PositiveIntegerField(default=0)
    job = models.ForeignKey(
        "registry.Job", null=True, blank=True, on_delete=models.SET_NULL, related_name="versions"
    )
    created_by = models.ForeignKey(
        User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    updated_at = models.DateTimeField(default=timezone.now)
    deleted_at = models.DateTimeField(null=True, blank=True)

    objects = VersionQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["repository", "number"], name="version_number_unique_per_repository"
            ),
            # Running a job twice yields the same versions: one, or one for each variant.
            models.UniqueConstraint(
                fields=["repository", "job", "variant"],
                condition=~Q(job=None),
                name="version_variant_once_per_job",
            ),
            models.CheckConstraint(condition=Q(number__gte=1), name="version_number_from_one"),
            models.CheckConstraint(
                condition=Q(state__in=VersionState.values), name="version_state_known"
            ),
            models.CheckConstraint(condition=Q(stage__in=Stage.values), name="version_stage_known"),
        ]
        indexes = [
            models.Index(
                fields=["repository", "-number"],
                condition=Q(variant="", deleted_at=None),
                name="version_main_line",
            ),
            models.Index(
                fields=["repository", "-number"],
                condition=~Q(variant="") & Q(deleted_at=None),
                name="version_beside",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.repository}@{self.number}"

    @property
    def typed_reason(self) -> str:
        """What somebody typed as the reason of its state."""
        return "" if self.state_reason_said else self.state_reason

    @property
    def why(self) -> str | Text:
        """Why it is in its state: as somebody typed it, or as the registry says it."""
        return Saying(self.state_reason, self.state_reason_said).text

    @property
    def ref(self) -> str:
        return f"{self.repository.full_name}@{self.number}"

    @property
    def etag(self) -> str:
        return self.etag_of(self.pk, self.updated_at)

    @staticmethod
    def etag_of(number: int, updated_at: datetime) -> str:
        """Give the tag of a version that was read as a row."""
        return f'"v{number}-{int(updated_at.timestamp() * 1_000_000):x}"'

    @property
    def is_usable(self) -> bool:
        return self.state in {VersionState.READY, VersionState.DEPRECATED}


class Alias(models.Model):
    """A movable name for exactly one version (`champion`)."""

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=255)
    version = models.ForeignKey(Version, on_delete=models.PROTECT, related_name="aliases")
    updated_at = models.DateTimeField(default=timezone.now)

    # Whether a deployment follows it, where a list of aliases has looked.
    followed: bool = False

    class Meta:
        verbose_name_plural = "aliases"
        constraints = [
            models.UniqueConstraint(
                fields=["repository", "name"], name="alias_unique_per_repository"
            )
        ]

    def __str__(self) -> str:
        return self.name


# So much of the value of a tag is shown in lists.
LISTED_CHARACTERS = 256


class Tag(models.Model):
    """A key-value label on a repository or on one of its versions."""

    repository = models.ForeignKey(Repository, on_delete=models.CASCADE, related_name="tags")
    version = models.ForeignKey(
        Version, null=True, blank=True, on_delete=models.CASCADE, related_name="tags"
    )
    key = models.CharField(max_length=250)
    value = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["repository", "key"],
                condition=Q(version=None),
                name="tag_key_unique_on_repository",
            ),
            models.UniqueConstraint(
                fields=["version", "key"],
                condition=~Q(version=None),
                name="tag_key_unique_on_version",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


class DownloadCount(models.Model):
    """How often files of a version were downloaded on one day."""

    version = models.ForeignKey(Version, on_delete=models.CASCADE, related_name="download_counts")
    day = models.DateField()
    count = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["version", "day"], name="download_count_once_a_day")
        ]

    def __str__(self) -> str:
        return f"{self.version_id} {self.day}: {self.count}"
