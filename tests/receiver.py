"""A web server of somebody else's: it takes messages, keeps them, and answers as it is told."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver(ThreadingHTTPServer):
    """Listens on a free port of this machine."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.messages = []
        self.arrived = threading.Condition()
        self.status = 204
        self.body = b""
        self.headers = {}
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"

    def wait_for(self, count, seconds=30):
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.messages) >= count, seconds)
        return self.messages


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.arrived:
            self.server.messages.append((dict(self.headers.items()), body))
            self.server.arrived.notify_all()
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        if self.server.status != 204:
            self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_):
        """Say nothing on the terminal of the tests."""


@contextmanager
def listening():
    receiver = Receiver()
    poll = {"poll_interval": 0.01}
    thread = threading.Thread(target=receiver.serve_forever, kwargs=poll, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join()
