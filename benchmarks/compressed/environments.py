"""Environments that a benchmark makes for itself, for what the project does not depend on."""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def make_environment(name: str, *requirements: str, alone: bool = False) -> Path | None:
    """Make `var/bench/NAME` with these packages in it; give its Python, or None without them.

    It sees the packages of this environment, torch among them, behind its own. `alone` leaves out
    what the packages say they need.
    """
    folder = ROOT / "var" / "bench" / name
    python = folder / "bin" / "python"
    ready = folder / "ready.txt"
    wanted = "\n".join(requirements)
    if ready.is_file() and ready.read_text(encoding="utf-8") == wanted:
        return python
    print(f"  installing {', '.join(requirements)}", file=sys.stderr, flush=True)
    options = ["--no-deps"] if alone else []
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        (site_packages(python) / "project.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *options, *requirements],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        print(f"  not to be had: {error}", file=sys.stderr, flush=True)
        return None
    ready.write_text(wanted, encoding="utf-8")
    return python


def site_packages(python: Path) -> Path:
    """Tell where an environment has its packages."""
    (found,) = (python.parents[1] / "lib").glob("python*/site-packages")
    return found
