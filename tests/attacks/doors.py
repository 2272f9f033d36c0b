"""The doors that files come in by, as somebody hostile speaks to them: byte by byte if need be."""

import base64
import hashlib
import json
import socket
from datetime import timedelta

import httpx
from django.utils import timezone

from registry.services import tokens
from tests.factories import actor_of, make_token

TUS = {"Tus-Resumable": "1.0.0"}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}
VERSIONS = "/api/v1/models/alice/classifier/versions"
UPLOADS = "/api/v1/uploads"
BOUNDARY = "limit-of-a-part"


def encoded(text):
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def disposition(name, filename=None):
    """Write the header of a part with names as they are, quotes and controls included."""
    head = b'Content-Disposition: form-data; name="' + name.encode() + b'"'
    return head if filename is None else head + b'; filename="' + filename.encode() + b'"'


def part(head, data):
    head = head if isinstance(head, bytes) else head.encode()
    return b"--" + BOUNDARY.encode() + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n"


def closed(*parts):
    return b"".join(parts) + b"--" + BOUNDARY.encode() + b"--\r\n"


class Answered:
    """An answer read from a bare connection."""

    def __init__(self, raw):
        head, _, self.content = raw.partition(b"\r\n\r\n")
        self.text = self.content.decode("utf-8", "replace")
        self.status_code = int(head.split()[1]) if head else 0
        self.headers = httpx.Headers(
            [line.split(": ", 1) for line in head.decode().split("\r\n")[1:] if ": " in line]
        )

    def json(self):
        return json.loads(self.content)


class Door:
    """Alice's tools and those of others, at one server."""

    def __init__(self, server, alice, bob):
        self.server, self.alice, self.bob = server, alice, bob
        self.token = make_token(alice)
        self.client = self._client(self.token)
        self.other = self._client(make_token(bob))
        self.nobody = httpx.Client(base_url=server.url, timeout=60)

    def _client(self, token):
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.server.url, headers=headers, timeout=60)

    def close(self):
        for client in (self.client, self.other, self.nobody):
            client.close()

    # --- Forms -------------------------------------------------------------------------------

    def form(self, files, *, url=VERSIONS, by=None, headers=None):
        """Send files by path, each path as it is."""
        parts = [part(disposition("file", path), data) for path, data in files.items()]
        return self.body(closed(*parts), url=url, by=by, headers=headers)

    def body(self, content, *, url=VERSIONS, by=None, headers=None):
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return (by or self.client).post(url, content=content, headers={**kind, **(headers or {})})

    def version(self, files, *, url=VERSIONS, by=None, **fields):
        """Make a version of finished uploads by JSON."""
        files = [{"path": path, "upload": upload} for path, upload in files]
        return (by or self.client).post(url, json={"files": files, **fields})

    # --- tus ---------------------------------------------------------------------------------

    def begin(self, length, *, filename="weights.bin", by=None, **headers):
        metadata = f"filename {encoded(filename)}"
        return (by or self.client).post(
            UPLOADS,
            headers={**TUS, "Upload-Length": str(length), "Upload-Metadata": metadata, **headers},
        )

    def send(self, url, offset, data, *, by=None, **headers):
        sent = {**BYTES, "Upload-Offset": str(offset), **headers}
        return (by or self.client).patch(url, content=data, headers=sent)

    def whole(self, data, *, filename="weights.bin", by=None, **headers):
        """Create an upload and send all of it in one request."""
        metadata = f"filename {encoded(filename)}"
        sent = {**BYTES, "Upload-Length": str(len(data)), "Upload-Metadata": metadata, **headers}
        return (by or self.client).post(UPLOADS, content=data, headers=sent)

    def upload(self, data=b"data", **options):
        """Give the id of an upload that is finished."""
        answer = self.whole(data, **options)
        assert answer.status_code == 201, answer.text
        return answer.headers["location"].rpartition("/")[2]

    def open(self, length, **headers):
        """Give the address of an upload that has begun."""
        answer = self.begin(length, **headers)
        assert answer.status_code == 201, answer.text
        return answer.headers["location"]

    def parts(self, *pieces):
        """Give the addresses of finished parts."""
        urls = []
        for piece in pieces:
            urls.append(self.open(len(piece), **{"Upload-Concat": "partial"}))
            assert self.send(urls[-1], 0, piece).status_code == 204
        return urls

    def join(self, urls, *, by=None, filename="weights.bin", sha256=""):
        metadata = f"filename {encoded(filename)}"
        if sha256:
            metadata += f",sha256 {encoded(sha256)}"
        sent = {"Upload-Concat": f"final;{' '.join(urls)}", "Upload-Metadata": metadata}
        return (by or self.client).post(UPLOADS, headers={**TUS, **sent})

    # --- Bare --------------------------------------------------------------------------------

    def raw(self, lines, body=b"", *, token=None, end=True):
        """Send a request as it is and give the first answer; `end` closes our side after it."""
        token = self.token if token is None else token
        head = "\r\n".join(
            [lines[0], "Host: 127.0.0.1", f"Authorization: Bearer {token}", *lines[1:]]
        )
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as line:
            received = b""
            try:
                line.sendall(head.encode("latin-1") + b"\r\n\r\n" + body)
                if end:
                    line.shutdown(socket.SHUT_WR)
                while data := line.recv(1 << 16):
                    received += data
                    if _is_whole(received):
                        break
            except OSError:
                # It was told already, or nothing at all, which the status 0 says.
                pass
        return Answered(received)

    # --- Tokens ------------------------------------------------------------------------------

    def token_of(self, user, **limits):
        return tokens.create_token(actor=actor_of(user), name="limited", **limits)

    def expired_token(self):
        row, secret = self.token_of(self.alice)
        row.expires_at = timezone.now() - timedelta(seconds=1)
        row.save(update_fields=["expires_at"])
        return secret

    def revoked_token(self):
        row, secret = self.token_of(self.alice)
        tokens.revoke_token(actor=actor_of(self.alice), token_id=row.pk)
        return secret


def _is_whole(raw):
    head, found, body = raw.partition(b"\r\n\r\n")
    lengths = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    return bool(found) and bool(lengths) and len(body) >= lengths[0]


def sha256_of(data):
    return hashlib.sha256(data).hexdigest()


def checksum_of(data):
    return f"sha256 {encoded(hashlib.sha256(data).digest())}"
