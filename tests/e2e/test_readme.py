"""The README's tour and the how-to pages do what they say, block by block, on a fresh installation.

The blocks run as they stand. Only the address of the server is another, and `var` is a link to the
data folder of the installation.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from benchmarks.installation import running, wait_for_json

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "http://127.0.0.1:8000"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOW_TO = (
    "tokens",
    "register",
    "find",
    "uploads",
    "client",
    "versions",
    "compress",
    "train",
    "batch-inference",
    "export",
    "sign",
    "sign-in",
    "sharing",
    "approvals",
    "unsafe-files",
    "webhooks",
    "serve",
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def tour() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition("## A tour of five minutes\n")[2].partition("\n## ")[0]


class Reader:
    """Somebody who types what a page says: one shell and one Python prompt for each page."""

    def __init__(self, folder: Path, addresses: Mapping[str, str]) -> None:
        self.folder = folder
        self.addresses = addresses
        self.state = folder / ".state"

    def follow(self, title: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state.write_text("", encoding="utf-8")
        prompt: dict[str, object] = {"__name__": "__main__"}
        blocks = BLOCK.findall(page)
        assert blocks, title
        for number, (language, text) in enumerate(blocks, 1):
            code = text
            for written, real in self.addresses.items():
                code = code.replace(written, real)
            where = f"{title}, block {number}"
            if language == "sh":
                self.type(where, code)
            else:
                for name, value in self.exported().items():
                    monkeypatch.setenv(name, value)
                exec(compile(code, where, "exec"), prompt)

    def type(self, where: str, code: str) -> None:
        script = f"set -a\nsource .state\n{code}\n{{ declare -f; export -p; }} >.state"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            capture_output=True,
            text=True,
            errors="replace",  # a frame of gRPC-Web is no text
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, (
            f"{where}:\n{code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )

    def exported(self) -> dict[str, str]:
        listed = subprocess.run(
            ["bash", "-c", "source .state; env -0"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        pairs = (line.partition("=") for line in listed.stdout.split("\0") if line)
        return {name: value for name, _, value in pairs if name.startswith("MODELYARD_")}


def test_the_documents_work_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    install_client(tmp_path, monkeypatch)
    with running(samples=True) as installation:
        (tmp_path / "var").symlink_to(installation.home)
        wait_for_json(
            f"{installation.url}/api/v1/models/samples/digits-cnn",
            lambda model: model["latest_version"],
            seconds=600,
        )
        addresses = {
            ADDRESS: installation.url,
            "http://127.0.0.1:8080": installation.infer_url,
            "127.0.0.1:8080": f"127.0.0.1:{installation.infer_port}",
            "127.0.0.1:8081": f"127.0.0.1:{installation.grpc_port}",
        }
        reader = Reader(tmp_path, addresses)
        reader.follow("README.md", tour(), monkeypatch)
        for name in HOW_TO:
            page = (ROOT / "docs/howto" / f"{name}.md").read_text(encoding="utf-8")
            reader.follow(f"docs/howto/{name}.md", page, monkeypatch)


def install_client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the command `modelyard` on the path, as `pip install ./client` does."""
    command = folder / "bin/modelyard"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}/client/src" exec "{sys.executable}" -m modelyard "$@"\n',
        encoding="utf-8",
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(folder / "home"))


def test_a_backup_is_restored_as_written(tmp_path):
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    section = page.partition("## Backup and restore\n")[2].partition("\n## ")[0]
    keep, restore = [code for _, code in BLOCK.findall(section)]
    (tmp_path / ".venv").symlink_to(sys.prefix)
    with running() as installation:
        old_token = installation.token
        call(installation, old_token, {"namespace": "admin", "name": "kept"})
        type_as_in(tmp_path, installation, keep)
    with running() as installation:
        settings = keep.partition("pg_dump")[0]
        type_as_in(tmp_path, installation, settings + restore)
        assert [item["name"] for item in call(installation, old_token)["items"]] == ["kept"]


def type_as_in(folder, installation, code):
    """Run `code` where `var` is the data folder of this installation."""
    for kept in ("blobs", "sealed", "keys"):
        (installation.home / "storage" / kept).mkdir(parents=True, exist_ok=True)
    code = code.replace("$PWD/var", str(installation.home))
    subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=folder, check=True, timeout=120)


def call(installation, token, body=None):
    request = Request(
        installation.url + "/api/v1/models",
        None if body is None else json.dumps(body).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    with urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_every_how_to_is_followed():
    assert set(HOW_TO) == {path.stem for path in (ROOT / "docs/howto").glob("*.md")}
