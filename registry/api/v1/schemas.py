"""The bodies that the native API takes and gives; what programs may count on, field by field."""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from registry.api.v1.requests import Body, Query
from registry.errors import Unfit
from registry.recipes import REFERENCE_PATTERN
from registry.recipes.tuning import TunedRuntime
from registry.services.announcements import EVENTS
from registry.services.lineage import Relation
from registry.serving_options import ServingOptions

Counted = Annotated[int, Field(ge=0, lt=1 << 63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]
Reference = Annotated[str, Field(pattern=REFERENCE_PATTERN, examples=["samples/digits-cnn@1"])]
FullName = Annotated[str, Field(max_length=200, pattern=r"^[^/@]+/[^/@]+$")]
Visibility = Literal["public", "internal", "private"]
State = Literal["pending", "ready", "quarantined", "failed", "deprecated", "archived"]
RoleName = Literal["reader", "contributor", "maintainer", "owner"]
LineageRole = Literal["weights", "data", "teacher", "calibration", "merged"]


def _text_only(value: object) -> object:
    """Refuse what a lenient reader would take for an id or a time, such as a number."""
    if isinstance(value, str):
        return value
    raise Unfit("Must be a text.")


Id = Annotated[UUID, Field(strict=False), BeforeValidator(_text_only)]
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_text_only)]


class Answer(BaseModel):
    """What the API gives: each field is always there."""

    model_config = ConfigDict(extra="forbid")


# --- Problems --------------------------------------------------------------------------------


class FieldProblem(Answer):
    """`position` is the character of the field's text, from 0, where that is known."""

    field: str
    code: str
    detail: str
    position: int | None


