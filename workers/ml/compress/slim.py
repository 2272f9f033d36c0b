"""Structured pruning: whole channels, hidden units and attention heads go, and with them products.

torch-pruning finds which tensors must shrink together (Fang et al. 2023, DepGraph). What is tied
to a residual stream, to a norm or to the answer keeps its width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch_pruning.ops import OPTYPE

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml.architectures.text_classifier import TextClassifier
from workers.ml.compress.bench import Bench
from workers.ml.compress.learn import open_lessons
from workers.ml.compress.prune import KeepZeros, layers_of, tune
from workers.ml.evaluate import latency_feeds
from workers.ml.infer.engines import TorchEngine
from workers.ml.probes import NOWHERE, probe_rows
from workers.ml.program import Program
from workers.ml.structure import LowRank, check_runs, replace, resized, stored_names, with_change

# Parts of one output that belong together, as in gated units, must lose the same places; which
# those are, the graph does not tell.
_CUTS = {OPTYPE.SPLIT, OPTYPE.UNBIND, OPTYPE.SLICE}
_HEAD_SIZES = ("attention_head_size", "head_dim")


@dataclass
class Slimmed:
    """What was taken out, and what was not and why."""

    resized: list[str] = field(default_factory=list)
    units: dict[str, list[int]] = field(default_factory=dict)
    """Before and after, by the layer whose outputs they are."""
    left: dict[str, str] = field(default_factory=dict)


def slim(
    module: nn.Module,
    example: Sequence[Tensor],
    share: float,
    *,
    heads: bool = True,
    round_to: int = 1,
    exclude: Sequence[str] = (),
) -> Slimmed:
    """Take a share of the channels, units and heads out of each layer, in place.

    The weakest go: those whose weights have the smallest norm over all tensors that shrink
    together.

    Args:
        module: on the CPU.
        example: inputs of one small batch.
        share: 0 < share < 1 of the units of each layer; rounded down, one is always left.
        heads: whether attention heads go, too.
        round_to: what is left of a layer is a multiple of this, where the layer is large enough.
        exclude: patterns of names of layers that keep their outputs.

    Raises:
        Invalid: no layer can lose anything, or the module does not run afterwards.

    """
    chosen = layers_of(module, exclude)
    before = _shapes(module)
    done = Slimmed()
    module.eval()
    if isinstance(module, TextClassifier):
        _slim_lstms(module, share, round_to, set(chosen), done)
    else:
        _slim_graph(module, example, share, round_to, set(chosen), done, heads=heads)
    after = _shapes(module)
    changed = {name.rpartition(".")[0] for name in after if after[name] != before.get(name)}
    done.resized = sorted(changed)
    if not changed:
        raise Invalid(
            "Nothing can be taken out of this model: each of its layers is left out, tied to "
            "others, or too small.",
            code="nothing_to_prune",
        )
    check_runs(module, *example)
    return done


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def _keep(scores: Tensor, share: float, round_to: int) -> Tensor:
    """Give the places of the units that stay, in order."""
    units = len(scores)
    stay = max(1, units - int(share * units))
    stay = min(units, -(-stay // round_to) * round_to)
    order = scores.argsort(descending=True, stable=True)
    return order[:stay].sort().values


# --- modules whose tensors torch-pruning can follow ---------------------------------------------


def _slim_graph(
    module: nn.Module,
    example: Sequence[Tensor],
    share: float,
    round_to: int,
    chosen: set[str],
    done: Slimmed,
    *,
    heads: bool,
) -> None:
    names = {layer: name for name, layer in module.named_modules()}
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(
                module, example_inputs=list(example), forward_fn=lambda m, inputs: m(*inputs)
            )
    except Exception as error:  # it follows autograd's graph and raises whatever it meets there
        raise Invalid(
            "How the layers of this model hang together cannot be followed: {problem}",
            code="cannot_prune",
            problem=(str(error).splitlines() or [repr(error)])[0][:300],
        ) from error
    rank = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    seen: set[str] = set()
    for root, name in names.items():
        if name in seen or name not in layers_of(module):
            continue
        group = _whole_group(graph, root)
        if group is None:
            continue
        outs = [names[m] for m, out in _members(group) if out and m in names]
        seen.update(outs)
        head_size = _head_size(module, outs)
        if why := _tied(group, names, outs, chosen, heads=heads or head_size == 1):
            done.left |= {out: why for out in outs if _is_choice(names, out)}
            continue
        scores = _scores(rank, group, head_size)
        if scores is None:
            done.left |= {out: "cannot be followed" for out in outs if _is_choice(names, out)}
            continue
        units = len(scores)
        stay = _keep(scores, share, round_to if head_size == 1 else 1)
        if len(stay) == units:
            done.left[name] = "too small"
            continue
        gone = sorted(set(range(units)) - set(stay.tolist()))
        channels = [unit * head_size + at for unit in gone for at in range(head_size)]
        graph.get_pruning_group(root, _by_output(root), idxs=channels).prune()
        done.units[name] = [units, len(stay)]


def _scores(rank: Any, group: Any, head_size: int) -> Tensor | None:
    """Rank the units of a group; nothing where its tensors do not go together one by one.

    Queries, keys and values in one fused matrix are such a case.
    """
    try:
        scores: Tensor = rank(group)
        return scores.view(-1, head_size).sum(1)
    except (IndexError, RuntimeError, ValueError):
        return None


def _by_output(layer: nn.Module) -> Any:
    if isinstance(layer, nn.Linear):
        return torch_pruning.prune_linear_out_channels
    return torch_pruning.prune_conv_out_channels


def _whole_group(graph: Any, root: nn.Module) -> Any:
    """Find all that shrinks with the outputs of a layer; nothing where the layer is not used."""
    if not isinstance(root, nn.Linear | _ConvNd):
        return None
    wide = root.out_features if isinstance(root, nn.Linear) else root.out_channels
    try:
        return graph.get_pruning_group(root, _by_output(root), idxs=list(range(wide)))
    except ValueError:  # the layer is not in the graph: nothing that leaves the module needs it
        return None


def _members(group: Any) -> Iterable[tuple[nn.Module, bool]]:
    """Yield the layers of a group, and whether it is their outputs that shrink."""
    for dependency, _ in group:
        layer = dependency.target.module
        if isinstance(layer, nn.Module) and any(True for _ in layer.parameters()):
            handler = dependency.handler
            yield layer, handler.__name__ == "prune_out_channels"
        elif isinstance(layer, nn.Parameter):
            yield nn.ParameterList([layer]), True


def _tied(
    group: Any,
    names: Mapping[nn.Module, str],
    outs: Sequence[str],
    chosen: set[str],
    *,
    heads: bool,
) -> str:
    """Say why a group keeps its width; nothing where it need not."""
    members = list(_members(group))
    if any(
        isinstance(layer, nn.Embedding | nn.LayerNorm) or layer not in names for layer, _ in members
    ):
        return "tied to a residual stream"
    if all(out for _, out in members):
        return "gives the answer"
    if any(dependency.target.type in _CUTS for dependency, _ in group):
        return "its outputs are cut in parts, which must stay alike"
    # Norms between two layers go with them; they are nobody's choice.
    if any(name not in chosen for name in outs if _is_choice(names, name)):
        return "left out by name"
    return "" if heads else "attention heads are kept"


def _is_choice(names: Mapping[nn.Module, str], name: str) -> bool:
    return any(
        isinstance(layer, nn.Linear | _ConvNd) and known == name for layer, known in names.items()
    )


def _head_size(module: nn.Module, outs: Sequence[str]) -> int:
    """Tell how many outputs belong to one attention head; one where there are no heads."""
    for name in outs:
        above = module.get_submodule(name.rpartition(".")[0])
        for attribute in _HEAD_SIZES:
            size = getattr(above, attribute, None)
            if isinstance(size, int) and size > 0:
                return size
    return 1


# --- LSTMs, which torch-pruning cannot follow ---------------------------------------------------


def _slim_lstms(
    module: TextClassifier, share: float, round_to: int, chosen: set[str], done: Slimmed
) -> None:
    for at in range(len(module.forwards)):
        ways = {"forwards": module.forwards}
        if len(module.backwards):
            ways["backwards"] = module.backwards
        if any(f"{way}.{at}" not in chosen for way in ways):
            done.left[f"forwards.{at}"] = "left out by name"
            continue
        stays: list[Tensor] = []
        offset = 0
        for way, layers in ways.items():
            layer = layers[at]
            assert isinstance(layer, nn.LSTM)
            stay = _keep(_unit_norms(layer), share, round_to)
            layers[at] = _fewer_units(layer, stay)
            done.units[f"{way}.{at}"] = [layer.hidden_size, len(stay)]
            stays.append(stay + offset)
            offset += layer.hidden_size
        inputs = torch.cat(stays)
        if at + 1 < len(module.forwards):
            for layers in ways.values():
                layers[at + 1] = _fewer_inputs(layers[at + 1], inputs)
        else:
            replace(module, "classes", _fewer_inputs(module.classes, inputs))


def _unit_norms(layer: nn.LSTM) -> Tensor:
    """Norm of all weights that make a unit's state, and of those that read it: [hidden]."""
    from_input = layer.get_parameter("weight_ih_l0").detach()
    from_state = layer.get_parameter("weight_hh_l0").detach()
    made = torch.cat([from_input, from_state], dim=1).view(4, layer.hidden_size, -1)
    norms: Tensor = (made.pow(2).sum((0, 2)) + from_state.pow(2).sum(0)).sqrt()
    return norms


