"""Which files of two versions hold the weights that are to be compared; told by their paths."""

import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

# As they are preferred: what says most of a model first.
FORMATS: Final = ("safetensors", "myz", "onnx")
_SHARD: Final = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
_PROGRAM: Final = "program.safetensors"


class Chosen(NamedTuple):
    """The files of one version that are read, in order; empty where it has none that could be."""

    format: str
    paths: tuple[str, ...]


NOTHING: Final = Chosen("", ())


def choose_weights(before: Collection[str], after: Collection[str]) -> tuple[Chosen, Chosen]:
    """Choose files of one format where both versions have one, else the best of each."""
    offered = [{name: _of_format(paths, name) for name in FORMATS} for paths in (before, after)]
    for name in FORMATS:
        if all(one[name].paths for one in offered):
            return offered[0][name], offered[1][name]
    first, second = (
        next((one[name] for name in FORMATS if one[name].paths), NOTHING) for one in offered
    )
    return first, second


def _of_format(paths: Collection[str], name: str) -> Chosen:
    found = sorted(path for path in paths if path.lower().endswith(f".{name}"))
    return Chosen(name, _main(found))


def _main(paths: Sequence[str]) -> tuple[str, ...]:
    """Keep what is opened when the version is run; copies in other precisions stand beside it."""
    if not paths:
        return ()
    highest = min(path.count("/") for path in paths)
    top = [path for path in paths if path.count("/") == highest]
    shards = [path for path in top if _SHARD.search(path.lower())]
    usual = next((p for p in top if PurePosixPath(p).stem.lower() == "model"), None)
    if usual is not None:
        return (usual,)
    if shards:
        return tuple(shards)
    rest = [path for path in top if PurePosixPath(path).name != _PROGRAM]
    return (min(rest or top),)