class Problem(Answer):
    """RFC 9457; `code` is stable, `detail` is for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errors: list[FieldProblem]
    request_id: str


# --- Models and datasets ---------------------------------------------------------------------


class NewRepository(Body):
    namespace: str
    name: str
    visibility: Visibility = "public"
    summary: str = ""
    task: str = ""
    library: str = ""
    license: str = ""
    base_model: str = ""
    tags: dict[str, str] = {}


class RepositoryChanges(Body):
    """Only what is named changes."""

    name: str = Field(default_factory=str)
    visibility: Visibility = Field(default_factory=lambda: "private")
    summary: str = Field(default_factory=str)
    task: str = Field(default_factory=str)
    library: str = Field(default_factory=str)
    license: str = Field(default_factory=str)
    base_model: str = Field(default_factory=str)


class Quality(Answer):
    """How good the latest version is, by the first of the known metrics that it has."""

    metric: str
    value: float


class Repository(Answer):
    """A model or a dataset; lists cut the values of its tags at 256 characters."""

    kind: Literal["model", "dataset"]
    namespace: str
    name: str
    visibility: Visibility
    summary: str
    task: str
    library: str
    license: str
    base_model: str
    labels: list[str]
    tags: dict[str, str]
    formats: list[str]
    latest_version: int | None
    parameters_count: int | None
    size_bytes: int | None
    downloads: int
    quality: Quality | None
    created_at: datetime
    updated_at: datetime


class Similar(Answer):
    """One that may serve in the place of another, and why; the score only orders one list."""

    repository: Repository
    score: float
    reasons: list[str]


class SimilarPage(Answer):
    items: list[Similar]


class FacetCount(Answer):
    value: str
    count: int


class Facets(Answer):
    task: list[FacetCount]
    library: list[FacetCount]
    license: list[FacetCount]
    format: list[FacetCount]
    owner: list[FacetCount]
    total: int
    total_is_exact: bool


class Reading(Answer):
    """How the words of `q` were taken where not as they stand; `q` is what was looked for."""

    how: Literal["corrected", "some_words", "by_meaning"]
    q: str


class Suggestion(Answer):
    """One of the first that were found by relevance, and what it stands out by."""

    namespace: str
    name: str
    reasons: list[str]


class RepositoryPage(Answer):
    """`facets` and `suggestions` come with the first page, the latter where words are asked for.

    `reading` comes where nothing had the words as they stand.
    """

    items: list[Repository]
    next_cursor: str | None
    facets: Facets | None
    reading: Reading | None
    suggestions: list[Suggestion] | None


class Paging(Query):
    limit: int | None = Field(None, description="How many rows to give, 1 to 100; 20 unless told.")
    cursor: str = Field("", description="The `next_cursor` of the page before.")


class RepositorySearch(Paging):
    q: str = Field(
        "",
        description="Words, phrases and fields: `tiny task:translation params:<50M latency:<5ms`.",
    )
    task: str = ""
    library: str = ""
    license: str = ""
    format: str = Field("", description="A format among the files, such as `safetensors`.")
    owner: str = Field("", description="A namespace.")
    label: str = Field("", description="A tag of the card.")
    tag: list[str] = Field([], description="`key:value`; may be repeated.")
    min_params: int | None = None
    max_params: int | None = None
    max_bytes: int | None = None
    sort: str = Field(
        "", description="relevance, updated, created, downloads, name, size or quality."
    )


class NewSearch(Body):
    """A search to keep; `query` is what stands behind `?` in the address of its page."""

    kind: Literal["model", "dataset"] = "model"
    name: str = Field(max_length=100)
    query: str = Field(max_length=2000)


class SavedSearch(Answer):
    id: int
    kind: Literal["model", "dataset"]
    name: str
    query: str
    created_at: datetime


class SavedSearchPage(Answer):
    items: list[SavedSearch]
    next_cursor: str | None


class TagValue(Body):
    value: str


class Tag(Answer):
    key: str
    value: str


class AliasTarget(Body):
    """`expected_version` is where you saw the alias; it is refused when it moved meanwhile."""

    version: int = Field(ge=1, le=999_999_999)
    expected_version: int | None = Field(None, ge=1, le=999_999_999)
    reason: str = Field(
        "",
        description="Why a deployment that follows the alias is to serve what may not replace its "
        "version; of maintainers.",
    )


class Alias(Answer):
    alias: str
    version: int
    updated_at: datetime


class AliasList(Answer):
    items: list[Alias]
    next_cursor: None


class AliasProtection(Body):
    """Patterns of aliases, with `*` for any letters, that only maintainers move."""

    aliases: list[str] = Field(max_length=50)
    second_approver: bool = Field(
        default=False,
        description="Whether each move takes a proposal that somebody else approves; owners say.",
    )


class ProtectedAliases(Answer):
    aliases: list[str]
    second_approver: bool


class NewProposal(Body):
    """Ask to point an alias at a version; `null` asks to delete the alias."""

    alias: str
    version: Annotated[int, Field(ge=1, le=999_999_999)] | None
    message: str = ""


class Approval(Body):
    """`expected_version` is where you saw the alias; `null` when it did not exist."""

    expected_version: Annotated[int, Field(ge=1, le=999_999_999)] | None
    note: str = ""
    reason: str = Field(
        "",
        description="Why a deployment that follows the alias is to serve what may not replace its "
        "version.",
    )


class Note(Body):
    note: str = ""


class Proposal(Answer):
    """`present` is where the alias points now, `replaced` where it pointed when this was done."""

    number: int
    alias: str
    version: int | None
    present: int | None
    replaced: int | None
    message: str
    state: Literal["open", "approved", "declined", "withdrawn"]
    proposed_by: str | None
    decided_by: str | None
    note: str
    created_at: datetime
    decided_at: datetime | None


class ProposalPage(Answer):
    items: list[Proposal]
    next_cursor: str | None


class ProposalQuery(Paging):
    state: Literal["", "open", "approved", "declined", "withdrawn"] = ""
    alias: str = ""


# --- Versions --------------------------------------------------------------------------------


class NewFile(Body):
    """A file by the upload that brought it, or by the digest of bytes that you may read."""

    path: str
    upload: Id | None = None
    sha256: Sha256 | None = None


class NewParent(Body):
    """A version that this one came from."""

    kind: Literal["model", "dataset"] = "model"
    version: Reference
    role: LineageRole = "weights"


class NewVersion(Body):
    """Finished uploads under their paths; without files only the metadata is registered."""

    files: list[NewFile] = Field([], max_length=10_000)
    message: str = ""
    variant: str = ""
    source: str = ""
    tags: dict[str, str] = {}
    parents: list[NewParent] = Field([], max_length=100)


class VersionChanges(Body):
    """Only what is named changes; the files are frozen.

    To be deprecated takes a `state_reason`. `ready` takes a version out of the archive too, to
    where its files put it.
    """

    message: str = Field(default_factory=str)
    state: Literal["ready", "deprecated", "archived"] = Field(default_factory=lambda: "ready")
    state_reason: str = Field(default_factory=str)


class File(Answer):
    path: str
    size_bytes: int
    sha256: str


class InspectedFile(File):
    """A file and what its bytes are: `quarantined` ones can run code when they are opened.

    `imports` names what a pickle inside would load, as far as the sandbox has looked into it.
    """

    format: str
    verdict: Literal["safe", "opaque", "quarantined"]
    findings: list[str]
    imports: list[str]


class FileList(Answer):
    items: list[InspectedFile]
    next_cursor: str | None


class Derivative(Answer):
    """A file made from one of a version's, beside its frozen files."""

    path: str
    purpose: Literal["converted"]
    source_path: str
    toolchain: str
    size_bytes: int
    sha256: str
    created_at: datetime


