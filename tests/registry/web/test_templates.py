"""The templates stay readable: every line fits a window."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[3]
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))
COLUMNS = 120


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_line_is_longer_than_a_window(template):
    lines = enumerate(template.read_text(encoding="utf-8").splitlines(), 1)
    assert {number: len(line) for number, line in lines if len(line) > COLUMNS} == {}
