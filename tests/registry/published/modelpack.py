"""The model artifact of ModelPack and the image layout of OCI, as their specifications put them.

Written after docs/config.md, docs/annotations.md and schema/config-schema.json of
github.com/modelpack/model-spec (v1, with `diffIds`), and image-layout.md, manifest.md and
descriptor.md of github.com/opencontainers/image-spec 1.1.
"""

import hashlib
import re
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
# <count><scale-prefix>, the count with at most one digit after the point.
ParamSize = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9])?[KkMmBbTtQq]$")]
FILEPATH = "org.cncf.model.filepath"
LAYERS = re.compile(
    r"application/vnd\.cncf\.model\.(weight|weight\.config|doc|code|dataset)\.v1"
    r"\.(raw|tar|tar\+gzip|tar\+zstd)"
)


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel)


class ModelDescriptor(Closed):
    created_at: AwareDatetime | None = None
    authors: list[str] = []
    family: str | None = None
    name: Annotated[str, Field(min_length=1)] | None = None
    doc_url: str | None = Field(None, alias="docURL")
    source_url: str | None = Field(None, alias="sourceURL")
    datasets_url: list[str] = Field([], alias="datasetsURL")
    version: str | None = None
    revision: str | None = None
    vendor: str | None = None
    licenses: list[str] = []
    title: str | None = None
    description: str | None = None


class ModelConfig(Closed):
    architecture: str | None = None
    format: str | None = None
    param_size: ParamSize | None = None
    precision: str | None = None
    quantization: str | None = None
    capabilities: dict[str, object] | None = None


class ModelFS(Closed):
    type: Literal["layers"]
    diff_ids: Annotated[list[Digest], Field(min_length=1)]


class Configuration(Closed):
    descriptor: ModelDescriptor
    config: ModelConfig
    modelfs: ModelFS


class Descriptor(Closed):
    media_type: str
    digest: Digest
    size: Annotated[int, Field(ge=0, strict=True)]
    artifact_type: str | None = None
    annotations: dict[str, str] = {}


class Manifest(Closed):
    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.manifest.v1+json"]
    artifact_type: Literal["application/vnd.cncf.model.manifest.v1+json"]
    config: Descriptor
    layers: Annotated[list[Descriptor], Field(min_length=1)]
    annotations: dict[str, str] = {}


class Index(Closed):
    schema_version: Literal[2]
    media_type: Literal["application/vnd.oci.image.index.v1+json"]
    manifests: Annotated[list[Descriptor], Field(min_length=1)]


class Layout(Closed):
    image_layout_version: Literal["1.0.0"]


def read_layout(files):
    """Read a layout given as {path: bytes}, and give its manifest, configuration and files.

    Every blob has the digest of its name; every descriptor finds one of its size; none is left.
    """
    Layout.model_validate_json(files["oci-layout"])
    index = Index.model_validate_json(files["index.json"])
    blobs = {path: body for path, body in files.items() if path.startswith("blobs/sha256/")}
    assert files.keys() == {"oci-layout", "index.json", *blobs}
    for path, body in blobs.items():
        assert path.rpartition("/")[2] == hashlib.sha256(body).hexdigest()
    used = set()

    def blob(named):
        path = f"blobs/{named.digest.replace(':', '/')}"
        assert len(blobs[path]) == named.size
        used.add(path)
        return blobs[path]

    (named,) = index.manifests
    manifest = Manifest.model_validate_json(blob(named))
    assert named.media_type == manifest.media_type
    assert manifest.config.media_type == "application/vnd.cncf.model.config.v1+json"
    configuration = Configuration.model_validate_json(blob(manifest.config))
    contents = {}
    for layer in manifest.layers:
        assert LAYERS.fullmatch(layer.media_type), layer.media_type
        path = layer.annotations[FILEPATH]
        assert path
        assert not path.startswith("/")
        assert ".." not in path.split("/")
        contents[path] = blob(layer)
    # Layers are not archived, so that they are their own diffs.
    assert configuration.modelfs.diff_ids == [layer.digest for layer in manifest.layers]
    assert used == blobs.keys()
    return manifest, configuration, contents