class DerivativeList(Answer):
    """`screening` says how far the sandbox is with the version; null where there is no need.

    `reasons` maps paths to why they could not be converted.
    """

    items: list[Derivative]
    screening: Literal["waiting", "running", "done", "refused"] | None
    reasons: dict[str, str]


class Export(Answer):
    """A way out; `detail` says why it is not open to this version, and what to do.

    One that `takes_job` is a file that a job makes, once it is asked for; `job` is the one that is
    at it. One that `runs_code` is a program: load it only where you trust whoever made the version.
    """

    file: str
    url: str
    available: bool
    detail: str
    takes_job: bool
    can_be_made: bool
    can_be_deleted: bool
    runs_code: bool
    job: UUID | None
    size_bytes: int | None
    sha256: str | None
    toolchain: str


class NewExport(Body):
    file: str = Field(max_length=100, description="Such as `torchscript.pt`.")


class ExportList(Answer):
    items: list[Export]


class Version(Answer):
    kind: Literal["model", "dataset"]
    namespace: str
    name: str
    number: int
    variant: str
    revision: str
    state: State
    state_reason: str
    state_changed_at: datetime | None
    stage: str
    source: str
    message: str
    formats: list[str]
    signature: dict[str, Any]
    files: list[File]
    files_count: int
    parameters_count: int | None
    size_bytes: int
    aliases: list[str]
    tags: dict[str, str]
    job: UUID | None
    created_by: str | None
    created_at: datetime
    updated_at: datetime


class VersionPage(Answer):
    items: list[Version]
    next_cursor: str | None


class History(Paging):
    with_variants: bool = Field(
        default=True, description="Whether versions beside the main line are listed too."
    )
    state: str = ""
    with_archived: bool = Field(default=False, description="Whether archived ones are listed too.")


class RestoredVersion(Body):
    message: str = Field("", description="Why; it stands behind the number of the old version.")


class VersionName(Answer):
    kind: Literal["model", "dataset"]
    namespace: str
    name: str
    number: int
    variant: str


class Relative(VersionName):
    role: LineageRole
    job: UUID | None


class Lineage(Answer):
    version: VersionName
    parents: list[Relative]
    children: list[Relative]


class GraphQuery(Query):
    depth: int = Field(4, ge=1, le=10, description="How many steps to follow, each way.")


class GraphNode(VersionName):
    """`step` says how far it stands from the version asked about; origins are below zero."""

    step: int


class GraphEdge(Answer):
    """`recipe` and `job` are there for those who see the job.

    `verified` says whether running the recipe again gave the same bytes; null: nobody has tried.
    """

    child: str
    parent: str
    relation: Relation
    role: str
    job: UUID | None
    recipe: dict[str, Any] | None
    verified: bool | None
    reproduction: UUID | None


class LineageGraph(Answer):
    """Versions that others came from and that came from them, across models.

    `bases` are the models that cards name, the nearest first. `truncated`: there is more.
    """

    version: VersionName
    nodes: list[GraphNode]
    edges: list[GraphEdge]
    bases: list[str]
    truncated: bool


class FileChange(Answer):
    path: str
    before: File
    after: File


class FilesDiff(Answer):
    added: list[File]
    removed: list[File]
    changed: list[FileChange]
    unchanged_count: int


class TextChange(Answer):
    before: str
    after: str


class TagsDiff(Answer):
    added: dict[str, str]
    removed: dict[str, str]
    changed: dict[str, TextChange]


class NumberChange(Answer):
    before: float | None
    after: float | None


class MetricChange(NumberChange):
    metric: str
    unit: str
    split: str
    dataset: str | None


class MeasuredChange(MetricChange):
    """`better` is null where nothing changed, or nobody knows which way is up."""

    better: bool | None


class Fit(Answer):
    """`accepts`: whether the second takes and gives what the first does; null: nobody knows."""

    accepts: bool | None
    why: str | None


class ProposalInFull(Proposal):
    """With what was measured of the version the alias points at and of the proposed one.

    `signature` says whether callers of the former may be given the latter; null where the alias is
    new or is to be deleted.
    """

    metrics: list[MeasuredChange]
    signature: Fit | None


class DiffQuery(Query):
    repository: str = Field(
        "",
        max_length=200,
        description="namespace/name that the other version is of; empty: of the same.",
    )


class TextDiff(Answer):
    """A text that changed, as a unified diff; `why` says why it is not shown."""

    path: str
    lines: list[str]
    truncated: bool
    why: str | None


