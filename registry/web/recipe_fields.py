"""One part of a recipe's schema as one field of a form, and the words of its choices."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop

Schema = Mapping[str, Any]
_LONGEST_LIST: Final = 20_000
# Words of the recipes' choices, for the catalogue.
_WORDS: Final = {
    "auto": gettext_noop("Automatic"),
    "smallest": gettext_noop("As small as possible"),
    "fastest": gettext_noop("As fast as possible"),
    "throughput": gettext_noop("Most rows per second"),
    "latency": gettext_noop("Quickest answer to one row"),
    "onnxruntime": gettext_noop("ONNX Runtime"),
    "torch": gettext_noop("PyTorch"),
    "fits": gettext_noop("As good as possible in so many bytes"),
    "cpu": gettext_noop("CPU"),
    "jsonl": gettext_noop("JSON lines"),
    "parquet": gettext_noop("Parquet"),
    "gpu": gettext_noop("GPU"),
    "constant": gettext_noop("Constant"),
    "cosine": gettext_noop("Cosine"),
    "step": gettext_noop("Steps"),
    "linear": gettext_noop("Linear"),
    "best": gettext_noop("Of the best epoch"),
    "last": gettext_noop("Of the last epoch"),
    "float32": gettext_noop("float32"),
    "mixed": gettext_noop("Mixed"),
    "sgd": gettext_noop("SGD"),
    "momentum": gettext_noop("SGD with momentum"),
    "adam": gettext_noop("Adam"),
    "adamw": gettext_noop("AdamW"),
    "rmsprop": gettext_noop("RMSprop"),
    "global": gettext_noop("All layers together"),
    "layer": gettext_noop("Each layer"),
    "one_shot": gettext_noop("At once"),
    "gradual": gettext_noop("Little by little"),
    "leave": gettext_noop("Leave"),
    "frequency": gettext_noop("By frequency"),
    "minmax": gettext_noop("Extremes"),
    "entropy": gettext_noop("Least loss of information"),
    "percentile": gettext_noop("Percentile"),
    "products": gettext_noop("Products and convolutions"),
    "all": gettext_noop("All"),
    "qdq": gettext_noop("QuantizeLinear pairs"),
    "qoperator": gettext_noop("Integer operators"),
    "rtn": gettext_noop("To the nearest"),
    "gptq": gettext_noop("GPTQ"),
    "none": gettext_noop("None"),
    "same": gettext_noop("As the other weights"),
    "largest": gettext_noop("Largest weight fits"),
    "least_error": gettext_noop("Least squared error"),
    "energy": gettext_noop("Energy"),
    "rank": gettext_noop("Rank"),
    "ratio": gettext_noop("Ratio"),
    "basic": gettext_noop("Basic"),
    "extended": gettext_noop("Extended"),
    "average": gettext_noop("Mean"),
    "slerp": gettext_noop("Arc between two (SLERP)"),
    "task_arithmetic": gettext_noop("Task arithmetic"),
    "ties": gettext_noop("TIES"),
    "torchscript": gettext_noop("TorchScript"),
    "pt2": gettext_noop("Exported program (.pt2)"),
    "aotinductor": gettext_noop("Compiled by AOTInductor"),
    "stablehlo": gettext_noop("StableHLO (JAX)"),
}


class ListField(forms.CharField):
    """Several values in one text: numbers between commas, texts on lines of their own."""

    def __init__(self, item: str, **kwargs: Any) -> None:
        self.item = item
        super().__init__(max_length=_LONGEST_LIST, **kwargs)

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value) or ""
        if self.item == "string":
            return [line.strip() for line in text.splitlines() if line.strip()]
        try:
            return [self._number(part) for part in re.split(r"[\s,;]+", text) if part]
        except ValueError as error:
            raise ValidationError(
                gettext_lazy("Write numbers with commas between them."), code="invalid"
            ) from error

    def prepare_value(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return ("\n" if self.item == "string" else ", ").join(str(part) for part in value)
        return value

    def _number(self, part: str) -> int | float:
        return int(part) if self.item == "integer" else float(part)


def make_field(part: Schema, *, required: bool, nullable: bool) -> forms.Field:
    """Make the form's field for one value of a recipe."""
    default = part.get("default")
    kind = part.get("type")
    if "enum" in part:
        return _choice(part["enum"], default, nullable=nullable)
    if kind == "boolean":
        return forms.BooleanField(required=False, initial=default)
    if kind == "array":
        return _list(part, required=required)
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    if kind == "integer":
        return forms.IntegerField(required=required, min_value=low, max_value=high, initial=default)
    if kind == "number":
        widget = forms.NumberInput(attrs={"step": "any"})
        return forms.FloatField(
            required=required, min_value=low, max_value=high, initial=default, widget=widget
        )
    attrs = {"autocomplete": "off", "spellcheck": "false"}
    if target := part.get("reference") or part.get("output"):
        attrs |= {"list": f"{target}-names", "placeholder": "namespace/name"}
    return forms.CharField(
        required=required,
        max_length=part.get("maxLength"),
        initial=default,
        widget=forms.TextInput(attrs=attrs),
    )


def _words(values: Sequence[Any]) -> list[tuple[str, str]]:
    return [(str(value), _(_WORDS.get(str(value), str(value)))) for value in values]


def _choice(values: Sequence[Any], default: Any, *, nullable: bool) -> forms.Field:
    # A form sends texts; a recipe is strict, so that 4 bits must arrive as the number.
    value_of = {str(value): value for value in values}
    empty = [("", _("None"))] if nullable else []
    return forms.TypedChoiceField(
        choices=[*empty, *_words(values)],
        coerce=lambda text: value_of.get(text, text),
        required=not nullable,
        empty_value=None,
        initial=default,
    )


def _list(part: Schema, *, required: bool) -> forms.Field:
    item = part.get("items") or (part.get("prefixItems") or [{}])[0]
    default = part.get("default")
    if "enum" in item:
        value_of = {str(value): value for value in item["enum"]}
        return forms.TypedMultipleChoiceField(
            choices=_words(item["enum"]),
            coerce=lambda text: value_of.get(text, text),
            required=required,
            initial=default,
            widget=forms.CheckboxSelectMultiple,
        )
    kind = str(item.get("type", "string"))
    attrs = {"autocomplete": "off", "spellcheck": "false"}
    widget = (
        forms.Textarea(attrs={**attrs, "rows": 3, "class": "mono"})
        if kind == "string"
        else forms.TextInput(attrs=attrs)
    )
    return ListField(kind, required=required, initial=default, widget=widget)
