"""Draws a transfer: bars on a terminal, a line now and then where nobody watches."""

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from modelyard.cli.output import Session, plain, say, size_text
from modelyard.progress import Progress, Silent

# Smaller files come and go too fast for a bar of their own.
_OWN_BAR_BYTES = 4 << 20
_LINE_SECONDS = 10.0
_WINDOW_SECONDS = 8.0
# So many files are each worth a line where there are no bars.
_FEW = 50


@contextlib.contextmanager
def drawn(session: Session) -> Iterator[Progress]:
    """Give a listener for the transfer that suits where its words go."""
    if session.quiet:
        yield Notes()
    elif sys.stderr.isatty():
        with Drawing() as drawing:
            yield drawing
    else:
        yield Lines()


class Notes(Silent):
    """Passes on only what the user has to know."""

    def note(self, text: str) -> None:
        say(plain(text))


class Tally:
    """Counts what moved, and how fast of late; safe to use from many threads."""

    def __init__(self) -> None:
        self.files = self.ended = 0
        self.total = self.done = 0
        self._lock = threading.Lock()
        self._moved: deque[tuple[float, int]] = deque()

    def begin(self, files: int, total: int) -> None:
        self.files, self.total = files, total

    def add(self, count: int, *, moved: bool) -> None:
        with self._lock:
            self.done += count
            now = time.monotonic()
            if moved:
                self._moved.append((now, count))
            while self._moved and now - self._moved[0][0] > _WINDOW_SECONDS:
                self._moved.popleft()

    @property
    def speed(self) -> float:
        """Bytes a second over the last seconds."""
        with self._lock:
            if not self._moved:
                return 0.0
            span = max(0.5, time.monotonic() - self._moved[0][0])
            return max(0.0, sum(count for _, count in self._moved) / span)

    def describe(self) -> str:
        speed = self.speed
        words = f"{size_text(self.done)} of {size_text(self.total)}"
        if speed:
            words += f", {size_text(int(speed))}/s, {_time((self.total - self.done) / speed)} left"
        return words


def _time(seconds: float) -> str:
    whole = max(0, int(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


class Lines(Notes):
    """Says how far it is every few seconds, in plain lines."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._verb = ""
        self._said_at = time.monotonic()

    def begin(self, verb: str, files: int, total_bytes: int) -> None:
        self._verb = verb
        self._tally.begin(files, total_bytes)
        say(f"{verb}: {files} files, {size_text(total_bytes)}")

    def advance(self, path: str, count: int) -> None:
        self._tally.add(count, moved=True)
        now = time.monotonic()
        if now - self._said_at > _LINE_SECONDS:
            self._said_at = now
            say(f"{self._verb}: {self._tally.describe()}")

    def reuse(self, path: str, count: int) -> None:
        self._tally.add(count, moved=False)

    def end_file(self, path: str) -> None:
        if self._tally.files <= _FEW:
            say(f"{self._verb}: {plain(path)}")


class Standing(ProgressColumn):
    """The words beside the bar of the whole."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self._tally = tally

    def render(self, task: Task) -> Text:
        if task.fields.get("whole"):
            return Text(self._tally.describe())
        return Text(f"{size_text(int(task.completed))} of {size_text(int(task.total or 0))}")


class Drawing:
    """Bars: one for all, and one for each larger file on its way."""

    def __init__(self) -> None:
        self._tally = Tally()
        self._console = Console(stderr=True)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            Standing(self._tally),
            console=self._console,
            transient=True,
        )
        self._whole: TaskID | None = None
        self._lock = threading.Lock()
        self._files: dict[str, TaskID] = {}

    def __enter__(self) -> "Drawing":  # noqa: PYI034 - Self came with Python 3.11
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def begin(self, verb: str, files: int, total_bytes: int) -> None:
        self._tally.begin(files, total_bytes)
        self._whole = self._bars.add_task(f"{verb} {files} files", total=total_bytes, whole=True)

    def start_file(self, path: str, size_bytes: int) -> None:
        if size_bytes >= _OWN_BAR_BYTES:
            shown = plain(path if len(path) <= 40 else "..." + path[-37:])
            with self._lock:
                self._files[path] = self._bars.add_task(f"  {shown}", total=size_bytes)

    def advance(self, path: str, count: int) -> None:
        self._tally.add(count, moved=True)
        self._move(path, count)

    def reuse(self, path: str, count: int) -> None:
        self._tally.add(count, moved=False)
        self._move(path, count)

    def _move(self, path: str, count: int) -> None:
        if self._whole is not None:
            self._bars.advance(self._whole, count)
        with self._lock:
            bar = self._files.get(path)
        if bar is not None:
            self._bars.advance(bar, count)

    def end_file(self, path: str) -> None:
        with self._lock:
            bar = self._files.pop(path, None)
        if bar is not None:
            self._bars.remove_task(bar)

    def note(self, text: str) -> None:
        self._console.print(Text(plain(text)))
