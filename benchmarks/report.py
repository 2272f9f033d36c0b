"""What a benchmark leaves behind: figures as JSON, and one table of all of them."""

import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
_LOAD_BEFORE = round(os.getloadavg()[0], 1)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number; `aim` is what it should be, such as "< 5"."""

    what: str
    value: float
    unit: str
    aim: str = ""

    @property
    def met(self) -> bool | None:
        """Say whether the aim is met; nothing where there is none."""
        if not self.aim:
            return None
        sign, _, bound = self.aim.partition(" ")
        return self.value < float(bound) if sign == "<" else self.value >= float(bound)


def machine() -> dict[str, Any]:
    """Describe the machine by what matters to the numbers, and by no name."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.group(1)) / 2**20, 1) if memory else None,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def keep(name: str, figures: Iterable[Figure], **details: Any) -> Path:
    """Write the figures of one benchmark; an older run is replaced."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "benchmark": name,
        "at": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        # Of others too: what ran besides makes times longer, and CPU time less so.
        "load_before": _LOAD_BEFORE,
        "figures": [asdict(figure) for figure in figures],
        **({"details": details} if details else {}),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def kept(name: str) -> list[Figure]:
    """Give the figures that a benchmark left behind last."""
    content = _read(str(RESULTS / f"{name}.json"))
    return [Figure(**row) for row in json.loads(content)["figures"]] if content else []


def table(names: Sequence[str] = ()) -> str:
    """Draw the kept figures of these benchmarks (of all) as one Markdown table."""
    lines = ["| benchmark | figure | value | aim | |", "|---|---|---:|---:|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        if names and path.stem not in names:
            continue
        for row in json.loads(path.read_text(encoding="utf-8"))["figures"]:
            figure = Figure(**row)
            mark = {True: "met", False: "missed", None: ""}[figure.met]
            aim = f"{figure.aim} {figure.unit}".strip() if figure.aim else ""
            value = f"{figure.value:,.4g}" if figure.value < 1000 else f"{figure.value:,.0f}"
            lines.append(
                f"| {path.stem} | {figure.what} | {value} {figure.unit} | {aim} | {mark} |"
            )
    return "\n".join(lines) + "\n"


def write_page() -> None:
    """Put the table of all kept figures into the page of the benchmarks."""
    write_part("figures", table())


def write_part(name: str, content: str) -> None:
    """Put what was measured between the marks of that name on the page of the benchmarks."""
    page = FOLDER / "README.md"
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(before + begin + content + end + after, encoding="utf-8")
