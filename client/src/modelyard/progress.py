"""What a transfer tells while it runs; the command line draws it, a program may listen."""

from typing import Protocol


class Progress(Protocol):
    """Told from many threads; must not block."""

    def begin(self, verb: str, files: int, total_bytes: int) -> None:
        """Say what there is to move altogether, once it is known."""

    def start_file(self, path: str, size_bytes: int) -> None:
        """Say that work on a file began."""

    def advance(self, path: str, count: int) -> None:
        """Say that `count` bytes of a file moved; negative when some have to move again."""

    def reuse(self, path: str, count: int) -> None:
        """Say that `count` bytes need not move, for they are there from before."""

    def end_file(self, path: str) -> None:
        """Say that a file is done."""

    def note(self, text: str) -> None:
        """Say something that the user should read."""


class Silent:
    """Tells nobody."""

    def begin(self, verb: str, files: int, total_bytes: int) -> None: ...
    def start_file(self, path: str, size_bytes: int) -> None: ...
    def advance(self, path: str, count: int) -> None: ...
    def reuse(self, path: str, count: int) -> None: ...
    def end_file(self, path: str) -> None: ...
    def note(self, text: str) -> None: ...
