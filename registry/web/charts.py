"""Charts as geometry: what the templates draw as inline SVG, which prints."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Final

WIDTH: Final = 760
WIDE: Final = 1120
HEIGHT: Final = 320
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 26, 46
_MOST_POINTS: Final = 240
BAR: Final = 8
# What lies beyond is on no axis that anybody reads, and overflows on the way there.
_LEAST: Final = 1e-12
_MOST: Final = 1e15


@dataclass(frozen=True)
class Tick:
    """A grid line and what it says."""

    at: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One version as a point: what it costs, how good it is, and what to say about it."""

    name: str
    x: float
    y: float
    family: int
    low: float | None = None
    high: float | None = None
    href: str = ""
    counts: bool = True
    """Whether it may stand on the front: what fails a limit beats nothing."""
    facts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point, placed."""

    name: str
    x: str
    y: str
    family: int
    href: str
    facts: Sequence[tuple[str, str]]
    on_front: bool
    low_y: str = ""
    high_y: str = ""
    label_x: str = ""
    label_y: str = ""
    anchor: str = "middle"

    @property
    def spoken(self) -> str:
        return f"{self.name}: " + ", ".join(f"{key} {value}" for key, value in self.facts)


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Quality against cost, with the line of what nothing beats on both."""

    dots: Sequence[Dot]
    front: str
    area: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    families: Sequence[int]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    floor: int = HEIGHT - BOTTOM

    @property
    def right(self) -> int:
        return self.width - RIGHT

    @property
    def middle(self) -> int:
        return (self.left + self.right) // 2


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over the steps of a job."""

    name: str
    path: str
    area: str
    last: str
    last_x: str
    last_y: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    steps: int
    low: str
    high: str
    width: int = 380
    height: int = 180
    left: int = 58
    floor: int = 150


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One named thing, with the share that it has of each measure, in per cent of the width."""

    name: str
    kind: str
    marked: bool
    shares: Sequence[tuple[int, str, str]]
    """Of each measure its series, its length as an SVG percentage, and what it says."""
    top: int

    @property
    def text_y(self) -> int:
        return self.top + 13

    def bars(self) -> list[tuple[int, str, str, int]]:
        return [(*share, self.top + 20 + BAR * at) for at, share in enumerate(self.shares)]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars under their names; widths are shares, so that text never scales."""

    bars: Sequence[Bar]
    height: int


@dataclass
class _Scale:
    low: float
    high: float
    start: float
    end: float
    log: bool = False
    span: float = field(init=False)

    def __post_init__(self) -> None:
        self.span = (self._position(self.high) - self._position(self.low)) or 1.0

    def _position(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        share = (self._position(value) - self._position(self.low)) / self.span
        return self.start + share * (self.end - self.start)


def short(value: float) -> str:
    """Write a number with as many digits as a reader needs: 0.0012, 0.35, 12.4, 1,280."""
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1000:
        return f"{value:,.0f}"
    digits = max(0, 3 - math.ceil(math.log10(size) + 1e-9)) if size >= 0.001 else 0
    text = f"{value:.{digits}f}" if size >= 0.001 else f"{value:.1e}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _tick_text(value: float, step: float) -> str:
    """Write a tick with the digits that tell it from its neighbours, all ticks alike."""
    if step < 1e-6:
        return f"{value:.1e}"
    decimals = max(0, -math.floor(math.log10(step)))
    if round(step * 10**decimals, 6) != round(step * 10**decimals):
        decimals += 1
    return f"{value:,.{decimals}f}"


def _coordinate(value: float) -> str:
    return f"{value:.1f}"


def _even_ticks(low: float, high: float, count: int = 4) -> list[tuple[float, str]]:
    rough = (high - low) / count or 1.0
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, _tick_text(value, step)) for value in values]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for marks in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 8)):
        ticks = [mark * 10.0**power for power in powers for mark in marks]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            break
    while len(inside) > 8:
        inside = inside[::2]
    return inside


def bars(named: Sequence[tuple[str, str, bool, Sequence[float]]]) -> Bars | None:
    """Stack bars of shares from 0 to 1: name, kind, whether it is marked, one share a series."""
    if not named:
        return None
    step = 20 + BAR * max(len(shares) for *_rest, shares in named) + 12
    return Bars(
        height=step * len(named),
        bars=[
            Bar(
                name=name,
                kind=kind,
                marked=marked,
                top=step * at,
                shares=[
                    (series, f"{100 * min(1.0, max(0.0, share)):.2f}%", f"{share * 100:.1f}%")
                    for series, share in enumerate(shares, 1)
                ],
            )
            for at, (name, kind, marked, shares) in enumerate(named)
        ],
    )


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = (high - low) * share or abs(high) * 0.01 or 1.0
    return low - pad, high + pad


def _can_be_drawn(point: Measured) -> bool:
    """Leave out what no axis reaches: anybody may declare any number."""
    heights = (point.y, point.low, point.high)
    is_high = all(abs(one) <= _MOST for one in heights if one is not None)
    return is_high and _LEAST <= point.x <= _MOST


def scatter(
    points: Iterable[Measured], *, ceiling: float = math.inf, width: int = WIDTH
) -> Scatter | None:
    """Place `points`; cost runs on a logarithmic axis. Fewer than two make no picture.

    No tick stands above `ceiling`: there is no accuracy over 100 %.
    """
    kept = sorted((p for p in points if _can_be_drawn(p)), key=lambda p: (p.x, -p.y))
    if len(kept) < 2:
        return None
    factor = max(1.15, (kept[-1].x / kept[0].x) ** 0.08)
    x = _Scale(kept[0].x / factor, kept[-1].x * factor, LEFT, width - RIGHT, log=True)
    reach = [value for p in kept for value in (p.low, p.y, p.high) if value is not None]
    y = _Scale(*_padded(reach, 0.12), HEIGHT - BOTTOM, TOP)
    front = _front(kept)
    corners = [(x(p.x), y(p.y)) for p in front] or [(float(width - RIGHT), float(HEIGHT - BOTTOM))]
    path = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}" + "".join(
        f"H{at_x:.1f}V{at_y:.1f}" for at_x, at_y in corners[1:]
    )
    path += f"H{width - RIGHT}"
    return Scatter(
        width=width,
        dots=_labelled(kept, x, y, {id(p) for p in front}),
        front=path,
        area=f"{path}V{HEIGHT - BOTTOM}H{corners[0][0]:.1f}z",
        x_ticks=[Tick(_coordinate(x(t)), short(t)) for t in _log_ticks(x.low, x.high)],
        y_ticks=[
            Tick(_coordinate(y(t)), text) for t, text in _even_ticks(y.low, y.high) if t <= ceiling
        ],
        families=sorted({p.family for p in kept}),
    )


def _front(points: Sequence[Measured]) -> list[Measured]:
    """Keep what nothing cheaper equals; `points` run from cheap to dear."""
    front: list[Measured] = []
    for point in points:
        if point.counts and (not front or point.y > front[-1].y):
            front.append(point)
    return front


def _labelled(points: Sequence[Measured], x: _Scale, y: _Scale, front: set[int]) -> list[Dot]:
    # What is taken already: the middle, the height and half the width of points and names.
    taken = [(x(point.x), y(point.y) + 4, 9.0) for point in points]
    dots = []
    # The points of the front get their names first.
    for point in sorted(points, key=lambda p: id(p) not in front):
        at_x, at_y = x(point.x), y(point.y)
        # Below, off the front: the front itself runs above. On it no name is to be missing.
        heights: tuple[float, ...] = (at_y + 19, at_y - 8)
        if id(point) in front:
            heights = (at_y - 8, at_y + 19, at_y + 33, at_y - 22)
        label = _free_place(point.name, at_x, heights, taken, x.end + RIGHT)
        dots.append(
            Dot(
                name=point.name,
                x=_coordinate(at_x),
                y=_coordinate(at_y),
                family=point.family,
                href=point.href,
                facts=point.facts,
                on_front=id(point) in front,
                low_y="" if point.low is None else _coordinate(y(point.low)),
                high_y="" if point.high is None else _coordinate(y(point.high)),
                label_x=_coordinate(label[0]),
                label_y=label[1],
                anchor=label[2],
            )
        )
    return dots


def _free_place(
    name: str,
    at_x: float,
    heights: Sequence[float],
    taken: list[tuple[float, float, float]],
    edge: float,
) -> tuple[float, str, str]:
    """Find room for a name beside its point, never over it: intervals run up and down there."""
    half = len(name) * 3.4 + 2
    for label_y, aside in product(heights, (1, -1)):
        middle = at_x + aside * (10 + half)
        inside = middle - half > LEFT and middle + half < edge
        if inside and all(
            abs(middle - other_x) > half + other_half or abs(label_y - other_y) > 13
            for other_x, other_y, other_half in taken
        ):
            taken.append((middle, label_y, half))
            return at_x + aside * 10, _coordinate(label_y), "start" if aside > 0 else "end"
    return at_x, "", "start"


def curve(name: str, points: Sequence[tuple[float, float]]) -> Curve | None:
    """Draw one metric over steps; long series are thinned, the last point always stays."""
    finite = [(step, value) for step, value in points if abs(value) <= _MOST]
    if not finite:
        return None
    every = max(1, len(finite) // _MOST_POINTS)
    thin = finite[::every]
    if thin[-1] != finite[-1]:
        thin.append(finite[-1])
    values = [value for _, value in thin]
    last_step = max(thin[-1][0], 1)
    x = _Scale(min(thin[0][0], last_step - 1), last_step, 58, 368)
    y = _Scale(*_padded(values, 0.08), 150, 14)
    corners = [(x(step), y(value)) for step, value in thin]
    path = "M" + "L".join(f"{at_x:.1f} {at_y:.1f}" for at_x, at_y in corners)
    return Curve(
        name=name,
        path=path,
        area=f"{path}V150H{corners[0][0]:.1f}z",
        last=short(values[-1]),
        last_x=_coordinate(corners[-1][0]),
        last_y=_coordinate(corners[-1][1]),
        x_ticks=[
            Tick(_coordinate(x(t)), text) for t, text in _even_ticks(x.low, x.high) if t == int(t)
        ],
        y_ticks=[Tick(_coordinate(y(t)), text) for t, text in _even_ticks(y.low, y.high, 3)],
        steps=int(last_step),
        low=short(min(values)),
        high=short(max(values)),
    )
