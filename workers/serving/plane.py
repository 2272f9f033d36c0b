"""What the protocols ask of the data plane; each of them is a thin translator in front of it."""

from collections.abc import Sequence
from typing import Any, Protocol

from registry.models import Actor
from workers.serving.messages import (
    Counters,
    Embedded,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Predicted,
)


class Plane(Protocol):
    """Answers calls; refuses with RegistryErrors, which each protocol says in its own shape.

    A version is a number, `@` and an alias, or nothing; a deadline is on the clock of
    time.monotonic.
    """

    def live(self) -> bool: ...

    def ready(self) -> bool: ...

    def server_metadata(self) -> dict[str, Any]: ...

    async def identify(self, authorization: str | None, address: str | None) -> Actor: ...

    def patience(self, actor: Actor, model: str) -> float: ...

    async def infer(self, request: InferRequest) -> InferResponse: ...

    async def predict(
        self, actor: Actor, model: str, version: str, rows: list[dict[str, Any]], deadline: float
    ) -> Predicted: ...

    async def embed(
        self,
        actor: Actor,
        model: str,
        version: str,
        inputs: Sequence[str] | Sequence[Sequence[int]],
        dimensions: int | None,
        deadline: float,
    ) -> Embedded: ...

    async def model_ready(self, actor: Actor, model: str, version: str) -> bool: ...

    async def model_metadata(self, actor: Actor, model: str, version: str) -> ModelMetadata: ...

    async def model_config(self, actor: Actor, model: str, version: str) -> dict[str, Any]: ...

    async def statistics(
        self, actor: Actor, model: str | None, version: str
    ) -> list[dict[str, Any]]: ...

    def counters(self, actor: Actor) -> list[Counters]: ...

    async def index(self, actor: Actor, *, ready_only: bool) -> list[dict[str, Any]]: ...

    async def load(self, actor: Actor, model: str) -> None: ...

    async def unload(self, actor: Actor, model: str) -> None: ...