def _fewer_units(layer: nn.LSTM, stay: Tensor) -> nn.LSTM:
    rows = torch.cat([stay + gate * layer.hidden_size for gate in range(4)])
    fewer = nn.LSTM(layer.input_size, len(stay), batch_first=layer.batch_first)
    state = {name: tensor[rows] for name, tensor in layer.state_dict().items()}
    state["weight_hh_l0"] = state["weight_hh_l0"][:, stay]
    fewer.load_state_dict(state)
    return fewer.eval()


@torch.no_grad()
def _fewer_inputs(layer: nn.Module, stay: Tensor) -> nn.Module:
    if isinstance(layer, LowRank):
        replace(layer, "down", _fewer_inputs(layer.down, stay))
        return layer
    if isinstance(layer, nn.LSTM):
        fewer_lstm = nn.LSTM(len(stay), layer.hidden_size, batch_first=layer.batch_first)
        state = layer.state_dict()
        state["weight_ih_l0"] = state["weight_ih_l0"][:, stay]
        fewer_lstm.load_state_dict(state)
        return fewer_lstm.eval()
    assert isinstance(layer, nn.Linear)
    fewer = nn.Linear(len(stay), layer.out_features, bias=layer.bias is not None)
    fewer.load_state_dict({**layer.state_dict(), "weight": layer.weight[:, stay]})
    return fewer.eval()


