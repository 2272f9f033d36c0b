"""The server is killed again and again under many uploads; nothing that it acknowledged is lost."""

import base64
import hashlib
import os
import random
import threading

import httpx
import pytest

from registry.models import Upload
from registry.storage import default_storage
from tests.factories import make_token

TUS = {"Tus-Resumable": "1.0.0"}
UPLOADS = 12
KILLS = 4
PIECE = 700_000


class Sender(threading.Thread):
    """Sends one file piece by piece, asks for the offset after every failure, and goes on."""

    def __init__(self, url, token, data, stop):
        super().__init__(daemon=True)
        self.line = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=20
        )
        self.data = data
        self.stop = stop
        self.address = ""
        self.acknowledged = 0
        self.problems = []

    def run(self):
        while self.acknowledged < len(self.data) or not self.address:
            try:
                self.step()
            except httpx.TransportError:
                if self.stop.wait(0.1):
                    return
        self.line.close()

    def step(self):
        if not self.address:
            name = base64.b64encode(b"weights.bin").decode()
            length = str(len(self.data))
            headers = {**TUS, "Upload-Length": length, "Upload-Metadata": f"filename {name}"}
            answer = self.line.post("/api/v1/uploads", headers=headers)
            self.address = answer.raise_for_status().headers["location"]
        answer = self.line.head(self.address, headers=TUS)
        offset = int(answer.raise_for_status().headers["upload-offset"])
        if offset < self.acknowledged:
            self.problems.append(f"{self.address}: {self.acknowledged} became {offset}")
        self.acknowledged = offset
        while self.acknowledged < len(self.data):
            piece = self.data[self.acknowledged : self.acknowledged + PIECE]
            answer = self.line.patch(
                self.address,
                content=piece,
                headers={
                    **TUS,
                    "Upload-Offset": str(self.acknowledged),
                    "Content-Type": "application/offset+octet-stream",
                },
            )
            self.acknowledged = int(answer.raise_for_status().headers["upload-offset"])


@pytest.mark.slow
def test_uploads_under_a_server_that_dies(server, alice):
    chance = random.Random(2)
    token = make_token(alice)
    stop = threading.Event()
    senders = [
        Sender(server.url, token, os.urandom(chance.randrange(1 << 20, 24 << 20)), stop)
        for _ in range(UPLOADS)
    ]
    for sender in senders:
        sender.start()
    for _ in range(KILLS):
        stop.wait(chance.uniform(0.05, 1.0))
        server.kill()
        server.start()
    for sender in senders:
        sender.join(90)
    stop.set()
    assert [sender for sender in senders if sender.is_alive()] == []
    assert [problem for sender in senders for problem in sender.problems] == []
    for sender in senders:
        upload = Upload.objects.select_related("blob").get(pk=sender.address.rpartition("/")[2])
        assert upload.blob.sha256 == hashlib.sha256(sender.data).hexdigest()
        assert default_storage().read(upload.blob.sha256) == sender.data
