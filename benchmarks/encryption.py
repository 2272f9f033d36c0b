"""Encrypted blobs beside plain ones: storing an upload and copying it out again, in turns.

Each round stores and reads the same bytes in both ways, one after the other, so that what the disk
and the neighbours do meets both; the median of the rounds counts. This is the storage alone: what
HTTP costs comes on top of both and brings them closer together (`files` measures that).

Nobody reads a blob and throws it away, so what is compared is reading it into a new file, as `cp`
does. Reading into memory alone stands beside it without an aim: plain, that is nothing but the
kernel copying from its cache, and faster than a processor can decrypt at all ("AES-256-GCM alone").
"""

import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import django
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.report import Figure, keep
from benchmarks.transfer import touch_memory

SIZE = int(os.environ.get("BENCH_ENCRYPTION_MIB", "512")) << 20
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
BLOCK = 4 << 20
CIPHER_BLOCK = 256 << 10


def speed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return SIZE / 2**20 / (time.perf_counter() - began)


def decrypt_alone() -> None:
    """Decrypt the same block again and again, from and to memory that the processor has near."""
    cipher, nonce = AESGCM(bytes(32)), bytes(12)
    plain = bytearray(CIPHER_BLOCK)
    sealed = cipher.encrypt(nonce, plain, None)
    for _ in range(SIZE // CIPHER_BLOCK):
        cipher.decrypt_into(nonce, sealed, None, plain)


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from registry.storage import Storage, Stored, storage_at  # noqa: PLC0415 - needs settings

    noise = os.urandom(BLOCK)

    def store(storage: Storage) -> Stored:
        upload = str(uuid.uuid4())
        storage.begin_upload(upload)
        # No two blobs alike, nor any two blocks.
        chunks = (os.urandom(64) + noise[64:] for _ in range(SIZE // BLOCK))
        storage.append_upload(upload, 0, chunks)
        stored = storage.finish_upload(upload)
        storage.discard_upload(upload)
        return stored

    def read(storage: Storage, sha256: str) -> None:
        if sum(len(block) for block in storage.open(sha256)) != SIZE:
            raise RuntimeError("other bytes came back than were stored")

    def copy_out(storage: Storage, sha256: str, target: Path) -> None:
        with target.open("wb", buffering=0) as file:
            for block in storage.open(sha256):
                file.write(block)

    speeds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="modelyard-encryption-") as name:
        folder = Path(name)

        def note(what: str, act: Callable[[], object]) -> None:
            touch_memory(folder / "ballast", SIZE)
            os.sync()
            speeds.setdefault(what, []).append(speed(act))

        for _ in range(ROUNDS):
            note("AES-256-GCM alone", decrypt_alone)
            for kind, keys in (("plain", ""), ("encrypted", os.urandom(32).hex())):
                place = folder / f"{kind}-{uuid.uuid4().hex}"
                storage = storage_at(place.as_uri(), spool=place, master_keys=keys)
                kept: list[Stored] = []
                note(
                    f"store, {kind}",
                    lambda kept=kept, storage=storage: kept.append(store(storage)),
                )
                sha256, copy = kept[0].sha256, folder / "copy"
                note(
                    f"copy out, {kind}",
                    lambda storage=storage, sha256=sha256, copy=copy: copy_out(
                        storage, sha256, copy
                    ),
                )
                copy.unlink()
                note(
                    f"read into memory, {kind}",
                    lambda storage=storage, sha256=sha256: read(storage, sha256),
                )
                storage.delete(sha256)
    median = {what: statistics.median(values) for what, values in speeds.items()}
    figures = [Figure(what=what, value=value, unit="MiB/s") for what, value in median.items()]
    figures += [
        Figure(
            what=f"{what}, encrypted of plain",
            value=median[f"{what}, encrypted"] / median[f"{what}, plain"],
            unit="",
            aim=aim,
        )
        for what, aim in (("store", ">= 0.5"), ("copy out", ">= 0.5"), ("read into memory", ""))
    ]
    keep("encryption", figures, size_mib=SIZE >> 20, rounds=ROUNDS)
    return 0