class SettingChange(Answer):
    """A value of config.json; null where it is not there. A text that reads as JSON has quotes."""

    name: str
    before: str | None
    after: str | None


class SignatureDiff(Answer):
    """`accepts`: whether the second takes and gives what the first does; null: nobody knows."""

    accepts: bool | None
    why: str | None
    before: dict[str, Any]
    after: dict[str, Any]


class WeightsSummary(Answer):
    """`relative` is the norm of the difference by the norm before, of all that can be compared."""

    tensors_count: int
    counts: dict[str, int]
    relative: float | None
    elements: int
    zeros_before: int
    zeros_after: int


class WeightFiles(Answer):
    before: list[str]
    after: list[str]


class KnownWeights(Answer):
    """`unknown` can be asked for with POST; `running` names the job; `impossible` says why.

    All weight files of one format are `compared`: `equal` says that those are the same, byte for
    byte. What holds weights in another format is `left_out`. Both are null where `impossible`.
    """

    state: Literal["equal", "known", "running", "unknown", "impossible"]
    why: str | None
    job: UUID | None
    size_bytes: int | None
    compared: WeightFiles | None
    left_out: WeightFiles | None
    summary: WeightsSummary | None


class TensorChange(Answer):
    """What became of one tensor; null where it is not there, or no row of numbers."""

    name: str
    state: Literal["equal", "changed", "recast", "reshaped", "renamed", "new", "gone"]
    name_before: str
    dtype_before: str
    dtype_after: str
    shape_before: list[int] | None
    shape_after: list[int] | None
    elements: int | None
    changed: int | None
    emptied: int | None = Field(description="Elements that were something and are zero now.")
    filled: int | None = Field(description="Elements that were zero and are something now.")
    relative: float | None
    max_change: float | None
    cosine: float | None
    norm_before: float | None
    norm_after: float | None
    zeros_before: int | None
    zeros_after: int | None
    odd_before: int | None = Field(description="Elements that are no finite number.")
    odd_after: int | None


class WeightsDiff(KnownWeights):
    tensors: list[TensorChange]


class Diff(Answer):
    """What changed from the first version to the second."""

    before: VersionName
    after: VersionName
    files: FilesDiff
    texts: list[TextDiff]
    config: list[SettingChange]
    tags: TagsDiff
    signature: SignatureDiff
    parameters_count: NumberChange
    size_bytes: NumberChange
    metrics: list[MetricChange]
    weights: KnownWeights


class SideBySideQuery(Query):
    version: list[str] = Field(
        [],
        max_length=100,
        description="Two to six, each once: a number, an `@alias`, `latest`, or "
        "`namespace/name@version` of another one.",
    )
    differences_only: bool = Field(default=False, description="Leave out lines that are alike.")


class SideBySideLine(Answer):
    """A value for each version, in their order; null where it has none.

    `best` marks where a number is best, where one knows which way is up; it is there for metrics,
    as are their unit and what they were measured on.
    """

    name: str
    values: list[Any]
    differs: bool
    best: list[bool] | None
    unit: str | None
    split: str | None
    dataset: str | None


class SideBySideSection(Answer):
    """`alike_count` are lines left out as asked; `cut_count` those past the first 1,000."""

    name: Literal["facts", "metrics", "tags", "config", "files"]
    lines: list[SideBySideLine]
    alike_count: int
    cut_count: int


class SideBySide(Answer):
    versions: list[VersionName]
    sections: list[SideBySideSection]


class NewEvaluation(Body):
    """A number that somebody declares; numbers of our own jobs are marked as measured."""

    metric: str = Field(min_length=1, max_length=64)
    value: float
    unit: str = Field("", max_length=32)
    split: str = Field("", max_length=64)
    n: Counted | None = None
    low: float | None = None
    high: float | None = None
    device: str = Field("", max_length=100)
    details: dict[str, Any] = {}
    dataset: Reference | None = None


class Evaluation(Answer):
    metric: str
    value: float
    unit: str
    split: str
    n: int | None
    low: float | None
    high: float | None
    device: str
    details: dict[str, Any]
    measured: bool
    dataset: str | None
    job: UUID | None
    created_by: str | None
    created_at: datetime


class EvaluationPage(Answer):
    items: list[Evaluation]
    next_cursor: str | None


class EvaluationQuery(Paging):
    metric: str = ""


class Tuning(Answer):
    """What a job found best; deployments on such machines go by it where they leave it open."""

    device_class: str = Field(description="The processor and its cores, or the GPU.")
    runtime: TunedRuntime
    threads: int
    max_batch_size: int
    summary: dict[str, Any] = Field(
        description="The aim, and each setting that was tried (`tried`) with its rows per second, "
        "the slowest and the fastest round, and milliseconds."
    )
    job: UUID | None
    created_by: str | None
    measured_at: datetime


