"""A fine-tune as its base and a small adapter, in the layout that PEFT reads.

What linear layers and embedding tables have learned is factored to a rank; what else has changed,
such as norms and biases, is kept whole. `adapter_model.safetensors` and `adapter_config.json` are
named as `peft.PeftModel.from_pretrained` looks for them, beside a base that is loaded as it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import Tensor, nn

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml.architectures.sentence_encoder import SentenceEncoder
from workers.ml.compress.bench import Adapter, Bench
from workers.ml.compress.low_rank import Adapters, apply_lora, extract_lora
from workers.ml.compress.merge import load_other

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_LISTED: Final = 200


def extract_step(step: recipes.ExtractLora, bench: Bench) -> Mapping[str, Any]:
    """Put the base and what the adapter holds of the fine-tune on the bench, to be measured."""
    module = bench.need_module("An adapter").cpu()
    tuned = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    base = load_other(bench, tuned, recipes.BASE)
    factored = _factored(module)
    found = extract_lora(
        {name: base.state[name] for name in factored},
        {name: tuned[name] for name in factored},
        step.rank,
    )
    whole = {
        name: tensor
        for name, tensor in tuned.items()
        if name not in factored and not tensor.equal(base.state[name])
    }
    if not found.factors and not whole:
        raise Invalid(
            "The model has learned nothing that {base} does not know: their weights are equal.",
            code="nothing_to_extract",
            base=base.title,
        )
    module.load_state_dict({**apply_lora(base.state, found), **whole})
    own = "encoder." if isinstance(module, SentenceEncoder) else ""
    named = bench.job.input(recipes.BASE).repository
    bench.adapter = describe(found, whole, module, prefix=own, base=named, rank=step.rank)
    ranks = {name: factors.down.shape[0] for name, factors in found.factors.items()}
    worst = max(found.errors.values(), default=0.0)
    bench.job.events.log(
        Text(
            "{count} layers are told at rank {rank}; at worst {share} of what a layer has learned "
            "is lost. {whole} other tensors are kept whole.",
            count=len(ranks),
            rank=step.rank,
            share=f"{worst:.1%}",
            whole=len(whole),
        )
    )
    return {
        "base": base.title,
        "rank": step.rank,
        "layers": len(ranks),
        "whole": sorted(whole)[:_LISTED],
        "errors": dict(list(found.errors.items())[:_LISTED]),
        "worst_error": worst,
    }


def _factored(module: nn.Module) -> dict[str, nn.Module]:
    """Name the weights that an adapter can hold as two factors, and the layers they are of."""
    return {
        f"{name}.weight": layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Embedding)
    }


def describe(
    found: Adapters,
    whole: Mapping[str, Tensor],
    module: nn.Module,
    *,
    prefix: str,
    base: str | None,
    rank: int,
) -> Adapter:
    """Name tensors, and say in adapter_config.json what they are, as PEFT does."""
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, factors in found.factors.items():
        layer = name.removesuffix(".weight")
        path = layer.removeprefix(prefix)
        ranks[path] = factors.down.shape[0]
        if isinstance(module.get_submodule(layer), nn.Embedding):
            # The table is rows by size; its factors are turned round.
            tensors[f"{_PREFIX}{path}.lora_embedding_A"] = factors.up.T
            tensors[f"{_PREFIX}{path}.lora_embedding_B"] = factors.down.T
        else:
            tensors[f"{_PREFIX}{path}.lora_A.weight"] = factors.down
            tensors[f"{_PREFIX}{path}.lora_B.weight"] = factors.up
    saved: set[str] = set()
    for name in whole:
        layer, _, own = name.rpartition(".")
        path = layer.removeprefix(prefix)
        if path in ranks:
            tensors[f"{_PREFIX}{path}.base_layer.{own}"] = whole[name]
            continue
        # PEFT takes such a layer whole, so its other tensors go with it.
        saved.add(path)
        for part, tensor in module.get_submodule(layer).state_dict().items():
            tensors[f"{_PREFIX}{path}.{part}"] = tensor
    odd = {path: own for path, own in ranks.items() if own != rank}
    config = {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "r": rank,
        # Divided by the rank: what was learned counts as it is.
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "rank_pattern": odd,
        "alpha_pattern": odd,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(saved) or None,
        "bias": "all" if any(".base_layer." in name for name in tensors) else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }
    return Adapter(tensors, config)


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the two files of an adapter."""
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in adapter.tensors.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(adapter.config, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