# --- what a module costs ------------------------------------------------------------------------


@torch.no_grad()
def count_products(module: nn.Module, example: Sequence[Tensor]) -> int:
    """Count the multiplications of linear layers, convolutions and LSTMs for one of its rows."""
    total = 0

    def count(layer: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(layer, nn.LSTM):
            steps = output[0].numel() // layer.hidden_size
            total += steps * sum(w.numel() for w in layer.parameters() if w.ndim > 1)
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features
        elif isinstance(layer, _ConvNd):
            total += output.numel() * layer.weight[0].numel()

    kinds = (nn.Linear, nn.LSTM, _ConvNd)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    try:
        module(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return total // len(example[0])


# --- a step of a recipe -------------------------------------------------------------------------


def prune_structured_step(step: recipes.PruneStructured, bench: Bench) -> Mapping[str, Any]:
    """Slim what is on the bench, and let it learn to do without."""
    module = bench.need_module("Structured pruning").cpu()
    if isinstance(module, Program):
        raise Invalid(
            "The shapes of an exported program are written into its graph, so no channel or unit "
            "can be taken out of it: use prune_magnitude or svd, or export a smaller model.",
            code="fixed_shapes",
        )
    lessons = open_lessons(bench, step) if step.needs_rows else None
    example = example_of(bench)
    before = {"products": count_products(module, example), "parameters": _count(module)}
    done = slim(
        module,
        example,
        step.share,
        heads=step.heads,
        round_to=step.round_to,
        exclude=step.exclude,
    )
    after = {"products": count_products(module, example), "parameters": _count(module)}
    change = resized(stored_names(module, done.resized))
    bench.structure = with_change(bench.structure, change)
    notes: dict[str, Any] = {
        "units": done.units,
        "left": done.left,
        "before": before,
        "after": after,
    }
    gone = {name: f"{1 - after[name] / before[name]:.0%}" for name in ("products", "parameters")}
    bench.job.events.log(
        Text(
            "{products} of the products and {parameters} of the parameters were taken out.",
            products=gone["products"],
            parameters=gone["parameters"],
        )
    )
    if lessons is not None:
        notes |= tune(bench, module, lessons, step, KeepZeros(module))
    return notes


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def example_of(bench: Bench) -> list[Tensor]:
    """Give inputs of two rows, on the CPU."""
    engine = bench.parent.engine
    assert isinstance(engine, TorchEngine)
    feeds = latency_feeds(bench.parent, probe_rows(bench.parent, 32), NOWHERE)[32]
    return [torch.from_numpy(feeds[name][:2].copy()) for name in engine.input_names]
