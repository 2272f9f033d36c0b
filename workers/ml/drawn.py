"""Some rows of a split: those that are not held out, or a fair sample from a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.ml.data import Rows, Split


@dataclass(frozen=True)
class SomeRows:
    """Some rows of a split, whose places are in order."""

    whole: Split
    kept: NDArray[np.int64]

    @property
    def file(self) -> Path:
        return self.whole.file

    def columns(self) -> list[str]:
        return self.whole.columns()

    def count(self) -> int:
        return len(self.kept)

    def batches(self, columns: Sequence[str], size: int, *, start: int = 0) -> Iterator[Rows]:
        """Yield the kept rows from `start` on, in their order in the file."""
        wanted = self.kept[start:]
        held: list[Rows] = []
        count = first = 0
        for block in self.whole.batches(columns, max(size, 256)) if len(wanted) else ():
            here = len(next(iter(block.values())))
            inside = wanted[(wanted >= first) & (wanted < first + here)] - first
            first += here
            if len(inside):
                held.append(take(block, inside))
                count += len(inside)
            while count >= size:
                joined = join(held)
                yield take(joined, np.arange(size))
                held, count = [take(joined, np.arange(size, count))], count - size
            if first > wanted[-1]:
                break
        if count:
            yield join(held)


def take(rows: Rows, places: NDArray[np.int64]) -> Rows:
    return {
        name: values[places] if isinstance(values, np.ndarray) else [values[at] for at in places]
        for name, values in rows.items()
    }


def join(blocks: Sequence[Rows]) -> Rows:
    """Put blocks of the same columns behind each other."""
    made: dict[str, Any] = {}
    for name, first in blocks[0].items():
        if isinstance(first, np.ndarray):
            made[name] = np.concatenate([block[name] for block in blocks])
        else:
            made[name] = [value for block in blocks for value in block[name]]
    return made


def draw(count: int, most: int | None, seed: int) -> NDArray[np.int64]:
    """Draw at most so many of `count` places, in order; the first ones may be all of one class."""
    if most is None or most >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng((seed, 0xD4A3)).choice(count, most, replace=False))


def draw_rows(split: Split, most: int, seed: int) -> Split:
    """Give a sample of a split, or all of it where it has no more rows."""
    count = split.count()
    return split if most >= count else SomeRows(split, draw(count, most, seed))
