"""An encoder for tests: the real model, in a thread of the test process, on a socket of its own."""

import contextlib
import shutil
import tempfile
import threading
from pathlib import Path

from config.local.for_tests import FOLDER
from registry.encoder import forget_queries
from workers.encoder import EncoderServer, load_model, model_folder


@contextlib.contextmanager
def encoding():
    """Give the socket of an encoder; its graph is exported once and kept for later runs."""
    home = Path(tempfile.mkdtemp(prefix="encoder-"))
    model = load_model(model_folder(""), FOLDER / "encoder")
    server = EncoderServer(home / "socket", model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    forget_queries()
    try:
        yield home / "socket"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        shutil.rmtree(home)
        forget_queries()
