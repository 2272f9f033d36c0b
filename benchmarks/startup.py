"""From nothing to the first page, and from there to the second start.

A clean copy of the tree, without an environment and without data, gets `./dev up`; the clock stops
when the list of models answers in a browser's words. Package downloads come from the installer's
cache and from local folders where there are any ("wheels at hand"); the first run on a machine
fills the cache.
"""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.installation import ROOT, environment, free_port, stop, wait_for
from benchmarks.report import Figure, keep


def copy_tree(target: Path) -> None:
    """Copy what git would check out, with the changes that are not committed yet."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def time_start(tree: Path, home: Path, log: Path) -> float:
    """Start, and give the seconds until the first page answered."""
    port = free_port()
    with log.open("ab") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            ["./dev", "up"],
            cwd=tree,
            env=environment(home, port),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/models", process)
        return time.monotonic() - started
    finally:
        stop(process)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="modelyard-start-"))
    folder.chmod(0o711)
    try:
        tree, home = folder / "tree", folder / "home"
        copy_tree(tree)
        first = time_start(tree, home, folder / "log")
        second = sorted(time_start(tree, home, folder / "log") for _ in range(3))[1]
        keep(
            "startup",
            [
                Figure(what="nothing to first page", value=first, unit="s", aim="< 60"),
                Figure(what="second start to first page", value=second, unit="s", aim="< 10"),
            ],
        )
    except RuntimeError as error:
        raise SystemExit((folder / "log").read_text(encoding="utf-8")[-4000:]) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
