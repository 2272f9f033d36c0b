"""Takes a version away as another server or library wants it, in a new folder."""

import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import quote

from modelyard.answers import Event
from modelyard.errors import BadAnswer, BadFolder, JobFailed, Refused
from modelyard.names import Paths, Reference

if TYPE_CHECKING:
    from modelyard.client import Client

Target = Literal[
    "triton",
    "kserve",
    "mlserver",
    "modelpack",
    "standalone",
    "torchscript",
    "pt2",
    "aotinductor",
    "stablehlo",
]
TARGETS: tuple[str, ...] = get_args(Target)
# Those that are one file, and no folder in a tar.
_FILES: Mapping[str, str] = {
    "kserve": "kserve.yaml",
    "torchscript": "torchscript.pt",
    "pt2": "program.pt2",
    "aotinductor": "aotinductor.pt2",
    "stablehlo": "stablehlo.jaxexport",
}
_NOT_MADE = "not_made"
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


def take(
    client: "Client",
    reference: Reference,
    target: Target,
    folder: Path,
    tell: Callable[[Event], None] = lambda _event: None,
) -> list[str]:
    """Lay the package out in `folder`, which must not be there yet, and give its files.

    A file that nobody has had made yet is made first, by a job; `tell` hears how it goes.

    Raises:
        BadFolder: the folder is there already; BadAnswer: what came is no such package;
        Refused: the version cannot be taken away like that; JobFailed: the job could not make it.

    """
    if folder.exists():
        raise BadFolder(f"{folder} is there already; name a new folder with --to.")
    file, exports = _FILES.get(target, f"{target}.tar"), _address(reference)
    try:
        return _fetch(client, f"{exports}/{file}", file, folder)
    except Refused as refusal:
        if refusal.code != _NOT_MADE:
            raise
    asked = client.transport.call("POST", exports, body={"file": file})
    if asked.get("job"):
        for event in client.follow_job(asked["job"]):
            tell(event)
        job = client.job(asked["job"])
        if job["state"] != "succeeded":
            error = job["error"]
            raise JobFailed(error["detail"] if error else f"The job was {job['state']}.")
    return _fetch(client, f"{exports}/{file}", file, folder)


def delete_export(client: "Client", reference: Reference, target: Target) -> None:
    """Delete the file that a job made for a target.

    Raises:
        Refused: there is none, or the caller may not write to the model.

    """
    file = _FILES.get(target, f"{target}.tar")
    client.transport.call("DELETE", f"{_address(reference)}/{file}")


def _address(reference: Reference) -> str:
    return (
        f"/models/{quote(reference.namespace)}/{quote(reference.name)}"
        f"/versions/{quote(reference.selector)}/exports"
    )


def _fetch(client: "Client", path: str, file: str, folder: Path) -> list[str]:
    with client.transport.open("GET", client.transport.address(path)) as answer:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
            # That one is for nobody else to read; what is made in it has the usual permissions.
            part = Path(beside) / folder.name
            part.mkdir()
            chunks = answer.iter_bytes(_BLOCK)
            if file.endswith(".tar"):
                found = _unpack(_Stream(chunks), part)
            else:
                with (part / file).open("wb") as written:
                    written.writelines(chunks)
                found = [file]
            part.rename(folder)
    return found


def _unpack(stream: _Stream, folder: Path) -> list[str]:
    """Write the files of a tar; links, devices and paths that lead elsewhere are refused."""
    found = Paths()
    try:
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload] # it reads
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise BadAnswer(f"The package holds {member.name[:200]!r}, which is no file.")
                found.add(member.name)
                place = folder / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as written:
                    shutil.copyfileobj(content, written, _BLOCK)
    except tarfile.TarError as error:
        raise BadAnswer(f"The package ends too soon or is none ({error}).") from None
    return list(found)
