"""An OCI image layout with the version as an artifact of CNCF's ModelPack, for any OCI registry."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from registry.errors import Conflict
from registry.exports.package import TAR, Content, Package, Source, StoredFile

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_PATH = "org.cncf.model.filepath"

# Layers are the files as they are, so that their digests are those that the registry knows.
_WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
_SETTINGS = "application/vnd.cncf.model.weight.config.v1.raw"
_DOCUMENTS = "application/vnd.cncf.model.doc.v1.raw"
_CODE = "application/vnd.cncf.model.code.v1.raw"
_KINDS: Mapping[str, str] = {
    **dict.fromkeys((".json", ".yaml", ".yml", ".txt", ".model", ".vocab"), _SETTINGS),
    **dict.fromkeys((".md", ".rst", ".pdf", ".html", ".png", ".jpg"), _DOCUMENTS),
    **dict.fromkeys((".py", ".ipynb", ".sh"), _CODE),
}
_SCALES = ((10**15, "Q"), (10**12, "T"), (10**9, "B"), (10**6, "M"), (1000, "K"))
# Less than this would be rounded to nothing.
_FEWEST = 50
_FORMATS = ("onnx", "safetensors", "gguf", "pt2", "myz")


def modelpack_layout(source: Source) -> Package:
    """Lay a version out for `oras cp --from-oci-layout` and `skopeo copy oci:`.

    Raises:
        Conflict: the version has no file that may be opened.

    """
    if not source.files:
        raise Conflict(
            "{version} has no file that may be opened, so there is nothing to export.",
            code="no_files",
            version=source.reference,
        )
    blobs: dict[str, Content] = {}
    config = _keep(blobs, _json(_config(source)), _CONFIG)
    layers = [_layer(blobs, one) for one in source.files]
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "artifactType": _ARTIFACT,
        "config": config,
        "layers": layers,
        "annotations": {"org.opencontainers.image.title": source.reference},
    }
    named = {
        **_keep(blobs, _json(manifest), _MANIFEST),
        "artifactType": _ARTIFACT,
        "annotations": {"org.opencontainers.image.ref.name": f"v{source.number}"},
    }
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [named]}
    return Package(
        "modelpack.tar",
        TAR,
        (
            ("oci-layout", _json({"imageLayoutVersion": "1.0.0"})),
            ("index.json", _json(index)),
            *((f"blobs/sha256/{digest}", content) for digest, content in blobs.items()),
        ),
    )


def _config(source: Source) -> dict[str, Any]:
    endings = {PurePosixPath(one.path).suffix.lstrip(".").lower() for one in source.files}
    formats = [one for one in _FORMATS if one in endings]
    size = source.parameters_count
    return {
        "descriptor": {
            "createdAt": source.created_at.isoformat(),
            "name": source.name,
            "version": str(source.number),
            "vendor": source.namespace,
            "sourceURL": source.address.removesuffix("/exports"),
            **({"licenses": list(source.licenses)} if source.licenses else {}),
            **({"description": source.message} if source.message else {}),
        },
        "config": {
            **({"format": formats[0]} if formats else {}),
            **({"paramSize": written} if (written := _in_thousands(size)) else {}),
        },
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{one.sha256}" for one in source.files]},
    }


def _in_thousands(count: int | None) -> str:
    """Write a number of parameters as the specification does: 6.7B; nothing for a few."""
    if count is None or count < _FEWEST:
        return ""
    scale, unit = next((one for one in _SCALES if count >= one[0]), _SCALES[-1])
    return f"{count / scale:.1f}".removesuffix(".0") + unit


def _layer(blobs: dict[str, Content], file: StoredFile) -> dict[str, Any]:
    blobs[file.sha256] = file
    return {
        "mediaType": _KINDS.get(PurePosixPath(file.path).suffix.lower(), _WEIGHTS),
        "digest": f"sha256:{file.sha256}",
        "size": file.size_bytes,
        "annotations": {_PATH: file.path},
    }


def _keep(blobs: dict[str, Content], content: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    blobs[digest] = content
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode()
