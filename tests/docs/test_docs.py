"""The documents: links lead somewhere, paths exist, every variable is explained, code parses."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.__main__ import NAMES
from benchmarks.report import table

pytestmark = pytest.mark.contract

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "client").glob("*.md"),
    ]
)
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(
    r"`((?:registry|workers|client|config|templates|static|deploy|benchmarks|tests)/[^`\s]*)`"
)
VARIABLE = re.compile(r"\b(MODELYARD_[A-Z][A-Z_]*[A-Z]|DATABASE_URL|REDIS_URL)\b")


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Name the headings of a document as GitHub does."""
    headings = re.findall(r"^#{1,6} +(.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", PAGES, ids=name)
def test_links_lead_somewhere(document):
    for link in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", link):
            assert link.startswith("https://"), link
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("document", PAGES, ids=name)
def test_named_paths_exist(document):
    for place in PLACE.findall(prose(document)):
        if not re.search(r"[{<*…]|^deploy/secrets/", place):
            assert (ROOT / place).exists(), f"{place} does not exist"


@pytest.mark.parametrize("document", PAGES, ids=name)
def test_code_blocks_parse(document):
    for language, code in FENCE.findall(document.read_text(encoding="utf-8")):
        if language == "python":
            ast.parse(code)
        elif language == "json":
            json.loads(code)
        elif language in {"sh", "bash"}:
            done = subprocess.run(
                ["bash", "-n"], input=code, text=True, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr


def test_every_variable_is_in_the_table_and_every_row_is_read_somewhere():
    sources = [
        ROOT / "dev",
        ROOT / "docker-compose.yml",
        *(path for path in (ROOT / "config").rglob("*.py") if "test" not in path.stem),
        *(ROOT / "workers").rglob("*.py"),
    ]
    read = {
        variable.removesuffix("_FILE")
        for source in sources
        for variable in VARIABLE.findall(source.read_text(encoding="utf-8"))
    }
    document = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", document, re.MULTILINE))
    assert read - rows == set(), "read, but not in the table of docs/operations.md"
    assert rows - read == set(), "in the table of docs/operations.md, but read nowhere"


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs/adr"
    index = (folder / "README.md").read_text(encoding="utf-8")
    for document in folder.glob("0*.md"):
        text = document.read_text(encoding="utf-8")
        number, title = re.match(r"# (\d{4})\. (.+)\n", text).groups()
        assert document.name.startswith(number)
        assert f"[{number}]({document.name}) | {title} |" in index
        for part in ("**Context.**", "**Choice.**", "**Rejected.**", "**Revisit**"):
            assert part in text, f"{document.name} lacks {part}"


def test_every_page_is_reached_from_the_index():
    index = ROOT / "docs/index.md"
    seen, waiting = set(), [index]
    while waiting:
        document = waiting.pop()
        if document in seen or document.suffix != ".md":
            continue
        seen.add(document)
        waiting += [
            (document.parent / link.partition("#")[0]).resolve()
            for link in LINK.findall(prose(document))
            if not re.match(r"[a-z]+:", link) and link.partition("#")[0]
        ]
    assert set((ROOT / "docs").rglob("*.md")) - seen == set()


def test_the_page_of_the_benchmarks_shows_what_was_measured():
    assert table() in (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")


def test_every_benchmark_is_run_and_explained():
    page = (ROOT / "benchmarks/README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert (ROOT / f"benchmarks/{name}.py").is_file()
        assert f"| `benchmarks/{name}.py` |" in page
