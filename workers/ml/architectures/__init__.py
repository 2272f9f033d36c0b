"""The named architectures that a recipe may build; no user code is ever imported."""

from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from registry import recipes
from registry.errors import Invalid
from workers.ml.architectures.digits_cnn import DigitsCnn
from workers.ml.architectures.text_classifier import TextClassifier

MAX_CLASSES = 10_000

_parameters: TypeAdapter[recipes.Architecture] = TypeAdapter(recipes.Architecture)


class Kind(NamedTuple):
    """What the rest of the library must know about an architecture."""

    task: str
    preprocessing: str
    input_name: str
    input_dtype: str
    input_shape: tuple[int, ...]


KINDS = {
    "digits_cnn": Kind("image-classification", "image", "image", "uint8", (-1, 28, 28)),
    "text_classifier": Kind("text-classification", "words", "tokens", "int64", (-1, -1)),
}


def read_parameters(data: object) -> recipes.Architecture:
    """Check the architecture that a model's config.json names."""
    if isinstance(data, dict) and data.get("name") not in KINDS:
        raise Invalid(
            "The architecture {name!r} is unknown; this registry can build {kinds}.",
            code="unknown_architecture",
            name=str(data.get("name"))[:60],
            kinds=", ".join(KINDS),
        )
    try:
        return _parameters.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(
            "config.json describes no valid architecture: {place}: {problem}.",
            code="bad_config",
            place=place,
            problem=first["msg"],
        ) from None


def build(parameters: recipes.Architecture, *, classes: int, seed: int = 0) -> nn.Module:
    """Build a model whose first weights depend on the seed alone."""
    if not 2 <= classes <= MAX_CLASSES:
        raise Invalid(
            "A classifier needs 2 to {limit} classes, not {classes}.",
            code="bad_labels",
            limit=MAX_CLASSES,
            classes=classes,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(parameters, recipes.DigitsCnn):
            return DigitsCnn(parameters, classes)
        return TextClassifier(parameters, classes)
