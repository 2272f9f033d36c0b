"""Takes a version away as another server wants it: the package is laid out in a new folder."""

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import quote

from modelyard.errors import BadAnswer, BadFolder
from modelyard.names import Reference, check_paths

if TYPE_CHECKING:
    from modelyard.client import Client

Target = Literal["triton", "kserve", "mlserver", "modelpack", "standalone"]
TARGETS: tuple[str, ...] = get_args(Target)
_BLOCK = 1 << 20


class _Stream:
    """The body of an answer, as something to read from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._left += chunk
        found, self._left = self._left[:size], self._left[size:]
        return found


def take(client: "Client", reference: Reference, target: Target, folder: Path) -> list[str]:
    """Lay the package out in `folder`, which must not be there yet, and give its files.

    Raises:
        BadFolder: the folder is there already; BadAnswer: what came is no such package;
        Refused: the version cannot be taken away like that.

    """
    if folder.exists():
        raise BadFolder(f"{folder} is there already; name a new folder with --to.")
    file = "kserve.yaml" if target == "kserve" else f"{target}.tar"
    path = (
        f"/models/{quote(reference.namespace)}/{quote(reference.name)}"
        f"/versions/{quote(reference.selector)}/exports/{file}"
    )
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with client.transport.open("GET", client.transport.address(path)) as answer:
        part.mkdir(parents=True)
        try:
            chunks = answer.iter_bytes(_BLOCK)
            if target == "kserve":
                (part / file).write_bytes(b"".join(chunks))
                found = [file]
            else:
                found = _unpack(_Stream(chunks), part)
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return found


def _unpack(stream: _Stream, folder: Path) -> list[str]:
    """Write the files of a tar; links, devices and paths that lead elsewhere are refused."""
    found: list[str] = []
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload] # it reads
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise BadAnswer(f"The package holds {member.name[:200]!r}, which is no file.")
                found.append(member.name)
                check_paths(found)
                place = folder / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as written:
                    shutil.copyfileobj(content, written, _BLOCK)
    except tarfile.TarError as error:
        raise BadAnswer(f"The package ends too soon or is none ({error}).") from None
    return found
