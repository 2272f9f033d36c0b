"""A Transformers encoder with its pooling: texts in, unit vectors out."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from registry.errors import Invalid
from workers.ml.structure import KEY, Shapes, check_runs, read_structure, replay

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Pooling:
    """How one vector is made of a text's token vectors."""

    mode: str = "mean"
    normalize: bool = True


class Inside(NamedTuple):
    """What an encoder said on the way to its vector."""

    vector: Tensor
    """batch x size"""
    states: tuple[Tensor, ...]
    """Of each layer: batch x tokens x size."""
    attention: tuple[Tensor, ...]
    """Of each layer: batch x heads x tokens x tokens."""


class SentenceEncoder(nn.Module):
    """Takes numbered word pieces; padding does not change the answer."""

    def __init__(
        self,
        encoder: nn.Module,
        pooling: Pooling,
        *,
        token_types: bool,
        made_up: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.token_types = token_types
        self.made_up = made_up
        """Tensors that the file lacked and nothing here uses; they are random."""

    @property
    def input_names(self) -> list[str]:
        names = ["input_ids", "attention_mask"]
        return [*names, "token_type_ids"] if self.token_types else names

    def stored(self) -> dict[str, Tensor]:
        """Give the tensors to write, by the names that Transformers looks for."""
        state = self.encoder.state_dict()
        return {name: tensor for name, tensor in state.items() if name not in self.made_up}

    def forward(self, *tokens_BL: Tensor) -> Tensor:
        named = dict(zip(self.input_names, tokens_BL, strict=True))
        return self._pool(self.encoder(**named).last_hidden_state, named)

    def look_inside(self, tokens_BL: tuple[Tensor, ...]) -> Inside:
        """Run as `forward` does, and give what its layers said; attention must be shown."""
        named = dict(zip(self.input_names, tokens_BL, strict=True))
        said = self.encoder(**named, output_hidden_states=True, output_attentions=True)
        vector_BH = self._pool(said.last_hidden_state, named)
        return Inside(vector_BH, tuple(said.hidden_states[1:]), tuple(said.attentions))

    def show_attention(self, *, shown: bool) -> None:
        """Compute attention in the open, slower, where it is to be looked at."""
        encoder: Any = self.encoder
        if shown:
            self._usual = encoder.config._attn_implementation  # noqa: SLF001 - it has no other name
        encoder.set_attn_implementation("eager" if shown else self._usual)

    def _pool(self, hidden_BLH: Tensor, named: dict[str, Tensor]) -> Tensor:
        if self.pooling.mode == "cls":
            vector_BH = hidden_BLH[:, 0]
        else:
            mask_BL1 = named["attention_mask"].unsqueeze(2).to(hidden_BLH.dtype)
            vector_BH = (hidden_BLH * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1e-9)
        if self.pooling.normalize:
            vector_BH = nn.functional.normalize(vector_BH, dim=1)
        assert isinstance(vector_BH, Tensor)
        return vector_BH


def load_sentence_encoder(path: Path) -> SentenceEncoder:
    """Load an encoder as Transformers writes it: safetensors only, offline, no code from files."""
    from transformers import AutoConfig, AutoModel  # noqa: PLC0415 - takes seconds
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        changes = read_structure({KEY: getattr(config, KEY, [])})
        loader = _check_config(config, path / WEIGHTS, changes) or AutoModel
        encoder, loading = loader.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Invalid:
        raise
    except Exception as error:  # Transformers raises whatever its parts raise
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise Invalid(
            "Transformers cannot load this model: {problem}",
            code="malformed_file",
            problem=reason[:300],
        ) from error
    if not hasattr(encoder, "forward"):
        raise _no_encoder()
    # Transformers would fill them with random numbers; a pooler is not used here.
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith("pooler."))
    unfit = sorted(str(entry[0]) for entry in loading.get("mismatched_keys", []))
    if missing or unfit:
        raise Invalid(
            "The weights lack {count} tensor(s) that {config} calls for, such as {tensor!r}.",
            code="weights_mismatch",
            count=len(missing) + len(unfit),
            config=CONFIG,
            tensor=[*missing, *unfit][0],
        )
    accepted = inspect.signature(encoder.forward).parameters
    token_types = "token_type_ids" in accepted and getattr(config, "type_vocab_size", 0) > 1
    found = SentenceEncoder(
        encoder.eval(),
        read_pooling(path),
        token_types=token_types,
        made_up=frozenset(loading["missing_keys"]),
    ).eval()
    if changes:
        check_runs(found, *(torch.ones(1, 3, dtype=torch.int64) for _ in found.input_names))
    return found


def _no_encoder() -> Invalid:
    return Invalid("Only encoders can be run.", code="unknown_architecture")


def _check_config(config: Any, weights: Path, changes: list[dict[str, Any]]) -> Any:
    """Refuse a config.json that calls for more than the file can hold, before it is built.

    Transformers would make up what is missing: the whole of it in memory. Where layers changed
    their shapes, gives the class that builds the model with the shapes of the file.
    """
    from transformers import AutoModel  # noqa: PLC0415 - takes seconds

    if getattr(config, "is_encoder_decoder", False):
        raise _no_encoder()
    with safe_open(weights, framework="pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - not a dict
    layers = [
        size for name, size in config.to_dict().items() if "layer" in name and type(size) is int
    ]
    loader = None
    # A layer has at least one tensor, and a number in it at least one byte.
    called_for, count = max(layers, default=0), len(shapes)
    if called_for <= count:
        with torch.device("meta"):
            skeleton = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]  # untyped there
        if changes:
            loader = _with_changes(type(skeleton), changes, shapes)
            replay(skeleton, changes, shapes)
            _check_shapes(skeleton, shapes, weights)
        called_for = sum(parameter.numel() for parameter in skeleton.parameters())
        count = weights.stat().st_size
    if called_for > count:
        raise Invalid(
            "{config} calls for a model of another size than {weights} holds.",
            code="weights_mismatch",
            config=CONFIG,
            weights=weights.name,
        )
    return loader


def _check_shapes(skeleton: nn.Module, shapes: Shapes, weights: Path) -> None:
    """Compare what was rebuilt with the file's header; Transformers would say it less plainly."""
    for name, tensor in skeleton.state_dict().items():
        if name in shapes and list(shapes[name]) != list(tensor.shape):
            raise Invalid(
                "{weights} does not fit {config}: tensor {name!r} is {found}, expected {expected}.",
                code="weights_mismatch",
                weights=weights.name,
                config=CONFIG,
                name=name,
                found=list(shapes[name]),
                expected=list(tensor.shape),
            )


def _with_changes(plain: type[Any], changes: list[dict[str, Any]], shapes: Shapes) -> type[Any]:
    """Derive a class whose models are built with changed shapes, for Transformers to fill."""

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        plain.__init__(self, config, *args, **kwargs)
        replay(self, changes, shapes)

    return type(plain.__name__, (plain,), {"__init__": build, "__module__": plain.__module__})


def read_pooling(path: Path) -> Pooling:
    """Read the pooling that the model's authors shipped; mean and unit length without one."""
    pooling = _read(path / "1_Pooling" / "config.json")
    modules = _read(path / "modules.json")
    mode = "cls" if isinstance(pooling, dict) and pooling.get("pooling_mode_cls_token") else "mean"
    if not isinstance(modules, list):
        return Pooling(mode)
    types = [str(module.get("type", "")) for module in modules if isinstance(module, dict)]
    return Pooling(mode, normalize=any(name.endswith("Normalize") for name in types))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
