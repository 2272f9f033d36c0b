"""Files of others are as they were published, and say where they come from."""

import hashlib
import re
from pathlib import Path

STATIC = Path(__file__).parents[3] / "static"
ROW = re.compile(
    r"^\| (?P<file>\S+) \| [^\n]* \| (?P<version>[\d.]+) "
    r"\| (?P<sha256>[0-9a-f]{64}) \| (?P<licence>\S.*) \|$",
    re.MULTILINE,
)


def listed():
    return {row["file"]: row for row in ROW.finditer((STATIC / "vendor/VENDOR.md").read_text())}


def test_every_vendored_file_is_listed_with_its_digest():
    found = {
        str(path.relative_to(STATIC)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("vendor/*.js", "fonts/*.woff2")
        for path in STATIC.glob(pattern)
    }
    assert found == {name: row["sha256"] for name, row in listed().items()}


def test_every_licence_is_there():
    assert (STATIC / "fonts/OFL.txt").read_text().count("SIL OPEN FONT LICENSE") >= 1
    assert "Zero-Clause BSD" in (STATIC / "vendor/LICENSE.htmx.txt").read_text()


def test_own_scripts_and_styles_name_no_foreign_address():
    for path in [*STATIC.glob("js/*.js"), *STATIC.glob("css/*.css")]:
        assert not re.search(r"https?://", path.read_text(encoding="utf-8")), path.name
