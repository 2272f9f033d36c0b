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
            f"The architecture {str(data.get('name'))[:60]!r} is unknown; "
            f"this registry can build {', '.join(KINDS)}.",
            code="unknown_architecture",
        )
    try:
        return _parameters.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(
            f"config.json describes no valid architecture: {place}: {first['msg']}.",
            code="bad_config",
        ) from None


def build(parameters: recipes.Architecture, *, classes: int, seed: int = 0) -> nn.Module:
    """Build a model whose first weights depend on the seed alone."""
    if not 2 <= classes <= MAX_CLASSES:
        raise Invalid(
            f"A classifier needs 2 to {MAX_CLASSES} classes, not {classes}.", code="bad_labels"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(parameters, recipes.DigitsCnn):
            return DigitsCnn(parameters, classes)
        return TextClassifier(parameters, classes)
