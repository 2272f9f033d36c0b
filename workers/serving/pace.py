"""When it pays to wait awake: one caller calls one small model, time after time.

To wake a process takes longer than a tiny model computes. So while a server has nothing else to do
than one such caller, its process for that model looks for the next batch with open eyes, and the
server for the answer. Who waits so takes a core; among several callers it would be taken from those
who fill the next batch, and nobody waits so there.
"""

from typing import Final

# So many batches come alone, one after the other, before anybody waits awake; and again after each
# round of so many, for who waits awake for one caller does not see that there are others.
STREAK: Final = 32
ROUND: Final = 1024
# Who mostly asks again later than this is waited for asleep, and who once took so long begins anew.
LONGEST_PAUSE_NS: Final = 300_000
REST_NS: Final = 5_000_000
# What mostly computes longer is worth being woken for.
LONGEST_RUN_NS: Final = 100_000
# Beyond twice what was usual nobody looks on.
_BEYOND_NS: Final = 100_000


class Pace:
    """How batches come to the models of one server."""

    def __init__(self) -> None:
        self._whose: object = None
        # The queues a batch of which is being computed.
        self._under_way: set[object] = set()
        self._left_ns = 0
        self._pause_ns = 0
        self._run_ns = 0
        self._streak = 0

    def begin(self, whose: object, now_ns: int, *, is_alone: bool) -> int:
        """Count a batch of the queue `whose`: one request `is_alone` if nobody waits behind it.

        Gives for how many nanoseconds the next one is waited for awake; 0 is not at all.
        """
        pause_ns = now_ns - self._left_ns
        apart = bool(self._under_way) or whose is not self._whose
        self._whose = whose
        self._under_way.add(whose)
        if apart or not is_alone or pause_ns > REST_NS:
            self._streak, self._pause_ns, self._run_ns = 0, LONGEST_PAUSE_NS, LONGEST_RUN_NS
            return 0
        self._streak = (self._streak + 1) % ROUND
        self._pause_ns += (pause_ns - self._pause_ns) >> 4
        is_soon = self._pause_ns <= LONGEST_PAUSE_NS and self._run_ns <= LONGEST_RUN_NS
        return 2 * self._pause_ns if is_soon and self._streak >= STREAK else 0

    def end(self, whose: object, now_ns: int, *, run_ns: int, others_wait: bool) -> None:
        """Count what came back of the batch of this queue, in which `others_wait` or nobody."""
        self._under_way.discard(whose)
        if whose is self._whose:
            self._left_ns = now_ns
            self._run_ns += (run_ns - self._run_ns) >> 4
            if others_wait:
                self._streak = 0

    def forget(self, whose: object) -> None:
        """Wait for nothing of this queue any more, whose process has gone."""
        self._under_way.discard(whose)
        if whose is self._whose:
            self._whose, self._streak = None, 0

    @property
    def patience_ns(self) -> int:
        """For how long an answer is waited for awake."""
        return 2 * self._run_ns + _BEYOND_NS
