"""A server that does nothing but send one file: what a download over a socket can reach here.

`GET /sendfile` lets the kernel send it, `GET /send` reads it in pieces and sends each. It knows
no other address, no second file and nobody who asks.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

PIECE_BYTES = 256 << 10
HEAD_BYTES = 64 << 10


def answer(line: socket.socket, descriptor: int) -> None:
    """Answer every request of one connection."""
    size = os.fstat(descriptor).st_size
    piece = memoryview(bytearray(PIECE_BYTES))
    while request := line.recv(HEAD_BYTES):
        line.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        sent = 0
        while sent < size:
            if request.startswith(b"GET /sendfile "):
                sent += os.sendfile(line.fileno(), descriptor, sent, size - sent)
            else:
                count = os.preadv(descriptor, [piece], sent)
                line.sendall(piece[:count])
                sent += count


def serve(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    with socket.create_server(("127.0.0.1", 0)) as door:
        print(door.getsockname()[1], flush=True)
        while True:
            line, _ = door.accept()
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=answer, args=(line, descriptor), daemon=True).start()


@contextlib.contextmanager
def serving(file: Path) -> Iterator[int]:
    """Start such a server for a file; give its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare", str(file)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