class TuningList(Answer):
    items: list[Tuning]


class NewSignature(Body):
    """A bundle that `model_signing sign` wrote over the files exactly as they are here."""

    bundle: dict[str, Any] = Field(description="The content of the signature file.")
    public_key: str = Field(
        "", max_length=10_000, description="PEM; needed when a bare key made the signature."
    )


class Signature(Answer):
    id: int
    own: bool = Field(description="True for the one that this installation made.")
    method: Literal["key", "certificate", "sigstore"]
    fingerprint: str
    identity: str = Field(
        description="Whom the certificate names; who vouches for it is unchecked."
    )
    issuer: str
    public_key: str
    created_by: str | None
    created_at: datetime


class SignatureList(Answer):
    items: list[Signature]


# --- Webhooks --------------------------------------------------------------------------------


class NewWebhook(Body):
    """Tells an address what happens in a namespace, or to one model or dataset of it."""

    namespace: str | None = None
    model: FullName | None = Field(None, description="Only about this model, `namespace/name`.")
    dataset: FullName | None = Field(None, description="Only about this dataset.")
    url: str = Field(max_length=2000)
    events: list[str] = Field(min_length=1, max_length=50, description=", ".join(EVENTS))


class WebhookChanges(Body):
    url: str = Field("", max_length=2000)
    events: list[str] = Field([], max_length=50)
    is_active: bool = True


class WebhookQuery(Paging):
    namespace: str = ""


class Webhook(Answer):
    id: int
    namespace: str
    model: str | None
    dataset: str | None
    url: str
    events: list[str]
    is_active: bool
    inactive_reason: str
    created_by: str | None
    created_at: datetime
    updated_at: datetime


class MadeWebhook(Webhook):
    secret: str = Field(description="Signs the deliveries; shown this once.")


class WebhookPage(Answer):
    items: list[Webhook]
    next_cursor: str | None


class Delivery(Answer):
    id: int
    event: str
    state: Literal["waiting", "delivered", "failed"]
    attempts: int
    status: int | None = Field(description="What the address answered last.")
    problem: str
    duration_ms: int | None
    payload: dict[str, Any]
    due_at: datetime | None = Field(description="When the next attempt comes.")
    created_at: datetime
    ended_at: datetime | None


class DeliveryPage(Answer):
    items: list[Delivery]
    next_cursor: str | None


# --- Jobs ------------------------------------------------------------------------------------


class NewJob(Body):
    """`recipe` is one of the kinds under `recipes`, closed and bounded."""

    recipe: dict[str, Any]


class Progress(Answer):
    done: float
    total: float | None
    unit: str
    step: str


class Result(Answer):
    kind: Literal["model", "dataset"]
    namespace: str
    name: str
    number: int


class JobError(Answer):
    code: str
    detail: str


class Job(Answer):
    id: UUID
    kind: str
    namespace: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    waits: str | None = Field(description="Why it does not start, while others must end first.")
    queue: str
    recipe: dict[str, Any]
    reproduces: UUID | None = Field(
        description="The job that this one runs again; report.reproduction compares both."
    )
    part_of: UUID | None = Field(
        description="The job that this one is a part of; list its parts with ?part_of=."
    )
    part: int | None = Field(description="Its number among the parts, from 0.")
    progress: Progress
    result: Result | None = Field(description="Of several, the recommended one.")
    results: list[VersionName] = Field(description="All that it made, the recommended one first.")
    error: JobError | None
    report: dict[str, Any]
    attempts: int
    max_attempts: int
    worker: str
    cancel_requested: bool
    created_by: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Figure(Answer):
    """A number that probably lies between two; null where nobody knows."""

    low: float | None
    high: float | None
    grounds: str = Field(description="What it rests on.")


class MemoryFigure(Figure):
    limit: int | None = Field(description="What one job may hold here; null where nobody said.")
    fits: bool | None = Field(description="Whether it stays below the limit.")


class Waiting(Answer):
    before: int = Field(description="Jobs that wait in the same queue.")
    running: int
    workers: int = Field(description="Workers that serve the queue right now.")
    grounds: str


class QuotaAnswer(Answer):
    fits: bool | None = Field(description="Whether the namespace has room for the result.")
    grounds: str


class Estimate(Answer):
    recipe: dict[str, Any] = Field(description="As it would be queued, with exact versions.")
    queue: str
    seconds: Figure
    read_bytes: Figure
    result_bytes: Figure
    memory_bytes: MemoryFigure
    waiting: Waiting
    quota: QuotaAnswer


