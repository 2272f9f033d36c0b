"""Which tests `./dev fast` leaves out because they take long; `tests/slow.txt` names them.

.venv/bin/pytest -n 2 -m "not e2e and not gpu" --junitxml var/tests.xml
.venv/bin/python -m tests.slow var/tests.xml

write the list anew, on a machine that does nothing else. The whole run leaves nothing out.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

LIST: Final = Path(__file__).with_suffix(".txt")
# A test is slow if one of its cases takes so many seconds, or all of them together.
_CASE_SECONDS: Final = 0.25
_ALL_SECONDS: Final = 1.5


def slow_tests() -> frozenset[str]:
    """Give the tests that are slow, as `path::name`, without what they are parametrised by."""
    return frozenset(LIST.read_text(encoding="utf-8").split())


def _measured(report: Path) -> dict[str, list[float]]:
    """Read how many seconds each case took, set up and taken down, by its test."""
    found: dict[str, list[float]] = defaultdict(list)
    for case in ET.parse(report).iter("testcase"):
        path = f"{case.attrib['classname'].replace('.', '/')}.py"
        name = case.attrib["name"].partition("[")[0]
        found[f"{path}::{name}"].append(float(case.attrib["time"]))
    return found


def main() -> None:
    slow = {
        test
        for test, seconds in _measured(Path(sys.argv[1])).items()
        if max(seconds) > _CASE_SECONDS or sum(seconds) > _ALL_SECONDS
    }
    LIST.write_text("".join(f"{test}\n" for test in sorted(slow)), encoding="utf-8")


if __name__ == "__main__":
    main()
