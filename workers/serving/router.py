"""Which deployment answers a request: by weight, by the caller where that sticks, or as asked."""

import random
import zlib
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate

from registry.routes import Deployed, Route
from workers.serving.fleet import Served
from workers.serving.messages import Counters

_TRAFFIC = frozenset({"live", "canary"})


@dataclass(slots=True)
class Target:
    """A deployment beside the version that answers for it."""

    deployed: Deployed
    served: Served
    # Its own, also where others serve the same version with the same options.
    counters: Counters
    # What answers while it is not loaded, where the deployment says so.
    sibling: "Target | None" = None


@dataclass(slots=True, eq=False)
class Entry:
    """An endpoint as requests find it."""

    route: Route
    targets: list[Target]
    # What answers now: for a moment still the deployments of before, until the new ones are warm.
    active: list[Target] = field(default_factory=list)
    _bounds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.activate(self.with_traffic)

    @property
    def with_traffic(self) -> list[Target]:
        return [
            one for one in self.targets if one.deployed.role in _TRAFFIC and one.deployed.weight > 0
        ]

    @property
    def shadows(self) -> list[Target]:
        return [one for one in self.targets if one.deployed.role == "shadow"]

    def activate(self, targets: list[Target]) -> None:
        self.active = targets
        self._bounds = list(accumulate(one.deployed.weight for one in targets))

    def pick(self, caller: str) -> Target | None:
        """Choose who answers; None where no deployment has traffic."""
        active = self.active
        if len(active) < 2:
            return active[0] if active else None
        total = self._bounds[-1]
        if self.route.sticky:
            point = zlib.crc32(caller.encode()) * total >> 32
        else:
            point = random.randrange(total)  # noqa: S311 - which of them is no secret
        chosen = active[bisect(self._bounds, point)]
        if chosen.served.is_ready:
            return chosen
        # Another one answers meanwhile.
        return next((one for one in active if one.served.is_ready), chosen)

    def named(self, version: str) -> Target | None:
        """Find the deployment of a version asked for by its number."""
        return next((one for one in self.targets if one.served.version == version), None)
