"""Generates the modules of this package again: python -m workers.serving.protos [folder]."""

import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def generate(folder: Path) -> None:
    """Write the modules and their types below `folder`.

    Raises:
        SystemExit: a .proto file is not valid.

    """
    sources = sorted(str(path.relative_to(ROOT)) for path in HERE.glob("*.proto"))
    options = [f"-I{ROOT}", f"--python_out={folder}", f"--pyi_out={folder}"]
    if status := protoc.main(["protoc", *options, *sources]):
        sys.exit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
