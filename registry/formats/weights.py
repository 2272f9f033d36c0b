"""Which files of two versions hold the weights that are to be compared; told by their paths."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

# As they are preferred: what says most of a model first.
FORMATS: Final = ("safetensors", "myz", "onnx")
# What the weights are a variant of, such as `.fp16`, may stand behind the number of a shard.
_SHARD: Final = re.compile(
    r"-[0-9]{5}-of-([0-9]{5})(?P<variant>\.[a-z0-9_]+)?\.safetensors$", re.IGNORECASE
)
# What was converted of a file beside its like, or taken out of a program: often a copy of those.
_STANDS_IN: Final = re.compile(
    r"(^|/)program\.safetensors$|\.(bin|ckpt|h5|keras|pkl|pt|pt2|pth)\.(safetensors|onnx)$",
    re.IGNORECASE,
)
_HOLD_WEIGHTS: Final = frozenset(
    {".safetensors", ".myz", ".onnx", ".gguf", ".npz", ".npy", ".h5", ".keras", ".pt2", ".tflite"}
    | {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".data", ".onnx_data"}
)
# What no graph keeps its numbers in: it has a form of its own.
_NO_DATA: Final = frozenset(
    {".safetensors", ".myz", ".onnx", ".gguf", ".npz", ".npy", ".h5", ".keras", ".pt2", ".tflite"}
    | {".md", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".csv", ".tsv", ".cfg", ".ini"}
    | {".py", ".xml", ".html", ".png", ".jpg", ".jpeg", ".svg"}
)
_NAMED_TEXTS: Final = frozenset({"license", "notice", "readme"})

Components = Mapping[str, tuple[str, ...]]
Outside = Mapping[str, Collection[str]]
"""What graphs refer to, as paths from the folder of each; of one that is not here nobody knows."""


class Chosen(NamedTuple):
    """The files of one version that are read, in order; empty where it has none that could be.

    `parts` names the component that each file is of, where one of both versions has several.
    """

    format: str
    paths: tuple[str, ...]
    parts: tuple[str, ...] = ()


NOTHING: Final = Chosen("", ())


def choose_weights(before: Collection[str], after: Collection[str]) -> tuple[Chosen, Chosen]:
    """Choose all files of one format where both versions have one, else of the best of each."""
    offered = [{name: _of_format(paths, name) for name in FORMATS} for paths in (before, after)]
    shared = next((name for name in FORMATS if all(one[name] for one in offered)), None)
    formats = [
        shared or next((name for name in FORMATS if one[name]), NOTHING.format) for one in offered
    ]
    found = [one.get(name, []) for one, name in zip(offered, formats, strict=True)]
    by_path = {stem for paths in found for stem in _ambiguous_stems(paths)}
    first, second = (_components(paths, by_path=by_path) for paths in found)
    first, second = _without_copies(first, second), _without_copies(second, first)
    is_plain = max(len(first), len(second)) <= 1
    if first and second:
        first = _beside(first, second)
    return (
        _chosen(formats[0], first, is_plain=is_plain),
        _chosen(formats[1], second, is_plain=is_plain),
    )


def left_out(paths: Collection[str], chosen: Chosen, outside: Outside) -> list[str]:
    """Name the files that hold weights by their names, and are not among those that are read."""
    read = {*chosen.paths, *data_of_graphs(paths, chosen, outside)}
    return sorted(
        path
        for path in paths
        if path not in read and PurePosixPath(path.lower()).suffix in _HOLD_WEIGHTS
    )


def data_of_graphs(paths: Collection[str], chosen: Chosen, outside: Outside) -> list[str]:
    """Name the files beside graphs that their numbers lie in.

    Where nobody knows which those are, it is all that could be by their names.
    """
    if chosen.format != "onnx":
        return []
    if any(graph not in outside for graph in chosen.paths):
        return sorted(path for path in paths if _may_be_data(path))
    named = {
        str(PurePosixPath(graph).parent / name) for graph in chosen.paths for name in outside[graph]
    }
    return sorted(named.intersection(paths).difference(chosen.paths))


def _may_be_data(path: str) -> bool:
    named = PurePosixPath(path.lower())
    return named.suffix not in _NO_DATA and named.name not in _NAMED_TEXTS


def _of_format(paths: Collection[str], name: str) -> list[str]:
    return sorted(path for path in paths if path.lower().endswith(f".{name}"))


def _stem(path: str) -> str:
    """Give a file's name as other formats have it too, and all shards of one set."""
    shard = _SHARD.search(path)
    return path[: shard.start()] + (shard["variant"] or "") if shard else path.rpartition(".")[0]


def _sets(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Put the shards of one set together; any other file is by itself."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        shard = _SHARD.search(path)
        found.setdefault((_stem(path), shard[1] if shard else path), []).append(path)
    return [tuple(held) for held in found.values()]


def _ambiguous_stems(paths: Sequence[str]) -> set[str]:
    """Give what names several sets, such as a file beside shards of it, or the path of another."""
    counted, whole = Counter(_stem(held[0]) for held in _sets(paths)), set(paths)
    return {stem for stem, count in counted.items() if count > 1 or stem in whole}


def _components(paths: Sequence[str], *, by_path: Collection[str]) -> Components:
    named = ((_stem(held[0]), held) for held in _sets(paths))
    return {held[0] if stem in by_path else stem: held for stem, held in named}


def _without_copies(held: Components, other: Components) -> Components:
    """Leave out what stands in for a file of another format, unless both have it."""
    rest = {
        name: paths
        for name, paths in held.items()
        if name in other or not _STANDS_IN.search(paths[0])
    }
    return rest or held


def _beside(first: Components, second: Components) -> Components:
    """Name components of the first as those of the second, where neither has a match.

    These are what is alone in a folder of both, and the main ones.
    """
    alone, other = _alone_in_folders(first), _alone_in_folders(second)
    pairs = [(alone[folder], other[folder]) for folder in alone.keys() & other.keys()]
    matched: dict[str, str] = {}
    taken: set[str] = set()
    for name, counterpart in [*pairs, (_main(first), _main(second))]:
        is_free = name not in matched and counterpart not in taken
        if is_free and name not in second and counterpart not in first:
            matched[name] = counterpart
            taken.add(counterpart)
    return {matched.get(name, name): paths for name, paths in first.items()}


def _alone_in_folders(held: Components) -> dict[PurePosixPath, str]:
    folders = {name: PurePosixPath(paths[0]).parent for name, paths in held.items()}
    counted = Counter(folders.values())
    return {folder: name for name, folder in folders.items() if counted[folder] == 1}


def _main(held: Components) -> str:
    """Name what is opened when the version is run."""
    highest = min(paths[0].count("/") for paths in held.values())
    top = {name: paths for name, paths in held.items() if paths[0].count("/") == highest}
    usual = [name for name, paths in top.items() if PurePosixPath(paths[0]).stem.lower() == "model"]
    shards = [name for name, paths in top.items() if _SHARD.search(paths[0])]
    return min(usual or shards or top)


def _chosen(format_name: str, held: Components, *, is_plain: bool) -> Chosen:
    named = [(path, name) for name, paths in sorted(held.items()) for path in paths]
    parts = () if is_plain else tuple(name for _path, name in named)
    return Chosen(format_name, tuple(path for path, _name in named), parts)
