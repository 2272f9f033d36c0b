"""A folder that serves the version on its own: a small server, the graph, and a Dockerfile."""

import json
from pathlib import Path

from registry.exports.package import TAR, Package, Source, onnx_files, require_tensors

_FILES = Path(__file__).parent / "files"


def standalone_folder(source: Source) -> Package:
    """Lay a version out beside a server that needs numpy and ONNX Runtime, and nothing of ours."""
    files = onnx_files(source)
    require_tensors(source, without={"BF16"})
    about = {
        "name": source.name,
        "version": str(source.number),
        "source": source.reference,
        "threads": source.served.threads,
    }
    names = ("Dockerfile", "README.md", "requirements.txt", "server.py")
    folder = f"{source.name}-v{source.number}"
    return Package(
        "standalone.tar",
        TAR,
        (
            *((f"{folder}/{name}", (_FILES / f"{name}.txt").read_bytes()) for name in names),
            (f"{folder}/model.json", (json.dumps(about, indent=2) + "\n").encode()),
            *((f"{folder}/{path}", file) for path, file in files),
        ),
    )
