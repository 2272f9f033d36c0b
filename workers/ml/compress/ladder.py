"""What a search may try: lists of steps in the order of their cost, and families with a dial.

A method joins the search by a line here. Lines whose methods this installation lacks, or that do
not fit the model, drop out by themselves.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Steps = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Rung:
    """One candidate: a name that a version can have, and the steps that make it."""

    name: str
    steps: Steps
    unless: str = ""
    """Another candidate, which this one has no more to give than once it is good enough."""
    like: str = ""
    """Another candidate that computes the same: where that one loses too much, so does this."""
    trains: bool = False
    """Whether it learns from labels, and so needs a module and classes."""


@dataclass(frozen=True)
class Family:
    """Candidates that differ in numbers, which an optimiser turns.

    `dials` maps the place of a number, such as `0.sparsity`, to the least and the most that is
    worth trying; whole numbers stay whole.
    """

    name: str
    steps: Steps
    dials: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    trains: bool = False
    """As of a rung: whether it learns from labels."""
    needs_module: bool = True
    """Whether it changes a module; the others are for graphs, which nothing trains."""
    needs_words: bool = False
    """Whether it changes a table of words, as models of texts have one."""

    def at(self, numbers: Mapping[str, float]) -> Rung:
        """Give the candidate at a setting of the dials."""
        steps: list[dict[str, Any]] = [dict(step) for step in self.steps]
        for place, number in numbers.items():
            step, _, name = place.partition(".")
            steps[int(step)][name] = number
        shown = "-".join(
            str(number) if isinstance(number, int) else f"{round(number * 100)}"
            for number in numbers.values()
        )
        return Rung(f"{self.name}-{shown}", tuple(steps))


# What works on a graph says so as its first step, which is then done once for all of them.
_GRAPH = {"method": "export_onnx"}
_INT8 = {"method": "quantize_dynamic"}
_INT8_CONV = {**_INT8, "convolutions": True}
_STATIC = {"method": "quantize_static"}
_WEIGHTS = {"method": "quantize_weights"}
_MIXED = {**_WEIGHTS, "bits": 8, "block_size": 128, "embeddings": "4"}
_GPTQ = {**_WEIGHTS, "bits": 4, "algorithm": "gptq", "calibration_rows": 512}
_FIXED = {"method": "fixed_point", "bits": 8}
_CODE = {"method": "code"}
# The same extra training of the parent would double the time of every candidate.
_TRAINED = {"control": False, "epochs": 3}
_AWARE = {"method": "train_quantized", **_TRAINED}
# One temperature and one share: what is left of a candidate learns from its parent once.
_TAUGHT = {"method": "distill", **_TRAINED, "temperatures": (4.0,), "mixes": (0.5,)}

# The cheapest first: no data, then calibration, then training.
RUNGS: tuple[Rung, ...] = (
    Rung("int8", (_GRAPH, _INT8)),
    Rung("int8-conv", (_GRAPH, _INT8_CONV)),
    Rung("onnx", (_GRAPH,)),
    Rung("int8-products", (_GRAPH, {**_INT8, "embeddings": False}), unless="int8"),
    Rung("weights8", (_GRAPH, {**_WEIGHTS, "bits": 8})),
    Rung("int4", (_GRAPH, {**_WEIGHTS, "bits": 4})),
    Rung("int4-embeddings8", (_GRAPH, {**_WEIGHTS, "bits": 4, "embeddings": "8"}), unless="int4"),
    Rung("weights8-embeddings4", (_GRAPH, _MIXED)),
    Rung("int8-coded", (_GRAPH, _INT8, _CODE), like="int8"),
    Rung("weights8-embeddings4-coded", (_GRAPH, _MIXED, _CODE), like="weights8-embeddings4"),
    Rung("int4-coded", (_GRAPH, {**_WEIGHTS, "bits": 4}, _CODE), like="int4"),
    Rung("shared-coded", ({"method": "cluster", "bits": 5}, _CODE)),
    Rung("shared6-coded", ({"method": "cluster", "bits": 6}, _CODE), unless="shared-coded"),
    Rung("shared7-coded", ({"method": "cluster", "bits": 7}, _CODE), unless="shared6-coded"),
    Rung("shared8-coded", ({"method": "cluster", "bits": 8}, _CODE), unless="shared7-coded"),
    Rung("fixed8", (_GRAPH, _FIXED)),
    Rung("fixed8-coded", (_GRAPH, _FIXED, _CODE), like="fixed8"),
    Rung("fixed6-coded", (_GRAPH, {**_FIXED, "bits": 6}, _CODE), like="fixed8"),
    Rung("int8-static", (_GRAPH, _STATIC)),
    Rung(
        "int8-static-percentile",
        (_GRAPH, {**_STATIC, "calibration": "percentile"}),
        unless="int8-static",
    ),
    Rung("int4-gptq", (_GRAPH, _GPTQ), unless="int4"),
    Rung("int4-gptq-coded", (_GRAPH, _GPTQ, _CODE), unless="int4-coded", like="int4-gptq"),
    Rung("int4-gptq-embeddings8", (_GRAPH, {**_GPTQ, "embeddings": "8"}), unless="int4-gptq"),
    Rung("int8-trained", (_AWARE,), unless="int8-static", trains=True),
    Rung("int8-trained-coded", (_AWARE, _CODE), like="int8-trained", trains=True),
)

FAMILIES: tuple[Family, ...] = (
    Family(
        "slim-int8",
        ({"method": "prune_structured", **_TRAINED}, _INT8_CONV),
        {"0.share": (0.1, 0.8)},
    ),
    Family(
        "slim-taught-int8",
        ({"method": "prune_structured", "control": False, "epochs": 0}, _TAUGHT, _INT8_CONV),
        {"0.share": (0.1, 0.8)},
        trains=True,
    ),
    Family(
        "low-rank-int8",
        ({"method": "svd", "by": "ratio"}, _INT8),
        {"0.ratio": (0.3, 0.9)},
    ),
    Family(
        "sparse-coded",
        (
            {"method": "prune_magnitude", "schedule": "gradual", **_TRAINED},
            {"method": "cluster", "bits": 5},
            _CODE,
        ),
        {"0.sparsity": (0.5, 0.97)},
    ),
    # Where most of a model is its table of words: rare ones fall, and what stays is coded.
    Family(
        "sparse-words-coded",
        (
            {
                "method": "prune_magnitude",
                "schedule": "gradual",
                "embeddings": "frequency",
                **_TRAINED,
            },
            {"method": "cluster", "bits": 4, "control": False, "epochs": 1},
            _CODE,
        ),
        {"0.sparsity": (0.5, 0.97)},
        trains=True,
        needs_words=True,
    ),
    Family(
        "pruned-coded",
        (
            {"method": "prune_magnitude", "scope": "layer", "epochs": 0},
            {"method": "cluster", "bits": 6},
            _CODE,
        ),
        {"0.sparsity": (0.1, 0.8)},
        needs_module=False,
    ),
)


def methods_of(steps: Steps) -> set[str]:
    return {str(step["method"]) for step in steps}


def rungs(methods: Collection[str], *, is_graph: bool, labelled: bool = True) -> Iterator[Rung]:
    """Give the fixed candidates that these methods can make, the cheapest first.

    A parent that is a graph already is not exported to one. Without labels nothing is tried that
    learns from them.
    """
    for rung in RUNGS:
        if rung.trains and (is_graph or not labelled):
            continue
        steps = rung.steps[1:] if is_graph and rung.steps[0] == _GRAPH else rung.steps
        if steps and methods_of(steps) <= set(methods):
            yield replace(rung, steps=steps)


def families(
    methods: Collection[str], *, is_graph: bool, labelled: bool = True, has_words: bool = True
) -> list[Family]:
    """Give the families that these methods can make: those that train, of a module alone."""
    return [
        family
        for family in FAMILIES
        if methods_of(family.steps) <= set(methods)
        and is_graph != family.needs_module
        and (labelled or not family.trains)
        and (has_words or not family.needs_words)
    ]
