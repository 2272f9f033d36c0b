"""Rows to measure with where no dataset is given: plain sentences, grey noise, small tensors."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.errors import Invalid
from workers.ml.data import Rows, TextSplit
from workers.ml.infer.engines import OnnxEngine, ProgramEngine
from workers.ml.infer.feeders import ImageFeeder, TensorFeeder
from workers.ml.infer.runtime import Runtime

# Of one made-up tensor: half a gigabyte.
MAX_ELEMENTS = 1 << 26

SENTENCES = (
    "The train to the coast leaves at a quarter past seven.",
    "She planted three rows of beans behind the old barn.",
    "Water boils at a lower temperature on a high mountain.",
    "The committee will publish its report next Thursday.",
    "My keys are on the table beside the front door.",
    "A good dictionary gives the history of each word.",
    "The river froze so hard that we could walk across it.",
    "How do I convert a list of strings into integers?",
    "Interest rates rose for the third time this year.",
    "The violinist tuned her instrument before the concert.",
    "Mix the flour and butter until the dough is smooth.",
    "The telescope showed four moons close to the planet.",
    "He forgot to save the file before the power failed.",
    "Our flight was delayed because of heavy snow.",
    "The museum is closed on Mondays and public holidays.",
    "A vaccine trains the immune system to know a virus.",
    "The cat slept all afternoon on the warm windowsill.",
    "Please read the contract carefully before you sign it.",
    "The goalkeeper saved two penalties in the final.",
    "Whales breathe air and must come up to the surface.",
    "The server returned an error because the disk was full.",
    "Grandmother told us stories by the fire every winter.",
    "Copper conducts electricity better than iron.",
    "They painted the kitchen in a pale shade of green.",
    "The court decided that the law was not valid.",
    "Sort the records by date and remove the duplicates.",
    "The bakery on the corner sells bread from six o'clock.",
    "An earthquake shook the islands early this morning.",
    "Which bus goes from the station to the university?",
    "The novel follows one family through four generations.",
    "Turn left after the bridge and drive up the hill.",
    "The patient felt better after two days of rest.",
    "Light takes about eight minutes to come from the sun.",
    "The new phone has a larger screen and a better battery.",
    "Farmers are worried about the lack of rain.",
    "A matrix with a determinant of zero has no inverse.",
    "The orchestra played the last movement too fast.",
    "You should back up your photos to a second drive.",
    "The desert is cold at night, even in summer.",
    "Parliament passed the budget by a narrow majority.",
    "The function returns None when the key is missing.",
    "Bees tell each other where the flowers are by dancing.",
    "The old bridge was built without a single nail.",
    "I would like a table for two near the window.",
    "The company hired forty engineers last spring.",
    "Salt lowers the freezing point of water.",
    "The painting was stolen and found ten years later.",
    "He runs five kilometres every morning before work.",
    "The password must have at least twelve characters.",
    "Children learn a second language faster than adults.",
    "The volcano has been quiet for three hundred years.",
    "Close the connection when the transfer is complete.",
    "The price of coffee doubled within a year.",
    "Her latest film was shown at the festival in Venice.",
    "The recipe needs two eggs and a cup of sugar.",
    "A neural network learns by adjusting its weights.",
    "The lighthouse guides ships past the dangerous rocks.",
    "The lawyer asked the witness to repeat her answer.",
    "Plants turn sunlight, water and air into sugar.",
    "The library lends books, films and musical scores.",
    "An index makes the query much faster on large tables.",
    "The storm broke the mast of the sailing boat.",
    "We measured the wall twice before we cut the wood.",
    "The moon pulls the sea and so makes the tides.",
)


class BuiltInSplit(TextSplit):
    """A split that lives in this module; only its name shows up in messages."""


NOWHERE = BuiltInSplit(Path("built-in"))


def probe_rows(runtime: Runtime, count: int) -> Rows:
    """Make rows that the model's feeder takes; the same ones every time."""
    feeder = runtime.feeder
    if isinstance(feeder, ImageFeeder):
        return {feeder.column: _noise(count)}
    if isinstance(feeder, TensorFeeder):
        assert isinstance(runtime.engine, OnnxEngine | ProgramEngine)
        return _tensors(runtime.engine.inputs(), count)
    texts: list[str | None] = [SENTENCES[at % len(SENTENCES)] for at in range(count)]
    return dict.fromkeys(feeder.columns, texts)


def _noise(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def _tensors(
    inputs: Mapping[str, tuple[np.dtype[Any], list[int | str | None]]], count: int
) -> Rows:
    """Draw small numbers; free axes but the first are sixteen long."""
    drawn = np.random.default_rng(0)
    made: dict[str, NDArray[Any]] = {}
    for name, (dtype, axes) in inputs.items():
        inner = [size if isinstance(size, int) and size > 0 else 16 for size in axes[1:]]
        first = axes[0] if axes and isinstance(axes[0], int) and axes[0] > 0 else count
        shape = [first, *inner] if axes else []
        if math.prod(shape) > MAX_ELEMENTS:
            raise Invalid(
                "The input {name!r} has the shape {axes}, too large to make up rows for.",
                code="unsupported_input",
                name=name,
                axes=axes,
            )
        if dtype.kind == "f":
            made[name] = drawn.standard_normal(shape).astype(dtype)
        else:
            made[name] = drawn.integers(0, 2, shape).astype(dtype)
    return made
