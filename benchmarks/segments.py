"""What MiniLM and five fine-tunes of it take where shared bytes are stored once, and reading them.

The fine-tunes are trained here, on sentences of two kinds: a head on a frozen encoder; the last
layer and a head; everything but the embeddings; all of it; and the first one again in bfloat16,
beside MiniLM itself in bfloat16. Each file is put together of pieces as a worker does it. Reading
is measured in the storage alone, whole file and pieces by turns, the best of the rounds (nothing
but neighbours makes a round slower); HTTP costs the same on top of both.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.report import Figure, keep

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
STEPS = 8
# As registry.services.segments has it: less in common, and a file stays whole.
WORTH = 1 / 20
_KINDS = (
    ("the film was {}", "good fine great moving"),
    ("the train was {}", "late slow full cold"),
)

Pieces = list[Any]


def write_files(folder: Path) -> None:
    """Write MiniLM and its fine-tunes as safetensors files."""
    import torch  # noqa: PLC0415 - only in the process that trains
    from safetensors.torch import load_file, save_file  # noqa: PLC0415
    from transformers import AutoTokenizer, BertConfig, BertModel  # noqa: PLC0415

    from config.local import sample_data  # noqa: PLC0415

    files = sample_data.encoder_files()
    weights = load_file(files["model.safetensors"])
    config = BertConfig.from_json_file(files["config.json"])
    tokenizer = AutoTokenizer.from_pretrained(files["model.safetensors"].parent)
    texts = [form.format(word) for form, words in _KINDS for word in words.split()]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    wanted = torch.tensor([kind for kind, (_, words) in enumerate(_KINDS) for _ in words.split()])

    def train(trained: Callable[[str], bool]) -> dict[str, Any]:
        torch.manual_seed(0)
        model = BertModel(config)
        model.load_state_dict(weights, strict=False)
        head = torch.nn.Linear(config.hidden_size, 2)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = trained(name)
        learning = [one for one in model.parameters() if one.requires_grad]
        optimizer = torch.optim.AdamW([*learning, *head.parameters()], lr=1e-4)
        for _ in range(STEPS):
            optimizer.zero_grad()
            seen = model(**batch).last_hidden_state.mean(1)
            torch.nn.functional.cross_entropy(head(seen), wanted).backward()
            optimizer.step()
        state = model.state_dict()
        tuned = {name: state.get(name, tensor).contiguous() for name, tensor in weights.items()}
        return {**tuned, "head.weight": head.weight.detach(), "head.bias": head.bias.detach()}

    def halved(tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }

    frozen = train(lambda _: False)
    made = {
        "MiniLM": weights,
        "head": frozen,
        "last layer": train(lambda name: "layer.5." in name or "pooler" in name),
        "all but embeddings": train(lambda name: not name.startswith("embeddings")),
        "everything": train(lambda _: True),
        "bfloat16": halved(weights),
        "head, bfloat16": halved(frozen),
    }
    for name, tensors in made.items():
        save_file(tensors, folder / f"{name}.safetensors")


def cut_into_pieces(path: Path) -> Pieces:
    from registry.storage import Piece  # noqa: PLC0415 - needs settings
    from workers.cutting import cut  # noqa: PLC0415

    pieces, start = [], 0
    with path.open("rb") as file:

        def read(begin: int, end: int) -> bytes:
            return os.pread(file.fileno(), end - begin, begin)

        for border in cut(path.stat().st_size, read):
            content = read(start, border.end)
            pieces.append(Piece(hashlib.sha256(content).digest(), len(content), border.width))
            start = border.end
    return pieces


def disk_bytes(folder: Path) -> int:
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum({one.st_ino: one.st_size for one in found}.values())


def share(folder: Path, paths: Iterable[Path], *, coded: bool) -> tuple[Any, dict[str, str], int]:
    """Store files, put together those that gain; give the storage, digests, and bytes on disk."""
    from registry.storage import storage_at  # noqa: PLC0415 - needs settings

    storage = storage_at(folder.as_uri(), spool=folder)
    pieces = {path: cut_into_pieces(path) for path in paths}
    digests = {path: storage.put([path.read_bytes()]).sha256 for path in paths}
    for path, mine in pieces.items():
        theirs = {one.sha256 for other in pieces if other != path for one in pieces[other]}
        common = sum(one.size_bytes for one in mine if one.sha256 in theirs)
        halves = sum(one.size_bytes for one in mine if one.width) if coded else 0
        if common + halves / 3 >= WORTH * path.stat().st_size:
            draft = storage.segments.draft(digests[path], mine, lambda _: None, coded=coded)
            storage.segments.adopt(draft)
    return storage, {path.stem: sha256 for path, sha256 in digests.items()}, disk_bytes(folder)


def read_all(storage: Any, sha256: str, start: int = 0, end: int | None = None) -> int:
    """Read as a download does: what memory has, in small blocks."""
    size = 0
    with closing(storage.open(sha256, start=start, end=end)) as blocks:
        while block := blocks.ready():
            size += len(block)
        for block in blocks:
            size += len(block)
    return size


def read_ranges(storage: Any, sha256: str) -> int:
    size, step = storage.size(sha256), 1 << 20
    return sum(read_all(storage, sha256, at, at + step) for at in range(12345, size, 3 * step))


def speeds(act: Callable[[Any, str], int], ways: dict[str, tuple[Any, str]]) -> dict[str, float]:
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, (storage, sha256) in ways.items():
            began = time.perf_counter()
            count = act(storage, sha256)
            found[way].append(count / 2**20 / (time.perf_counter() - began))
    return {way: max(values) for way, values in found.items()}


def copy_out(target: Path) -> Callable[[Any, str], int]:
    def copy(storage: Any, sha256: str) -> int:
        size = 0
        with closing(storage.open(sha256)) as blocks, target.open("wb", buffering=0) as file:
            for block in blocks:
                size += file.write(block)
        return size

    return copy


def cutting_speed(size: int) -> float:
    from workers.cutting import cut  # noqa: PLC0415 - needs settings

    data = os.urandom(size)
    began = time.perf_counter()
    for _ in cut(size, lambda start, end: data[start:end]):
        pass
    return size / 2**20 / (time.perf_counter() - began)


def main() -> int:
    import django  # noqa: PLC0415

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from registry.storage import storage_at  # noqa: PLC0415 - needs settings

    with tempfile.TemporaryDirectory(prefix="modelyard-segments-") as name:
        folder = Path(name)
        (folder / "files").mkdir()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(write_files, folder / "files").result()
        paths = sorted((folder / "files").iterdir())
        whole = storage_at((folder / "whole").as_uri(), spool=folder / "whole")
        for path in paths:
            whole.put([path.read_bytes()])
        before = disk_bytes(folder / "whole")
        singles = [path for path in paths if "bfloat16" not in path.stem]
        _, _, singles_after = share(folder / "singles", singles, coded=False)
        singles_before = sum(path.stat().st_size for path in singles)
        shared, digests, after = share(folder / "shared", paths, coded=False)
        coded, _, packed = share(folder / "coded", paths, coded=True)
        ways = {
            "whole": (whole, digests["head"]),
            "pieces": (shared, digests["head"]),
        }
        halves = {
            "whole": (whole, digests["head, bfloat16"]),
            "coded": (coded, digests["head, bfloat16"]),
        }
        figures = [
            Figure(
                what="MiniLM and four fine-tunes, float32", value=singles_before / 1e6, unit="MB"
            ),
            Figure(what="the same, shared bytes once", value=singles_after / 1e6, unit="MB"),
            Figure(what="the same and two in bfloat16", value=before / 1e6, unit="MB"),
            Figure(what="all seven, shared bytes once", value=after / 1e6, unit="MB"),
            Figure(what="all seven, and bfloat16 compressed", value=packed / 1e6, unit="MB"),
            Figure(what="taken of the lengths, shared", value=after / before, unit=""),
            Figure(what="taken of the lengths, and compressed", value=packed / before, unit=""),
        ]
        acts = {
            "into memory": read_all,
            "copied out": copy_out(folder / "copy"),
            "ranges of 1 MiB": read_ranges,
        }
        for what, act in acts.items():
            found, packed_found = speeds(act, ways), speeds(act, halves)
            figures += [
                Figure(what=f"{what}, whole", value=found["whole"], unit="MiB/s"),
                Figure(what=f"{what}, in pieces", value=found["pieces"], unit="MiB/s"),
                Figure(
                    what=f"{what}, in pieces of whole",
                    value=found["pieces"] / found["whole"],
                    unit="",
                    aim=">= 0.7",
                ),
                Figure(what=f"{what}, compressed", value=packed_found["coded"], unit="MiB/s"),
            ]
        figures.append(
            Figure(what="cutting by content", value=cutting_speed(64 << 20), unit="MiB/s")
        )
    keep("segments", figures, rounds=ROUNDS, steps=STEPS)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
