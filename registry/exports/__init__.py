"""What a version becomes elsewhere: folders as other servers want them, from its files alone."""

from collections.abc import Mapping

from registry.exports.kserve import kserve_file
from registry.exports.mlserver import mlserver_folder
from registry.exports.modelpack import modelpack_layout
from registry.exports.package import Exporter, Package, Port, Served, Source, StoredFile
from registry.exports.standalone import standalone_folder
from registry.exports.triton import triton_repository

EXPORTS: Mapping[str, Exporter] = {
    "triton.tar": triton_repository,
    "kserve.yaml": kserve_file,
    "mlserver.tar": mlserver_folder,
    "modelpack.tar": modelpack_layout,
    "standalone.tar": standalone_folder,
}
"""The ways out by the name of the file that comes; each refuses what it cannot carry."""

__all__ = ["EXPORTS", "Exporter", "Package", "Port", "Served", "Source", "StoredFile"]
