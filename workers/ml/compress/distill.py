"""Distillation: a student learns to answer as its teacher does (Hinton et al. 2015).

For classes the loss is `mix * T**2 * KL(teacher / T || student / T) + (1 - mix) * cross-entropy`.
For sentence encoders it is one minus the cosine of both vectors and, where asked for, the distance
of hidden states and of attention (Sun et al. 2019, Jiao et al. 2020).
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from registry import recipes
from registry.errors import Invalid
from workers.ml.architectures import build, read_parameters
from workers.ml.architectures.sentence_encoder import SentenceEncoder
from workers.ml.compress.bench import Bench, Control
from workers.ml.compress.learn import (
    Lessons,
    answers_of,
    open_lessons,
    parent_module,
    train_module,
)
from workers.ml.compress.prune import KeepZeros
from workers.ml.program import Program
from workers.ml.structure import KEY
from workers.ml.train.examples import TaughtExamples
from workers.ml.train.goals import Classify, MatchVectors, Tensors

SCRATCH = "scratch_control"
LABELS_ALONE = "labels_control"
_SIZES = ("channels", "hidden_size", "embedding_size", "layers")
_DEPTHS = ("num_hidden_layers", "n_layers")


# --- goals --------------------------------------------------------------------------------------


def distillation_loss(
    student_BK: Tensor, teacher_BK: Tensor, labels_B: Tensor, temperature: float, mix: float
) -> Tensor:
    """Mix the teacher's softened answers with the labels; a float32 scalar."""
    soft = functional.kl_div(
        functional.log_softmax(student_BK / temperature, dim=1),
        functional.log_softmax(teacher_BK / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    hard = functional.cross_entropy(student_BK, labels_B)
    return mix * temperature**2 * soft + (1 - mix) * hard


class AnswerLikeTeacher(Classify):
    """Targets are the labels and the teacher's logits; assessed by the labels alone."""

    def __init__(self, temperature: float, mix: float) -> None:
        super().__init__()
        self._temperature, self._mix = temperature, mix

    def loss(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        labels_B, teacher_BK = targets
        logits_BK = module(*inputs).float()
        return distillation_loss(logits_BK, teacher_BK, labels_B, self._temperature, self._mix)


class ThinkLikeTeacher(MatchVectors):
    """Matches the teacher's vectors, and the states of its layers and its attention on the way.

    Each layer of the student is compared with the one of the teacher that stands as deep; heads
    are averaged, so that their number may differ.
    """

    def __init__(self, teacher: SentenceEncoder, hidden: float, attention: float) -> None:
        self._teacher, self._hidden, self._attention = teacher, hidden, attention

    def loss(self, module: nn.Module, inputs: Tensors, targets: Tensors) -> Tensor:
        assert isinstance(module, SentenceEncoder)
        learned = module.look_inside(inputs)
        with torch.no_grad():
            taught = self._teacher.look_inside(inputs)
        found_BH = learned.vector.float()
        loss: Tensor = (1 - torch.cosine_similarity(found_BH, targets[0].float(), dim=1)).mean()
        mask_BL = inputs[1].to(found_BH.dtype)
        if self._hidden:
            states = zip(*_same_depth(learned.states, taught.states), strict=True)
            parts = [((a - b) ** 2).mean(2) for a, b in states]
            loss = loss + self._hidden * _mean(parts, mask_BL)
        if self._attention:
            looks = zip(*_same_depth(learned.attention, taught.attention), strict=True)
            parts = [((a.mean(1) - b.mean(1)) ** 2).sum(2) for a, b in looks]
            loss = loss + self._attention * _mean(parts, mask_BL)
        return loss


def _same_depth(
    student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    at = [round((place + 1) * len(teacher) / len(student)) - 1 for place in range(len(student))]
    return list(student), [teacher[place] for place in at]


def _mean(parts: list[Tensor], mask_BL: Tensor) -> Tensor:
    """Average over layers and real tokens; padding says nothing."""
    found: Tensor = (torch.stack(parts) * mask_BL).sum() / (len(parts) * mask_BL.sum())
    return found


# --- students -----------------------------------------------------------------------------------


def fewer_layers(encoder: SentenceEncoder, layers: int) -> tuple[SentenceEncoder, list[int]]:
    """Copy an encoder with some of its layers, evenly spaced from the first to the last.

    Raises:
        Invalid: it has no more layers than that, or none that can be found.

    """
    name, stack = _layers_of(encoder)
    if layers >= len(stack):
        raise Invalid(
            "The teacher has {teacher} layers; a student with {student} would not be smaller.",
            code="student_too_large",
            teacher=len(stack),
            student=layers,
        )
    if layers == 1:
        kept = [0]
    else:
        kept = [round(at * (len(stack) - 1) / (layers - 1)) for at in range(layers)]
    student = copy.deepcopy(encoder)
    above, _, own = name.rpartition(".")
    chosen = nn.ModuleList(student.get_submodule(name)[at] for at in kept)  # type: ignore[index]  # a ModuleList
    setattr(student.get_submodule(above), own, chosen)
    config: Any = student.encoder.config
    for key, value in _depth_config(config.to_dict(), kept).items():
        setattr(config, key, value)
    return student, kept


def _layers_of(encoder: SentenceEncoder) -> tuple[str, nn.ModuleList]:
    config: Any = encoder.encoder.config
    depth = getattr(config, _depth_key(config.to_dict()))
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise Invalid("The layers of this encoder cannot be told apart.", code="cannot_distill")


def _depth_key(config: Mapping[str, Any]) -> str:
    for key in _DEPTHS:
        if key in config:
            return key
    raise Invalid("The layers of this encoder cannot be told apart.", code="cannot_distill")


def _depth_config(config: Mapping[str, Any], kept: list[int]) -> dict[str, Any]:
    """Say in config.json's words which layers are left: how many, and of which type each is."""
    changed: dict[str, Any] = {_depth_key(config): len(kept)}
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) > max(kept):
        changed["layer_types"] = [types[at] for at in kept]
    return changed


def _sizes(step: recipes.Distill) -> dict[str, int]:
    return {name: getattr(step, name) for name in _SIZES if getattr(step, name) is not None}


def _parameters(sizes: Mapping[str, int], bench: Bench) -> recipes.Architecture:
    """Change the parent's architecture to the sizes of a student."""
    given = read_parameters(bench.given.config["architecture"])
    if unknown := sorted(sizes.keys() - type(given).model_fields.keys()):
        raise Invalid(
            "A {kind} has no {field}: leave that size of the student empty.",
            code="bad_student",
            kind=given.name,
            field=unknown[0],
        )
    return read_parameters({**given.model_dump(mode="json"), **sizes})


def check_student(step: recipes.Distill, bench: Bench) -> None:
    """Refuse a student that is larger than its teacher, before anything is trained.

    Raises:
        Invalid: more parameters or layers than the parent, or a size that its kind lacks.

    """
    sizes = _sizes(step)
    teacher = parent_module(bench)
    if isinstance(teacher, SentenceEncoder):
        if odd := sorted(sizes.keys() - {"layers"}):
            raise Invalid(
                "A {kind} has no {field}: leave that size of the student empty.",
                code="bad_student",
                kind="sentence encoder",
                field=odd[0],
            )
        if "layers" in sizes:
            _check_depth(sizes["layers"], len(_layers_of(teacher)[1]))
        return
    if isinstance(teacher, Program) and sizes:
        raise Invalid(
            "The shapes of an exported program are written into its graph, so no student of "
            "another size can be built: leave the sizes empty, and what earlier steps left is the "
            "student.",
            code="fixed_shapes",
        )
    if step.hidden_weight or step.attention_weight:
        raise Invalid(
            "Only encoders have hidden states and attention to learn from: set both weights to 0.",
            code="bad_student",
        )
    if sizes:
        with torch.device("meta"):
            student = build(_parameters(sizes, bench), classes=len(bench.parent.labels))
        _check_size(student, teacher)


def _check_depth(student: int, teacher: int) -> None:
    if student >= teacher:
        raise Invalid(
            "The teacher has {teacher} layers; a student with {student} would not be smaller.",
            code="student_too_large",
            teacher=teacher,
            student=student,
        )


def _check_size(student: nn.Module, teacher: nn.Module) -> None:
    sizes = [sum(p.numel() for p in module.parameters()) for module in (student, teacher)]
    if sizes[0] > sizes[1]:
        raise Invalid(
            "The student has {student} parameters and its teacher {teacher}: make it smaller.",
            code="student_too_large",
            student=sizes[0],
            teacher=sizes[1],
        )


def _student(step: recipes.Distill, bench: Bench) -> nn.Module:
    """Build the student, or take what is on the bench; say in the result's config what it is."""
    module = bench.need_module("Distillation").cpu()
    sizes = _sizes(step)
    if not sizes:
        return module
    if isinstance(module, SentenceEncoder):
        student, kept = fewer_layers(module, sizes["layers"])
        stack = _layers_of(module)[0].removeprefix("encoder.")
        bench.structure = _renumbered(bench.structure, stack, kept)
        bench.config = {**bench.config, **_depth_config(bench.given.config, kept)}
        return student
    parameters = _parameters(sizes, bench)
    bench.structure = []
    bench.config = {**bench.config, "architecture": parameters.model_dump(mode="json")}
    return build(parameters, classes=len(bench.parent.labels), seed=bench.recipe.seed)


def _renumbered(
    structure: list[dict[str, Any]], stack: str, kept: list[int]
) -> list[dict[str, Any]]:
    """Follow changed layers to their new places, and forget those that are gone."""
    place = {f"{stack}.{old}.": f"{stack}.{new}." for new, old in enumerate(kept)}
    changes = []
    for change in structure:
        names = []
        for name in change["layers"]:
            if not name.startswith(f"{stack}."):
                names.append(name)
                continue
            for old, new in place.items():
                if name.startswith(old):
                    names.append(new + name.removeprefix(old))
        if names:
            changes.append({**change, "layers": names})
    return changes


# --- a step of a recipe -------------------------------------------------------------------------


def distill_step(step: recipes.Distill, bench: Bench) -> Mapping[str, Any]:
    """Let a student learn from the parent."""
    check_student(step, bench)
    lessons = open_lessons(bench, step)
    student = _student(step, bench)
    teacher = parent_module(bench)
    _check_size(student, teacher)
    notes = {
        "teacher_parameters": sum(p.numel() for p in teacher.parameters()),
        "student_parameters": sum(p.numel() for p in student.parameters()),
    }
    if lessons.without_labels:
        return {**notes, **_distill_encoder(step, bench, student, lessons)}
    return {**notes, **_distill_classes(step, bench, student, lessons)}


def _distill_encoder(
    step: recipes.Distill, bench: Bench, student: nn.Module, lessons: Lessons
) -> dict[str, Any]:
    assert isinstance(student, SentenceEncoder)
    goal: MatchVectors = MatchVectors()
    inner = step.hidden_weight > 0 or step.attention_weight > 0
    if inner:
        teacher = copy.deepcopy(parent_module(bench)).to(bench.job.device)
        assert isinstance(teacher, SentenceEncoder)
        for encoder in (teacher, student):
            encoder.show_attention(shown=True)
        goal = ThinkLikeTeacher(teacher, step.hidden_weight, step.attention_weight)
    trained = train_module(
        bench, student, lessons, step, name="distill", hooks=KeepZeros(student), goal=goal
    )
    if inner:
        student.show_attention(shown=False)
    bench.module = student
    return {"distillation": trained}


def _distill_classes(
    step: recipes.Distill, bench: Bench, student: nn.Module, lessons: Lessons
) -> dict[str, Any]:
    taught = _taught(bench, lessons)
    runs: list[dict[str, Any]] = []
    best: tuple[tuple[float, float], nn.Module] | None = None
    for temperature in step.temperatures:
        for mix in step.mixes:
            module = copy.deepcopy(student)
            trained = train_module(
                bench,
                module,
                taught,
                step,
                name=f"distill_T{temperature:g}_mix{mix:g}",
                hooks=KeepZeros(module),
                goal=AnswerLikeTeacher(temperature, mix),
            )
            runs.append({"temperature": temperature, "mix": mix, **trained})
            score = _score(trained)
            if best is None or score > best[0]:
                best = (score, module)
                chosen = runs[-1]
    assert best is not None
    bench.module = best[1]
    notes: dict[str, Any] = {
        "runs": runs,
        "chosen": {"temperature": chosen["temperature"], "mix": chosen["mix"]},
    }
    if step.control:
        name = SCRATCH if _sizes(step) else LABELS_ALONE
        control = copy.deepcopy(student)
        trained = train_module(
            bench, control, lessons, step, name=name, hooks=KeepZeros(control), goal=Classify()
        )
        config = {**bench.given.config, **bench.config, KEY: bench.structure}
        bench.controls[name] = Control(control.eval(), config)
        # Whether the teacher helped is for the test rows to say: this is the best of several.
        notes |= {"control": trained}
    return notes


def _taught(bench: Bench, lessons: Lessons) -> Lessons:
    """Add the teacher's logits to the rows that are learned from; validation has its labels."""
    answers = answers_of(parent_module(bench), lessons.train, bench)
    return Lessons(TaughtExamples(lessons.train, answers), lessons.validation, lessons.goal)


def _score(trained: Mapping[str, Any]) -> tuple[float, float]:
    """Rank a run by the accuracy of the weights it kept, then by their loss."""
    history = trained["validation"]
    if not history:
        return (0.0, 0.0)
    kept = next(
        (epoch for epoch in history if epoch["epoch"] == trained["best_epoch"]), history[-1]
    )
    return (kept["accuracy"], -kept["loss"])
