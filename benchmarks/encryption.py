"""Encrypted blobs beside plain ones: storing an upload and reading it back, in turns.

Each round stores and reads the same bytes in both ways, one after the other, so that what the disk
and the neighbours do meets both; the median of the rounds counts. This is the storage alone: what
HTTP costs comes on top of both and brings them closer together.
"""

import os
import statistics
import tempfile
import time
import uuid
from pathlib import Path

import django

from benchmarks.report import Figure, keep

SIZE = int(os.environ.get("BENCH_ENCRYPTION_MIB", "512")) << 20
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
BLOCK = 4 << 20


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    django.setup()
    from registry.storage import storage_at  # noqa: PLC0415 - only now there are settings

    speeds: dict[str, list[float]] = {}
    noise = os.urandom(BLOCK)
    with tempfile.TemporaryDirectory(prefix="modelyard-encryption-") as name:
        for turn in range(ROUNDS):
            for kind, keys in (("plain", ""), ("encrypted", os.urandom(32).hex())):
                folder = Path(name) / f"{kind}-{turn}"
                storage = storage_at(folder.as_uri(), spool=folder, master_keys=keys)
                began = time.perf_counter()
                upload = str(uuid.uuid4())
                storage.begin_upload(upload)
                # No two blobs alike, nor any two blocks.
                chunks = (os.urandom(64) + noise[64:] for _ in range(SIZE // BLOCK))
                storage.append_upload(upload, 0, chunks)
                stored = storage.finish_upload(upload)
                storage.discard_upload(upload)
                middle = time.perf_counter()
                read = sum(len(block) for block in storage.open(stored.sha256))
                ended = time.perf_counter()
                if read != SIZE:
                    raise RuntimeError(f"{read} bytes came back, not {SIZE}")
                speeds.setdefault(f"store, {kind}", []).append(SIZE / 2**20 / (middle - began))
                speeds.setdefault(f"read, {kind}", []).append(SIZE / 2**20 / (ended - middle))
                storage.delete(stored.sha256)
    median = {what: statistics.median(values) for what, values in speeds.items()}
    figures = [Figure(what=what, value=value, unit="MiB/s") for what, value in median.items()]
    figures += [
        Figure(
            what=f"{what}, encrypted of plain",
            value=median[f"{what}, encrypted"] / median[f"{what}, plain"],
            unit="",
            aim=">= 0.5",
        )
        for what in ("store", "read")
    ]
    keep("encryption", figures, size_mib=SIZE >> 20, rounds=ROUNDS)
    return 0
