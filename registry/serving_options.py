"""How a deployment is served: plain numbers that the web process stores and serving obeys."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from registry.recipes.fields import ADVANCED, Frozen

# What can compute a deployment; auto takes what the files allow, the fastest first.
Runtime = Literal["auto", "onnxruntime", "torch", "aotinductor"]


DEFAULT_THREADS = 1
DEFAULT_BATCH_SIZE = 32
DEFAULT_SHADOW_PERCENT = 200


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a tuning found best for a version on machines of one kind."""

    threads: int
    max_batch_size: int
    runtime: str


def _whole(title: str, description: str, least: int, most: int, *, advanced: bool = True) -> Any:
    extra = ADVANCED if advanced else None
    return Field(title=title, description=description, ge=least, le=most, json_schema_extra=extra)


class ServingOptions(Frozen):
    """What may be set for a deployment; every field has a bound, for it is set by strangers."""

    threads: Annotated[
        int | None,
        _whole(
            "Threads",
            "How many threads compute one batch. Null: as a tuning of the version found on such a "
            "machine, else one.",
            1,
            64,
        ),
    ] = None
    max_batch_size: Annotated[
        int | None,
        _whole(
            "Rows in a batch",
            "Requests that wait are computed together, up to so many rows. Null: as a tuning of "
            "the version found on such a machine, else 32.",
            1,
            1024,
            advanced=False,
        ),
    ] = None
    queue_size: Annotated[
        int,
        _whole(
            "Places in the queue",
            "Beyond so many waiting requests a caller is told to come again.",
            1,
            65_536,
        ),
    ] = 256
    deadline_ms: Annotated[
        int,
        _whole(
            "Deadline in milliseconds",
            "A request that takes longer is refused, and a model that hangs is started again.",
            10,
            600_000,
            advanced=False,
        ),
    ] = 30_000
    idle_seconds: Annotated[
        int,
        _whole(
            "Asleep after seconds",
            "Without requests for so long the model leaves memory; 0 keeps it there.",
            0,
            604_800,
            advanced=False,
        ),
    ] = 0
    runtime: Annotated[
        Runtime,
        Field(
            title="Runtime",
            description="What computes the model; auto takes what a tuning of the version found, "
            "or what its files allow.",
            json_schema_extra=ADVANCED,
        ),
    ] = "auto"
    sibling_meanwhile: Annotated[
        bool,
        Field(
            title="Smaller variant meanwhile",
            description="While the version is not loaded, the smallest variant of it that takes "
            "and gives the same answers, where that is loaded sooner; each answer names its "
            "version.",
            json_schema_extra=ADVANCED,
        ),
    ] = False

    shadow_time_percent: Annotated[
        int,
        _whole(
            "Time of a shadow in percent",
            "The gate of a shadow asks that it computes three of four requests in at most so much "
            "of the time that the live version takes.",
            10,
            10_000,
        ),
    ] = DEFAULT_SHADOW_PERCENT

    def settled(self, tuned: Tuned | None) -> "SettledOptions":
        """Fill in what was left open: by a tuning, where it is of the runtime that computes."""
        found: dict[str, Any] = {"threads": DEFAULT_THREADS, "max_batch_size": DEFAULT_BATCH_SIZE}
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        if tuned is not None and self.runtime in {"auto", tuned.runtime}:
            found = {"threads": tuned.threads, "max_batch_size": tuned.max_batch_size}
            if tuned.runtime == "torch":
                # Of the others auto begins with one, and leaves a way where it fails.
                given["runtime"] = tuned.runtime
            found["is_compiled"] = tuned.runtime == "aotinductor"
        return SettledOptions.model_validate({**found, **given})


class SettledOptions(ServingOptions):
    """Options with nothing left open, as a serving process goes by them."""

    threads: Annotated[int, _whole("Threads", "", 1, 64)] = DEFAULT_THREADS
    max_batch_size: Annotated[int, _whole("Rows in a batch", "", 1, 1024)] = DEFAULT_BATCH_SIZE
    # A tuning found it quickest as machine code, and nothing else was chosen.
    is_compiled: bool = False