class JobPage(Answer):
    items: list[Job]
    next_cursor: str | None


class JobQuery(Paging):
    state: str = Field("", description="queued, running, succeeded, failed or cancelled.")
    kind: str = Field("", description="A kind of recipe.")
    namespace: str = ""
    part_of: UUID | None = Field(None, description="A job that was cut into parts: list those.")


class RecipeKind(Answer):
    kind: str
    title: str
    description: str
    produces: Literal["new_variant", "new_variants", "model", "dataset", "evaluations", "export"]


class RecipeKinds(Answer):
    items: list[RecipeKind]
    next_cursor: None


class RecipeSchema(BaseModel):
    """A JSON Schema; which one depends on the kind."""

    model_config = ConfigDict(extra="allow")

    title: str
    type: Literal["object"]
    properties: dict[str, Any]


# --- People ----------------------------------------------------------------------------------


class NewToken(Body):
    """A token reaches no further than its maker; it can be limited to one place."""

    name: str
    scopes: list[Literal["read", "write", "jobs", "admin"]] = ["read", "write", "jobs"]
    expires_at: Moment | None = None
    namespace: str | None = None
    model: FullName | None = None
    dataset: FullName | None = None


class Token(Answer):
    """`limited` is true also where the place that it is limited to may no longer be named."""

    id: int
    name: str
    prefix: str
    scopes: list[str]
    namespace: str | None
    model: str | None
    dataset: str | None
    limited: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class MadeToken(Token):
    """`token` is the secret; this is the only time it is shown."""

    token: str


class TokenPage(Answer):
    items: list[Token]
    next_cursor: str | None


class NewDirectUpload(Body):
    """A file to be sent straight to the bucket; with its sha256, other bytes are refused."""

    length: int
    filename: str = ""
    sha256: str = ""
    namespace: str = Field(
        "", description="Where the file is to go: what cannot fit there is refused at once."
    )


class PartNumbers(Body):
    numbers: list[int] = Field(min_length=1, max_length=100)


class SentPart(Body):
    """A part that arrived, with the ETag that the bucket answered."""

    number: int
    etag: str = Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")


class SentParts(Body):
    parts: list[SentPart] = Field(min_length=1, max_length=10_000)


class SignedPart(Answer):
    """Where a PUT of exactly `size_bytes` goes, until the time in `expires_at`."""

    number: int
    url: str
    size_bytes: int
    expires_at: datetime


class SignedParts(Answer):
    parts: list[SignedPart]


class DirectUpload(Answer):
    """`checking`: everything arrived, and a worker hashes it; only then it can be used."""

    id: UUID
    state: Literal["receiving", "checking", "complete", "failed"]
    filename: str
    length_bytes: int
    part_size_bytes: int
    parts_count: int
    sha256: str | None
    error: JobError | None
    expires_at: datetime


class NewNamespace(Body):
    slug: str
    display_name: str = ""


class Namespace(Answer):
    slug: str
    kind: Literal["person", "organisation"]
    display_name: str
    role: RoleName | None
    created_at: datetime


class NamespacePage(Answer):
    items: list[Namespace]
    next_cursor: str | None


class NamespaceChanges(Body):
    display_name: str


class Quota(Answer):
    used: int
    limit: int | None = Field(description="What holds here; null is no limit.")
    own: int | None = Field(
        description="What an administrator set here: null is the installation's default, 0 no "
        "limit."
    )


class Quotas(Answer):
    """Bytes of distinct files in versions that are there, such versions, jobs that run at once."""

    bytes: Quota
    versions: Quota
    jobs: Quota
    deployments: Quota


Limit = Annotated[int, Field(ge=0, le=1 << 60)]


class QuotaChanges(Body):
    """For each: a limit, 0 for none, null for the installation's default."""

    bytes: Limit | None = None
    versions: Limit | None = None
    jobs: Limit | None = None
    deployments: Limit | None = None


class Storage(Answer):
    """How the files of a namespace lie in the storage."""

    compress_weights: bool = Field(
        description="Whether weights of 16 bits are coded without loss where they lie."
    )
    saved_bytes: int = Field(
        description="What its files share with one another, which is stored once or will be soon, "
        "as it was last counted."
    )


class StorageChanges(Body):
    compress_weights: bool


class SharedBytes(Answer):
    kind: str
    namespace: str
    name: str
    number: int
    variant: str
    size_bytes: int = Field(
        description="What both versions have, which is stored once or will be soon."
    )


