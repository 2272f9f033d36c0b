"""Tells an HDF5 file of plain numbers from one that may carry a Keras model, and so its code."""

from registry.errors import Text
from registry.formats.facts import Facts, ReadRange

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_SCANNED_BYTES = 64 * 1024 * 1024
# A block of the user's own may stand before the magic: this long, or twice as long, and so on.
_FIRST_BLOCK_BYTES, _LAST_BLOCK_BYTES = 512, 1 << 26
_BLOCK_BYTES = 1024 * 1024
# The attribute that holds a Keras model's layers; a layer may be a function, stored as byte code.
_MODEL = b"model_config"
_CARRIES_CODE = Text("HDF5 with a Keras model can carry Python code; it is kept but never loaded.")
_TOO_LARGE = Text("An HDF5 file too large to be looked through; it may carry Keras code.")
_NUMBERS = Text("An HDF5 file without a Keras model; it is kept as it is and not read here.")


def read_hdf5(size: int, read: ReadRange) -> Facts:
    if _mentions_model(min(size, MAX_SCANNED_BYTES), read):
        return Facts(format="hdf5", executable=True, findings=(_CARRIES_CODE,))
    if size > MAX_SCANNED_BYTES:
        return Facts(format="hdf5", executable=True, findings=(_TOO_LARGE,))
    return Facts(format="hdf5", findings=(_NUMBERS,))


def find_hdf5(size: int, read: ReadRange) -> int:
    """Give where an HDF5 file begins behind a block of the user's own; 0 where there is none."""
    start = _FIRST_BLOCK_BYTES
    while start <= min(size - len(MAGIC), _LAST_BLOCK_BYTES):
        if read(start, start + len(MAGIC)) == MAGIC:
            return start
        start *= 2
    return 0


def _mentions_model(size: int, read: ReadRange) -> bool:
    overlap = len(_MODEL) - 1
    for start in range(0, size, _BLOCK_BYTES):
        if _MODEL in read(start, min(size, start + _BLOCK_BYTES + overlap)):
            return True
    return False
