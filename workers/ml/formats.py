"""Load and save models: safetensors with a config.json, or ONNX; either may be coded as myz.

Nothing else is ever opened.
"""

import json
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from registry import recipes
from registry.errors import Invalid, Text
from workers.ml import myz
from workers.ml.architectures import KINDS, Kind, build, read_parameters
from workers.ml.architectures.sentence_encoder import SentenceEncoder
from workers.ml.program import FILE as PROGRAM
from workers.ml.program import METADATA, NAME, Program, read_description
from workers.ml.structure import check_runs, read_structure, replay

CONFIG = "config.json"
WEIGHTS = myz.WEIGHTS
ONNX = myz.ONNX
MYZ = myz.MYZ
MAX_CONFIG_BYTES = 4 * 1024 * 1024
SHAPES_OF_STATE = 2000

SIDE_FILES = (
    "vocabulary.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
"""What a model needs beside its weights, and goes with every version made from it."""


@dataclass(frozen=True)
class ModelFolder:
    """The files of one model version, and what its config.json says."""

    path: Path
    weights: Path
    config: dict[str, Any]
    coded: Path | None = None
    """The myz file that `weights` came out of; `path` is then a folder laid out to load from."""

    @property
    def version(self) -> Path:
        """The files as the version holds them."""
        return self.coded.parent if self.coded else self.path

    @property
    def stored(self) -> Path:
        """The file with the weights as the version holds it."""
        return self.coded or self.weights

    @property
    def is_onnx(self) -> bool:
        return self.weights.suffix == ".onnx"

    @property
    def is_program(self) -> bool:
        """Whether the weights' own header says what is computed with them."""
        said = self.config.get("architecture")
        named = isinstance(said, dict) and said.get("name") == NAME
        return not self.is_onnx and (named or self.weights.name == PROGRAM)

    @property
    def is_transformer(self) -> bool:
        """Whether the files are laid out as Transformers writes them."""
        if self.is_onnx or self.is_program:
            return False
        return isinstance(self.config.get("model_type"), str)

    @property
    def labels(self) -> list[str]:
        labels = self.config.get("labels", [])
        if not isinstance(labels, list):
            raise Invalid("labels in config.json must be a list.", code="bad_config")
        return [str(label) for label in labels]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How rows become inputs; empty where config.json does not say."""
        said = self.config.get("preprocessing")
        return said if isinstance(said, dict) else {}

    @property
    def columns(self) -> dict[str, str]:
        """The columns that the model was made with, by their role."""
        said = self.preprocessing.get("columns")
        columns = said if isinstance(said, dict) else {}
        return {str(role): name for role, name in columns.items() if isinstance(name, str)}

    @property
    def weights_bytes(self) -> int:
        """Tell how many bytes the weights take in the version."""
        return self.stored.stat().st_size


def open_model(path: Path, *, trainable: bool = False) -> ModelFolder:
    """Find the weights of a version; say plainly what is there where they cannot be run.

    A version whose weights are coded is unpacked into a folder of its own, which goes with what is
    returned. Of an exported program there is an ONNX file, which runs faster, and what can be
    trained: `trainable` prefers that.
    """
    has_program = _has_program(path)
    if has_program and (trainable or not (path / ONNX).is_file()):
        weights = path / PROGRAM
    elif (path / WEIGHTS).is_file():
        weights = path / WEIGHTS
    elif (path / MYZ).is_file():
        return _open_coded(path)
    else:
        found = sorted(path.glob("*.onnx")) or sorted(path.glob("onnx/*.onnx"))
        if (path / ONNX) in found:
            found = [path / ONNX]
        if len(found) != 1:
            raise _no_weights(path, found)
        weights = found[0]
    if not weights.resolve().is_relative_to(path.resolve()):
        raise Invalid(
            "{weights} leads out of the version.", code="unsupported_format", weights=weights.name
        )
    return ModelFolder(path, weights, _read_config(path, weights))


def _has_program(path: Path) -> bool:
    """Tell whether there is an exported program, and not just a file of that name."""
    if not (path / PROGRAM).is_file():
        return False
    try:
        with safe_open(path / PROGRAM, framework="pt") as tensors:
            return METADATA in (tensors.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _open_coded(path: Path) -> ModelFolder:
    coded = path / MYZ
    if not coded.resolve().is_relative_to(path.resolve()):
        raise Invalid("{weights} leads out of the version.", code="unsupported_format", weights=MYZ)
    folder = Path(tempfile.mkdtemp(prefix="myz-"))
    try:
        weights = myz.unpack(coded, folder)
        config = _read_config(path, weights)
        for file in path.iterdir():
            if file.name not in {MYZ, WEIGHTS, ONNX}:
                (folder / file.name).symlink_to(file.resolve())
    except BaseException:
        shutil.rmtree(folder)
        raise
    opened = ModelFolder(folder, weights, config, coded)
    # What was unpacked is of use for as long as somebody has this.
    weakref.finalize(opened, shutil.rmtree, folder, ignore_errors=True)
    return opened


def _read_config(path: Path, weights: Path) -> dict[str, Any]:
    """Read the config.json that a state needs, and a graph may have."""
    if (path / CONFIG).is_file():
        return read_config(path)
    if weights.suffix == ".onnx" or weights.name == PROGRAM:
        return {}
    raise Invalid(
        "{weights} needs a {config} beside it that names the architecture.",
        code="missing_config",
        weights=WEIGHTS,
        config=CONFIG,
    )


def read_config(path: Path) -> dict[str, Any]:
    """Read config.json, bounded."""
    try:
        if (path / CONFIG).stat().st_size > MAX_CONFIG_BYTES:
            raise Invalid("{config} is larger than 4 MiB.", code="bad_config", config=CONFIG)
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(
            "{config} cannot be read: {problem}", code="bad_config", config=CONFIG, problem=error
        ) from error
    if not isinstance(config, dict):
        raise Invalid("{config} must be a JSON object.", code="bad_config", config=CONFIG)
    return config


def load_module(folder: ModelFolder) -> tuple[nn.Module, recipes.Architecture]:
    """Build the architecture that config.json names and fill it from model.safetensors."""
    if "architecture" not in folder.config:
        raise Invalid(
            "{config} has neither an architecture of this registry ({kinds}) nor a model_type.",
            code="unknown_architecture",
            config=CONFIG,
            kinds=", ".join(KINDS),
        )
    parameters = read_parameters(folder.config["architecture"])
    changes = read_structure(folder.config)
    if not changes:
        module = build(parameters, classes=len(folder.labels))
        check_shapes(folder.weights, module)
        fill(module, read_tensors(folder.weights))
        return module.eval(), parameters
    with torch.device("meta"):
        module = build(parameters, classes=len(folder.labels))
    replay(module, changes, read_shapes(folder.weights))
    check_shapes(folder.weights, module)
    assign(module, read_tensors(folder.weights))
    _check_runs(module.eval(), KINDS[parameters.name])
    return module, parameters


def _check_runs(module: nn.Module, kind: Kind) -> None:
    """Refuse layers that each fit the file, and not each other."""
    shape = [1, *(3 if size < 0 else size for size in kind.input_shape[1:])]
    check_runs(module, torch.ones(shape, dtype=getattr(torch, kind.input_dtype)))


def load_program(folder: ModelFolder) -> Program:
    """Build an exported program from the header of its weights, and fill it."""
    shapes = read_shapes(folder.weights)
    try:
        with safe_open(folder.weights, framework="pt") as tensors:
            said = read_description(tensors.metadata())
    except (SafetensorError, OSError) as error:
        raise damaged(folder.weights, error) from error
    with torch.device("meta"):
        module = Program(said, shapes)
    replay(module, read_structure(folder.config), shapes)
    check_shapes(folder.weights, module)
    assign(module, read_tensors(folder.weights))
    check_runs(module.eval(), *module.example())
    return module


def check_shapes(weights: Path, module: nn.Module) -> None:
    """Compare the file's header with the module before one tensor is read."""
    expected = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    found = read_shapes(weights)
    wrong = [
        name for name in sorted(expected.keys() | found) if expected.get(name) != found.get(name)
    ]
    if wrong:
        name = wrong[0]
        raise Invalid(
            "{weights} does not fit the architecture in {config}: tensor {name!r} is "
            "{found}, expected {expected}"
            " ({count} tensor(s) differ).",
            code="weights_mismatch",
            weights=weights.name,
            config=CONFIG,
            name=name,
            found=found.get(name, "missing"),
            expected=expected.get(name, "no such tensor"),
            count=len(wrong),
        )


def read_shapes(weights: Path) -> dict[str, list[int]]:
    """Read the shapes of a file's tensors from its header alone."""
    try:
        with safe_open(weights, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise damaged(weights, error) from error


def read_tensors(weights: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; a header that lies is refused by name."""
    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise damaged(weights, error) from error


def fill(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    module.load_state_dict(tensors, strict=True)


def assign(module: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Give a module on the meta device its weights, in the types that it was built with."""
    types = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    cast = {name: tensor.to(types.get(name, tensor.dtype)) for name, tensor in tensors.items()}
    module.load_state_dict(cast, strict=True, assign=True)


def damaged(file: Path, error: Exception) -> Invalid:
    return Invalid(
        "{file} is damaged or not what it says: {problem}",
        code="malformed_file",
        file=file.name,
        problem=error,
    )


def stored_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Give the tensors of a module as its file names them; an encoder's as Transformers does."""
    return module.stored() if isinstance(module, SentenceEncoder) else module.state_dict()


def save_module(module: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write model.safetensors and config.json."""
    state = {name: tensor.detach().cpu() for name, tensor in stored_tensors(module).items()}
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    metadata = {"format": "pt"}
    if isinstance(module, Program):
        metadata[METADATA] = module.to_json()
        config = {**config, "architecture": {"name": NAME}}
    save_file(state, folder / WEIGHTS, metadata=metadata)
    save_config(config, folder)


def save_config(config: dict[str, Any], folder: Path) -> None:
    text = json.dumps(config, ensure_ascii=False, indent=2, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def describe_module(
    parameters: recipes.Architecture, labels: list[str], columns: dict[str, str]
) -> dict[str, Any]:
    """Say in config.json's words how a model of ours is fed and what it answers."""
    kind = KINDS[parameters.name]
    preprocessing: dict[str, Any] = {"kind": kind.preprocessing, "columns": columns}
    if isinstance(parameters, recipes.TextClassifier):
        preprocessing["max_length"] = parameters.max_length
    return {
        "architecture": parameters.model_dump(mode="json"),
        "task": kind.task,
        "labels": labels,
        "preprocessing": preprocessing,
        "signature": {
            "inputs": [
                {
                    "name": kind.input_name,
                    "dtype": kind.input_dtype,
                    "shape": list(kind.input_shape),
                }
            ],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [-1, len(labels)]}],
        },
    }


def _no_weights(path: Path, found: list[Path]) -> Invalid:
    if len(found) > 1:
        return Invalid(
            "The version has several ONNX files ({names}); name the one to use {onnx}.",
            code="unsupported_format",
            names=", ".join(file.name for file in found[:5]),
            onnx=ONNX,
        )
    there = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
    more = [f"+{len(there) - 8}"] if len(there) > 8 else []
    return Invalid(
        "Only {weights} with {config}, {onnx} or {myz} can be run; the version has {files}. "
        "Other formats, pickles among them, are stored and never opened: convert the model first.",
        code="unsupported_format",
        weights=WEIGHTS,
        config=CONFIG,
        onnx=ONNX,
        myz=MYZ,
        files=", ".join([*there[:8], *more]) or Text("no files"),
    )