class VersionStorage(Answer):
    """What the files of a version take."""

    size_bytes: int
    shared: SharedBytes | None = Field(
        description="Of the versions just before it and of its parents, that with which it shares "
        "the most; null if it shares nothing."
    )


# --- Serving ---------------------------------------------------------------------------------

DeploymentRole = Literal["live", "canary", "shadow"]
Percent = Annotated[int, Field(ge=0, le=100)]


class NewEndpoint(Body):
    model: FullName
    name: str = Field("", description="Unless told, the model's own name.")
    sticky: bool = Field(
        default=False, description="Whether a caller keeps to the deployment that answered first."
    )


class EndpointChanges(Body):
    sticky: bool


class EndpointQuery(Paging):
    namespace: str = ""
    model: str = Field("", description="Only those of this model, `namespace/name`.")


class NewDeployment(Body):
    model: FullName
    version: str = Field(
        max_length=256,
        description="A number, `latest`, or an `@alias`, which the deployment then follows.",
    )
    endpoint: str = Field(
        "", description="A name in the model's namespace; made where there is none."
    )
    role: DeploymentRole = "live"
    weight: Percent | None = Field(
        None,
        description="How many percent of the requests it answers. Unless told: all for the first, "
        "1 for a canary, 0 for others, which then wait to be promoted.",
    )
    widens: bool = Field(
        default=False,
        description="Whether a canary goes on to 5, 25, 50 and 100 percent by itself while it does "
        "as well as the others, and gives its requests back when it does not.",
    )
    options: ServingOptions = ServingOptions()
    reason: str = Field(
        "", description="Deploys it although it does not take what callers send, and says why."
    )


class DeploymentChanges(Body):
    options: ServingOptions


class Traffic(Body):
    """Percent by the number of the deployment; those left out get none."""

    weights: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,17}$")], Percent] = Field(
        max_length=100
    )
    reason: str = Field(
        "",
        description="Why, for the history; lets a version begin to answer that may not by itself.",
    )


class RollBack(Body):
    reason: str = Field(
        "",
        description="Why, for the history; lets another version answer, where an alias has moved "
        "meanwhile to one that may not by itself.",
    )


ShadowVerdict = Literal["allow", "block", "undecided"]


class ShadowEvidence(Answer):
    """Copies of requests, how many were answered alike and in time, and what that allows."""

    compared: int
    agreed: int
    failed: int
    agreement: float | None
    latency_ratio: float | None = Field(
        description="How long it computes, as a share of what the live version takes."
    )
    timed: int = Field(
        description="Requests that it and the live version computed in batches of one size."
    )
    in_time: int = Field(
        description="Those of them that it computed in at most `time_percent` of the live "
        "version's time."
    )
    time_percent: int = Field(description="Its option `shadow_time_percent`.")
    agreement_verdict: ShadowVerdict = Field(
        description="Whether the answers prove that 95 percent agree."
    )
    latency_verdict: ShadowVerdict = Field(
        description="Whether the times prove that 75 percent are in time."
    )
    verdict: ShadowVerdict = Field(
        description="`allow` where both allow, `block` where one blocks."
    )


class Deployment(Answer):
    """`version` is what it serves now, null where its alias points at nothing."""

    id: int
    version: int | None
    alias: str | None = Field(description="The alias that it follows.")
    role: DeploymentRole
    weight: int
    widens: bool = Field(description="Whether it is a canary that is widening by itself.")
    shadow: ShadowEvidence | None = Field(
        description="What a shadow did beside the version that answers."
    )
    options: ServingOptions
    created_by: str | None
    created_at: datetime


class Promotion(Body):
    reason: str = Field(
        "", description="Promotes a shadow whose evidence does not allow it, and says why."
    )


class Endpoint(Answer):
    namespace: str
    name: str
    model: str
    sticky: bool
    deployments: list[Deployment]
    created_by: str | None
    created_at: datetime
    updated_at: datetime


class EndpointPage(Answer):
    items: list[Endpoint]
    next_cursor: str | None


class DeploymentStanding(Answer):
    """How one deployment is at one replica, and what it counted since that replica started."""

    deployment: int
    state: Literal["loading", "ready", "asleep", "failed"]
    detail: str
    runtime: str
    threads: int = Field(description="How many threads compute a batch there.")
    max_batch_size: int = Field(description="Up to how many rows go together there.")
    memory_bytes: int
    pending: int = Field(description="Requests that wait or run now.")
    requests: int
    failures: int
    mean_ms: float | None


class Replica(Answer):
    id: str
    host: str
    started_at: datetime | None
    deployments: list[DeploymentStanding]


class Standing(Answer):
    """The serving processes that were heard of within the last seconds."""

    replicas: list[Replica]


