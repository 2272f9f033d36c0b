"""Whether a recipe fits the versions that it names: what can be known is refused before it waits.

Headers and first lines of files tell a good deal (`registry.services.headers`). What only opening a
model tells, its job finds out, and fails with the reason before any step has worked.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from registry.errors import FieldError, Invalid
from registry.exports import EXPORTS
from registry.formats.weights import choose_weights
from registry.models import Version, openable_files
from registry.recipes import (
    BASE,
    OTHER,
    Cluster,
    Code,
    CompressRecipe,
    CompressStep,
    DiffRecipe,
    Distill,
    EvaluateRecipe,
    ExportRecipe,
    FixedPoint,
    InferRecipe,
    Merge,
    PackLinear,
    ProfileRecipe,
    PruneMagnitude,
    PruneStructured,
    Recipe,
    SearchRecipe,
    TrainRecipe,
    no_int4,
)
from registry.services.headers import (
    OF_ARCHITECTURE,
    DatasetHead,
    ModelHead,
    Shape,
    SplitHead,
    head_of,
    splits_of,
)
from registry.services.sizes import depth_of, makes_graph, student_parameters
from registry.services.workers import device_without_int4

_NEED_A_MODULE: Final = frozenset(
    {
        "merge",
        "train_quantized",
        "prune_structured",
        "prune_movement",
        "fine_tune",
        "svd",
        "distill",
        "extract_lora",
        "pack_linear",
    }
)
_ROUND: Final = frozenset(
    {"quantize_dynamic", "quantize_static", "quantize_weights", "train_quantized", "fixed_point"}
)
_CHANGE_A_GRAPH: Final = _ROUND | {"fuse", "prune_magnitude", "cluster"}
# How the types of columns and of what a graph takes compare: by kind of number.
_KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("F16", "F32", "F64", "float16", "float32", "float64"), "f"),
    **dict.fromkeys(("I8", "I16", "I32", "I64", "int8", "int16", "int32", "int64"), "i"),
    **dict.fromkeys(("U8", "uint8", "uint16", "uint32", "uint64"), "u"),
    **dict.fromkeys(("BOOL", "bool"), "b"),
}
_IMAGES: Final = frozenset({(28, 28), (1, 28, 28), (28, 28, 1), (784,)})
_STUDENTS: Final[Mapping[str, frozenset[str]]] = {
    "digits_cnn": frozenset({"channels", "hidden_size"}),
    "text_classifier": frozenset({"hidden_size", "embedding_size"}),
}
_SIZES: Final = ("layers", "channels", "hidden_size", "embedding_size")


def require_fit(recipe: Recipe, inputs: Mapping[str, Version]) -> None:
    """Pass unless something is known that would end the job in a refusal.

    Raises:
        Invalid: with the field of each thing that does not fit.

    """
    errors = list(_misfits(recipe, inputs))
    if errors:
        first = errors[0]
        raise Invalid(first.template, code=first.code, errors=errors, **first.values)


def _misfits(recipe: Recipe, inputs: Mapping[str, Version]) -> Iterator[FieldError]:
    if isinstance(recipe, TrainRecipe):
        yield from _lessons(recipe, inputs)
    if "model" not in inputs:
        return
    if isinstance(recipe, DiffRecipe):
        yield from _compared(inputs)
        return
    trains = isinstance(recipe, CompressRecipe | SearchRecipe | ExportRecipe)
    head = head_of(inputs["model"], trainable=trains)
    if head.is_packed:
        yield from _packed(recipe, head)
    if isinstance(recipe, TrainRecipe):
        yield from _continued(head)
        return
    if isinstance(recipe, ExportRecipe):
        yield from _exported(head)
    elif isinstance(recipe, CompressRecipe):
        yield from _steps(recipe, head)
        yield from _without_device(recipe)
        yield from _merged(recipe, head, inputs)
    elif isinstance(recipe, SearchRecipe):
        yield from _goal(recipe, head)
    if head.reads is not None and "dataset" in inputs:
        yield from _rows(recipe, head, splits_of(inputs["dataset"]))


def _continued(head: ModelHead) -> Iterator[FieldError]:
    if head.is_graph or head.is_encoder or head.is_program:
        yield FieldError(
            "model",
            "unknown_architecture",
            "{version} has no architecture of this registry, so it cannot be trained further: "
            "choose one that was trained here.",
            version=head.version.ref,
        )


def _exported(head: ModelHead) -> Iterator[FieldError]:
    if head.is_graph:
        yield FieldError(
            "model",
            "needs_module",
            "{version} is an ONNX graph, and no program of torch can be made of one: take it as "
            "{ways}, or choose the version that it was made from.",
            version=head.version.ref,
            ways=", ".join(EXPORTS),
        )


def _compared(inputs: Mapping[str, Version]) -> Iterator[FieldError]:
    """Refuse two versions of which one has nothing to compare, or that are one and the same."""
    before, after = inputs[BASE], inputs["model"]
    if before == after:
        yield FieldError(BASE, "same_version", "Both are the same version: choose another one.")
        return
    files = openable_files([before, after])
    chosen = choose_weights(files[before.pk], files[after.pk])
    for field, version, one in zip((BASE, "model"), (before, after), chosen, strict=True):
        if not one.paths:
            yield FieldError(
                field,
                "no_weights",
                "{version} has no safetensors, myz or ONNX file whose weights could be compared.",
                version=version.ref,
            )


def _packed(recipe: Recipe, head: ModelHead) -> Iterator[FieldError]:
    coding = isinstance(recipe, CompressRecipe) and all(
        isinstance(step, Code) for step in recipe.steps
    )
    if isinstance(recipe, TrainRecipe | CompressRecipe | SearchRecipe) and not coding:
        yield FieldError(
            "model",
            "already_quantized",
            "The linear layers of {version} are packed, and nothing but coding can be done to "
            "them: choose the version that it was made from.",
            version=head.version.ref,
        )


# --- Steps ---------------------------------------------------------------------------------------


def _steps(recipe: CompressRecipe, head: ModelHead) -> Iterator[FieldError]:
    """Follow the model through the steps: what it is by then decides what can be done to it."""
    graph = head.version.ref if head.is_graph else ""
    rounded = head.quantized_by[-1] if head.quantized_by else ""
    for at, step in enumerate(recipe.steps):
        field = f"steps.{at}.method"
        if graph and (step.method in _NEED_A_MODULE or _stays_module(step)):
            yield _needs_module(field, step.method, "" if head.is_graph else graph, head)
        if graph and step.method == "export_onnx":
            yield FieldError(
                field, "already_onnx", "The model is in ONNX already: leave this step out."
            )
        if graph and isinstance(step, PruneMagnitude | Cluster) and step.needs_rows:
            yield FieldError(
                field,
                "needs_module",
                "{method} cannot train an ONNX file. Set its epochs to 0 (and leave embedding "
                "tables alone) to change the weights at once, or choose the version that the file "
                "was made from.",
                method=step.method,
            )
        if rounded and graph and step.method in _CHANGE_A_GRAPH:
            yield FieldError(
                field,
                "already_quantized",
                "The model is quantized already, by {method}: keep one such step, or choose the "
                "version that it was made from.",
                method=rounded,
            )
        if isinstance(step, Distill):
            yield from _student(at, step, head)
        if isinstance(step, PruneStructured) and head.is_program:
            yield FieldError(
                field,
                "fixed_shapes",
                "The shapes of an exported program are written into its graph, so no channel or "
                "unit can be taken out of it: use prune_magnitude or svd, or export a smaller "
                "model.",
            )
        if makes_graph(step):
            graph = graph or step.method
            rounded = step.method if step.method in _ROUND else rounded


def _without_device(recipe: CompressRecipe) -> Iterator[FieldError]:
    """Refuse what no device that would take the job computes."""
    packs = [
        at
        for at, step in enumerate(recipe.steps)
        if isinstance(step, PackLinear) and step.bits == 4
    ]
    device = device_without_int4(recipe.device) if packs else ""
    said = no_int4(device)
    for at in packs if device else ():
        yield FieldError(f"steps.{at}.bits", "no_int4", said.template, **said.values)


def _needs_module(field: str, method: str, earlier: str, head: ModelHead) -> FieldError:
    if earlier:
        return FieldError(
            field,
            "needs_module",
            "{later} changes the weights of a torch model: put it before {earlier}, which makes an "
            "ONNX file of it.",
            later=method,
            earlier=earlier,
        )
    return FieldError(
        field,
        "needs_module",
        "{method} changes the weights of a torch model, and {version} is an ONNX graph: choose the "
        "version that it was made from.",
        method=method,
        version=head.version.ref,
    )


def _stays_module(step: CompressStep) -> bool:
    return isinstance(step, FixedPoint) and step.keep_module


def _student(at: int, step: Distill, head: ModelHead) -> Iterator[FieldError]:
    """Refuse a student that its kind of model cannot be, or that is larger than its teacher."""
    asked = [name for name in _SIZES if getattr(step, name) is not None]
    if head.is_program:
        for name in asked:
            yield FieldError(
                f"steps.{at}.{name}",
                "fixed_shapes",
                "The shapes of an exported program are written into its graph, so no student of "
                "another size can be built: leave the sizes empty, and what earlier steps left is "
                "the student.",
            )
        return
    kind = "sentence encoder" if head.is_encoder else str(head.architecture.get("name", ""))
    if not kind:
        return
    known = frozenset({"layers"}) if head.is_encoder else _STUDENTS[kind]
    for name in asked:
        if name not in known:
            yield FieldError(
                f"steps.{at}.{name}",
                "bad_student",
                "A {kind} has no {field}: leave that size of the student empty.",
                kind=kind,
                field=name,
            )
    for name in ("hidden_weight", "attention_weight"):
        if not head.is_encoder and getattr(step, name):
            yield FieldError(
                f"steps.{at}.{name}",
                "bad_student",
                "Only encoders have hidden states and attention to learn from: set both weights to "
                "0.",
            )
    yield from _too_large(at, step, head, asked)


def _too_large(
    at: int, step: Distill, head: ModelHead, asked: Sequence[str]
) -> Iterator[FieldError]:
    depth, layers = depth_of(head), step.layers
    if depth is not None and layers is not None and layers >= depth:
        yield FieldError(
            f"steps.{at}.layers",
            "student_too_large",
            "The teacher has {teacher} layers; a student with {student} would not be smaller.",
            teacher=depth,
            student=layers,
        )
    teacher, student = head.version.parameters_count, student_parameters(step, head)
    if teacher and student and student > teacher:
        yield FieldError(
            f"steps.{at}.{asked[0]}",
            "student_too_large",
            "The student has {student} parameters and its teacher {teacher}: make it smaller.",
            student=student,
            teacher=teacher,
        )


def _merged(
    recipe: CompressRecipe, head: ModelHead, inputs: Mapping[str, Version]
) -> Iterator[FieldError]:
    """Compare the weights that are to be merged, name by name."""
    if not any(isinstance(step, Merge) for step in recipe.steps):
        return
    own = _shapes(head)
    for role, version in inputs.items():
        if not role.startswith(OTHER):
            continue
        other, field = head_of(version, trainable=True), recipe.field_of(role)
        there = _shapes(other)
        if other.is_graph:
            yield FieldError(
                field,
                "needs_module",
                "{other} is an ONNX file: choose the version that it was made from, which still "
                "has the weights of a torch model.",
                other=version.ref,
            )
        elif version == head.version:
            yield FieldError(
                field,
                "cannot_merge",
                "{other} is the model itself; name versions that were tuned from it.",
                other=version.ref,
            )
        elif own and there and own != there:
            name = min(name for name in own | there if own.get(name) != there.get(name))
            yield FieldError(
                field,
                "cannot_merge",
                "{other} has other weights than {version}, such as {name}: only versions of one "
                "architecture can be merged.",
                other=version.ref,
                version=head.version.ref,
                name=name,
            )


def _shapes(head: ModelHead) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in head.tensors or ()}


# --- Goals ---------------------------------------------------------------------------------------


def _goal(recipe: SearchRecipe, head: ModelHead) -> Iterator[FieldError]:
    (asked,) = recipe.steps
    if head.answers == "classes":
        vectors = {
            "min_cosine": asked.min_cosine is not None,
            "min_neighbour_overlap": asked.min_neighbour_overlap is not None,
            "probe": asked.probe,
        }
        for name in (name for name, is_asked in vectors.items() if is_asked):
            yield FieldError(
                f"steps.0.{name}",
                "unfit_goal",
                "{version} answers classes: leave this empty, and say how much accuracy may be "
                "lost.",
                version=head.version.ref,
            )
    elif head.answers is not None and not asked.probe:
        answers = {
            "max_accuracy_loss": asked.max_accuracy_loss is not None,
            "min_accuracy": asked.min_accuracy is not None,
        }
        for name in (name for name, is_asked in answers.items() if is_asked):
            yield FieldError(
                f"steps.0.{name}",
                "unfit_goal",
                "{version} has no classes, so no accuracy either: ask for a cosine or an overlap "
                "of neighbours, or switch the probe on, which needs a labelled dataset.",
                version=head.version.ref,
            )


# --- Rows ----------------------------------------------------------------------------------------


class _Use(NamedTuple):
    """A split that a job reads, and the field of the recipe that names it."""

    split: str
    field: str
    label: str | None
    """The column of labels, where they are needed."""
    named: Mapping[str, str]


def _rows(recipe: Recipe, head: ModelHead, dataset: DatasetHead) -> Iterator[FieldError]:
    if not dataset.splits:
        yield _unreadable(dataset)
        return
    if isinstance(recipe, CompressRecipe):
        yield from _measured_elsewhere(recipe, dataset)
    seen: set[tuple[str, str]] = set()
    for use in _uses(recipe, head, dataset):
        for error in _misfits_of_split(use, head, dataset):
            if (error.field, error.detail) not in seen:
                seen.add((error.field, error.detail))
                yield error


def _uses(recipe: Recipe, head: ModelHead, dataset: DatasetHead) -> Iterable[_Use]:
    classes = head.answers == "classes"
    if isinstance(recipe, CompressRecipe):
        label = head.columns.get("label", "label") if classes else None
        yield _Use(recipe.measured_split(dataset.splits), "test_split", label, head.columns)
        if any(getattr(step, "needs_rows", False) for step in recipe.steps):
            yield _Use(recipe.train_split, "train_split", label, head.columns)
        if any(getattr(step, "works_uncalibrated", "") for step in recipe.steps):
            yield _Use(recipe.train_split, "train_split", None, head.columns)
    elif isinstance(recipe, SearchRecipe):
        (asked,) = recipe.steps
        column = head.columns.get("label", asked.label_column)
        label = column if classes or asked.probe else None
        for name in ("train_split", "test_split"):
            yield _Use(getattr(asked, name), f"steps.0.{name}", label, head.columns)
    elif isinstance(recipe, EvaluateRecipe | InferRecipe | ProfileRecipe):
        (step,) = recipe.steps
        named = {"text": step.text_column, "image": step.image_column}
        label = step.label_column if classes and recipe.kind != "infer" else None
        splits = dataset.splits if step.split is None else (step.split,)
        for split in splits:
            yield _Use(split, "steps.0.split", label, named)


def _lessons(recipe: TrainRecipe, inputs: Mapping[str, Version]) -> Iterator[FieldError]:
    """Look for the splits of a training, and in them for the columns that it names."""
    reads = _learned_from(recipe, inputs)
    dataset = splits_of(inputs["dataset"])
    if not dataset.splits:
        yield _unreadable(dataset)
        return
    (step,) = recipe.steps
    # What is measured on may be missing; what is learned from may not.
    parts = {"train_split": step.train_split}
    if step.test_split is not None and step.test_split in dataset.splits:
        parts["test_split"] = step.test_split
    columns = {"image": "image_column", "words": "text_column"}
    fields = [columns[reads], "label_column"] if reads in columns else ["label_column"]
    seen: set[str] = set()
    for part, name in parts.items():
        split = dataset.splits.get(name)
        if split is None:
            yield _no_split(f"steps.0.{part}", name, dataset)
            continue
        for field in fields:
            column = getattr(step, field)
            if field not in seen and not _has(split, column):
                seen.add(field)
                yield FieldError(
                    f"steps.0.{field}",
                    "missing_column",
                    "{file} of {dataset} has no column {column!r}; it has {columns}. Name one of "
                    "these, or choose another dataset.",
                    file=split.file,
                    dataset=dataset.version.ref,
                    column=column,
                    columns=_names(split),
                )


def _learned_from(recipe: TrainRecipe, inputs: Mapping[str, Version]) -> str | None:
    """Tell what a model that is trained reads; None where nobody knows."""
    if recipe.architecture is not None:
        return OF_ARCHITECTURE.get(recipe.architecture.name)
    return head_of(inputs["model"]).reads if "model" in inputs else None


def _measured_elsewhere(recipe: CompressRecipe, dataset: DatasetHead) -> Iterator[FieldError]:
    if recipe.looks_at_rows and recipe.measured_split(dataset.splits) == recipe.train_split:
        yield FieldError(
            "test_split",
            "missing_split",
            "The dataset has no split {test} to measure on, and its rows to learn from would "
            "not do: add one.",
            test=recipe.test_split,
        )


def _misfits_of_split(use: _Use, head: ModelHead, dataset: DatasetHead) -> Iterator[FieldError]:
    split = dataset.splits.get(use.split)
    if split is None:
        yield _no_split(use.field, use.split, dataset)
        return
    if split.is_tensors and head.reads in {"words", "wordpieces"}:
        yield FieldError(
            "dataset",
            "bad_column",
            "{file} holds tensors; a text model needs CSV or JSON lines.",
            file=split.file,
        )
        return
    for column in head.columns_read(use.named):
        if not _has(split, column):
            yield _lacks(split, column, dataset, head)
        elif column in split.tensors:
            yield from _unlike(split.tensors[column], split, head)
    if use.label is not None and not _has(split, use.label):
        yield FieldError(
            "dataset",
            "missing_column",
            "{file} of {dataset} has no column {column!r} with labels, which {version} is measured "
            "by; it has {columns}. Choose a labelled dataset.",
            file=split.file,
            dataset=dataset.version.ref,
            column=use.label,
            version=head.version.ref,
            columns=_names(split),
        )


def _unreadable(dataset: DatasetHead) -> FieldError:
    return FieldError(
        "dataset",
        "unsupported_format",
        "The dataset {dataset} has no file that can be read; add train.safetensors, "
        "train.parquet, train.csv or train.jsonl.",
        dataset=dataset.version.ref,
    )


def _no_split(field: str, split: str, dataset: DatasetHead) -> FieldError:
    return FieldError(
        field,
        "missing_split",
        "{dataset} has no split {split!r}; name one of these: {splits}.",
        dataset=dataset.version.ref,
        split=split,
        splits=", ".join(dataset.splits),
    )


def _has(split: SplitHead, column: str) -> bool:
    """Say whether a split may have a column: what nobody knows is no reason to refuse."""
    return split.columns is None or column in split.columns


def _lacks(split: SplitHead, column: str, dataset: DatasetHead, head: ModelHead) -> FieldError:
    return FieldError(
        "dataset",
        "missing_column",
        "{file} of {dataset} has no column {column!r}, which {version} reads; it has {columns}. "
        "Choose another dataset, or rename the column.",
        file=split.file,
        dataset=dataset.version.ref,
        column=column,
        version=head.version.ref,
        columns=_names(split),
    )


def _names(split: SplitHead) -> str:
    names = list(split.columns or ())
    return ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")


def _unlike(column: Shape, split: SplitHead, head: ModelHead) -> Iterator[FieldError]:
    """Compare a column of numbers with what the model takes."""
    row = column.shape[1:]
    if head.reads == "image":
        if column.dtype != "U8" or row not in _IMAGES:
            yield FieldError(
                "dataset",
                "bad_column",
                "Column {column!r} of {file} must be uint8 [rows, 28, 28], not {found}.",
                column=column.name,
                file=split.file,
                found=f"{column.dtype} {list(column.shape)}",
            )
        return
    port = next((port for port in head.inputs if port["name"] == column.name), None)
    if port is None:
        return
    wanted = port["shape"][1:]
    fits = len(row) == len(wanted) and all(
        not isinstance(size, int) or size in {found, -1}
        for size, found in zip(wanted, row, strict=False)
    )
    kinds = _KINDS.get(column.dtype), _KINDS.get(str(port["dtype"]))
    if not fits or (None not in kinds and kinds[0] != kinds[1]):
        yield FieldError(
            "dataset",
            "bad_column",
            "Column {column!r} of {file} is {found}, and {version} takes {dtype} {axes}: choose "
            "rows of that shape and type.",
            column=column.name,
            file=split.file,
            found=f"{column.dtype} {list(column.shape)}",
            version=head.version.ref,
            dtype=port["dtype"],
            axes=list(port["shape"]),
        )