class NewPlace(Body):
    """The namespace that a repository moves to."""

    namespace: str


class Grant(Answer):
    username: str
    role: RoleName
    created_at: datetime


class GrantPage(Answer):
    items: list[Grant]
    next_cursor: str | None


class AccessOf(Answer):
    """A person's role on a repository, and whether the namespace or a grant gives it."""

    username: str
    role: RoleName
    by_namespace: RoleName | None
    by_grant: RoleName | None


class AccessList(Answer):
    """`visibility` says who sees the repository beside the people listed."""

    visibility: Visibility
    items: list[AccessOf]
    next_cursor: None


class NewAccessRequest(Body):
    """Ask for a role by name; the answer is the same whether or not the name names anything."""

    kind: Literal["namespace", "model", "dataset"] = "model"
    namespace: str = Field(min_length=1, max_length=64)
    name: str = Field("", max_length=96)
    role: RoleName = "reader"
    message: str = ""


class RequestApproval(Body):
    """`expected_role` is the role that you saw; it is refused when the asker changed it."""

    expected_role: RoleName
    note: str = ""


class AccessRequest(Answer):
    id: int
    username: str
    kind: Literal["namespace", "model", "dataset"]
    namespace: str
    name: str
    role: RoleName
    message: str
    state: Literal["open", "approved", "declined", "withdrawn", "ignored"]
    decided_by: str | None
    note: str
    created_at: datetime
    decided_at: datetime | None


class AccessRequestPage(Answer):
    items: list[AccessRequest]
    next_cursor: str | None


class AccessRequestQuery(Paging):
    to_decide: bool = Field(
        default=False, description="What you may decide, instead of what you asked for."
    )


class MemberRole(Body):
    role: RoleName


class Member(Answer):
    username: str
    role: RoleName
    created_at: datetime


class MemberPage(Answer):
    items: list[Member]
    next_cursor: str | None


class Restoration(Body):
    name: str | None = Field(None, description="Another name, when its own was taken meanwhile.")
    id: int | None = Field(
        None, description="Which one, of several that had this name; otherwise the last deleted."
    )


class Deleted(Answer):
    id: int
    kind: Literal["model", "dataset"]
    namespace: str
    name: str
    number: int | None = Field(description="Of a version; null for a whole model or dataset.")
    size_bytes: int
    deleted_at: datetime
    restorable_until: datetime


class DeletedPage(Answer):
    items: list[Deleted]
    next_cursor: str | None


class Place(Answer):
    slug: str
    role: RoleName


class Whoami(Answer):
    username: str
    is_admin: bool
    scopes: list[str]
    namespaces: list[Place]
    token: Token | None


class NewUser(Body):
    """Without a password the account waits for one, or for an identity provider."""

    username: str
    password: str | None = None
    email: str = ""
    is_admin: bool = False


class UserChanges(Body):
    is_active: bool | None = None
    is_admin: bool | None = None


class NewPassword(Body):
    password: str


class User(Answer):
    username: str
    email: str
    is_active: bool
    is_admin: bool
    has_password: bool
    has_second_factor: bool
    created_at: datetime
    last_sign_in_at: datetime | None


class UserPage(Answer):
    items: list[User]
    next_cursor: str | None


class Device(BaseModel):
    """What a worker computes on; further fields depend on the device."""

    model_config = ConfigDict(extra="allow")


class Sandbox(Answer):
    """How far a worker can contain files that run code.

    `landlock` is the version of that interface of the kernel, 0 where there is none; `user` is null
    where the worker has no right to choose another. What an insufficient one `lacks` is named.
    """

    level: Literal["full", "required", "insufficient"]
    landlock: int
    seccomp: bool
    user: bool | None
    network: bool
    lacks: str


class Worker(Answer):
    name: str
    queues: list[str]
    devices: list[Device]
    sandbox: Sandbox | None
    is_alive: bool
    started_at: datetime
    seen_at: datetime


class WorkerList(Answer):
    items: list[Worker]
    next_cursor: None


class EventFilter(Query):
    namespace: str = ""
    action: str = Field("", description="Such as `model.register`; a prefix ending in `.` too.")
    since: AwareDatetime | None = Field(None, description="The first moment that counts.")
    until: AwareDatetime | None = Field(None, description="The first moment that does not.")


class EventQuery(EventFilter, Paging):
    pass


class Event(Answer):
    at: datetime
    action: str
    actor: str
    token: int | None
    door: str
    ip: str | None
    request_id: str
    namespace: str | None
    target: str
    data: dict[str, Any]


class EventPage(Answer):
    items: list[Event]
    next_cursor: str | None


class Document(BaseModel):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow")

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
