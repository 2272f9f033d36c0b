"""Master keys: from a file, the environment or a KMS; they wrap the keys of blobs, nothing else.

Several may be there at once: the first wraps, all of them unwrap. Which one wrapped a blob's key
stands in the blob's sidecar, so that changing the master key rewrites sidecars and no blob.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from registry.encryption.container import Header, Sealed, damaged
from registry.errors import Text, Unavailable

SETTING = "MODELYARD_MASTER_KEY"

_KEY_BYTES = 32
_NONCE_BYTES = 12
_REMEMBERED = 4096


class BadMasterKeyError(ValueError):
    """One line that says what is wrong with a master key, without a letter of it."""


class DataKey(NamedTuple):
    """The key of one container; `context` binds it to that container."""

    secret: bytes
    context: bytes

    @classmethod
    def make(cls, header: Header) -> Self:
        return cls(os.urandom(_KEY_BYTES), header.digest + header.file_id)


class KeyWrapper(ABC):
    """A master key: it wraps keys and unwraps them, and never shows itself."""

    key_id: str

    @abstractmethod
    def wrap(self, key: DataKey) -> bytes:
        """Encrypt a key; only the same context can open it again."""

    @abstractmethod
    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Give the key back; raise InvalidTag when it was changed or belongs elsewhere."""


class LocalKey(KeyWrapper):
    """A key of 32 bytes that this process holds, from the environment or a file."""

    def __init__(self, secret: bytes) -> None:
        name = hmac.new(secret, b"modelyard master key id", hashlib.sha256).hexdigest()
        self.key_id = f"local:{name[:16]}"
        self._cipher = AESGCM(secret)

    def wrap(self, key: DataKey) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key.secret, key.context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)


class KmsKey(KeyWrapper):
    """A key that never leaves a key management service with the API of AWS KMS."""

    def __init__(self, name: str, *, endpoint: str | None, region: str | None) -> None:
        self.name = name
        self.key_id = f"kms:{name}"
        self._endpoint = endpoint
        self._region = region
        self._made: Any = None
        self._lock = threading.Lock()

    def wrap(self, key: DataKey) -> bytes:
        answer = self._ask(
            "encrypt",
            KeyId=self.name,
            Plaintext=key.secret,
            EncryptionContext={"modelyard": key.context.hex()},
        )
        wrapped: bytes = answer["CiphertextBlob"]
        return wrapped

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        answer = self._ask(
            "decrypt",
            KeyId=self.name,
            CiphertextBlob=wrapped,
            EncryptionContext={"modelyard": context.hex()},
        )
        key: bytes = answer["Plaintext"]
        return key

    def _ask(self, action: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            answer: dict[str, Any] = getattr(self._client(), action)(**arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in {"InvalidCiphertextException", "IncorrectKeyException"}:
                raise InvalidTag from None
            raise Unavailable(
                "The key service refused the master key {key} of {setting} ({reason}).",
                code="master_key_unavailable",
                key=self.key_id,
                setting=SETTING,
                reason=code[:80],
            ) from error
        except BotoCoreError as error:
            raise Unavailable(
                "The key service of the master key {key} of {setting} does not answer; try again.",
                code="master_key_unavailable",
                key=self.key_id,
                setting=SETTING,
            ) from error
        return answer

    def _client(self) -> Any:
        # Slow to import, and not needed where keys are at hand.
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        with self._lock:
            if self._made is None:
                self._made = boto3.client(
                    "kms",
                    endpoint_url=self._endpoint,
                    region_name=self._region or os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
                    config=Config(
                        connect_timeout=5,
                        read_timeout=10,
                        retries={"max_attempts": 4, "mode": "standard"},
                    ),
                )
            return self._made


class Sidecar(NamedTuple):
    """A wrapped key and the name of the master key that wrapped it."""

    key_id: str
    wrapped: bytes

    def to_bytes(self) -> bytes:
        wrapped = base64.b64encode(self.wrapped).decode("ascii")
        return json.dumps({"version": 1, "key": self.key_id, "wrapped": wrapped}).encode()

    @classmethod
    def parse(cls, raw: bytes, sha256: str) -> Self:
        try:
            found = json.loads(raw)
            key_id, version = str(found["key"]), found["version"]
            wrapped = base64.b64decode(found["wrapped"], validate=True)
        except (ValueError, KeyError, TypeError):
            version = None
        if version != 1:
            raise damaged(sha256, Text("the sidecar with its key cannot be read"))
        return cls(key_id, wrapped)


class KeyRing:
    """All master keys of an installation; the first is the one that wraps."""

    def __init__(self, keys: Sequence[KeyWrapper]) -> None:
        self.current = keys[0]
        self._keys = {key.key_id: key for key in keys}
        # A file's key never changes, so what was unwrapped once need not be asked for again.
        self._opened: OrderedDict[bytes, AESGCM] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def wrap(self, key: DataKey) -> Sidecar:
        return Sidecar(self.current.key_id, self.current.wrap(key))

    def rewrap(self, sidecar: Sidecar, context: bytes) -> Sidecar:
        """Wrap a key with the current master key instead of an older one."""
        return self.wrap(DataKey(self._unwrap(sidecar, context), context))

    def known(self, header: Header) -> Sealed | None:
        """Open a container whose key is remembered."""
        with self._lock:
            cipher = self._opened.get(header.file_id + header.digest)
        return Sealed(header, cipher) if cipher else None

    def open(self, header: Header, sidecar: Sidecar) -> Sealed:
        """Open a container by its sidecar.

        Raises:
            Unavailable: the master key is not there, or the sidecar is not that of this file.

        """
        cipher = AESGCM(self._unwrap(sidecar, header.digest + header.file_id))
        with self._lock:
            self._opened[header.file_id + header.digest] = cipher
            while len(self._opened) > _REMEMBERED:
                self._opened.popitem(last=False)
        return Sealed(header, cipher)

    def _unwrap(self, sidecar: Sidecar, context: bytes) -> bytes:
        key = self._keys.get(sidecar.key_id)
        if key is None:
            raise missing_key(sidecar.key_id)
        try:
            secret = key.unwrap(sidecar.wrapped, context)
        except (InvalidTag, ValueError):
            raise damaged(
                context[:32].hex(), Text("the key in its sidecar does not open")
            ) from None
        if len(secret) != _KEY_BYTES:
            raise damaged(context[:32].hex(), Text("the key in its sidecar has another length"))
        return secret


def missing_key(key_id: str) -> Unavailable:
    return Unavailable(
        "The stored bytes are encrypted and {setting} lacks the master key {key}; whoever runs "
        "this server has to add it.",
        code="master_key_missing",
        setting=SETTING,
        key=key_id,
    )


def parse_master_keys(text: str) -> list[KeyWrapper]:
    """Read master keys, one in a line or parted by commas; the first is the one that wraps.

    Raises:
        BadMasterKeyError: one line that says which is wrong.

    """
    lines = (line.partition("#")[0] for line in text.splitlines())
    words = [word for line in lines for word in re.split(r"[,\s]+", line) if word]
    keys = [_parse(number, word) for number, word in enumerate(words, 1)]
    names = [key.key_id for key in keys]
    if len(set(names)) != len(names):
        raise BadMasterKeyError("holds the same key twice")
    return keys


def _parse(number: int, word: str) -> KeyWrapper:
    if word.startswith("kms://"):
        return _parse_kms(number, word)
    try:
        secret = (
            bytes.fromhex(word)
            if re.fullmatch(r"[0-9a-fA-F]{64}", word)
            else base64.b64decode(word.replace("-", "+").replace("_", "/"), validate=True)
        )
    except (ValueError, binascii.Error):
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise BadMasterKeyError(
            f"key {number} is neither 32 bytes in hex or base64 nor kms://key-id?endpoint=…"
        )
    return LocalKey(secret)


def _parse_kms(number: int, word: str) -> KmsKey:
    parts = urlsplit(word)
    options = dict(parse_qsl(parts.query))
    name = unquote(parts.netloc + parts.path)
    if not name:
        raise BadMasterKeyError(f"key {number} names no key; write kms://key-id")
    if unknown := sorted(options.keys() - {"endpoint", "region"}):
        raise BadMasterKeyError(
            f"key {number} has the unknown option {unknown[0]!r}; known are endpoint and region"
        )
    endpoint = options.get("endpoint")
    if endpoint is not None and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise BadMasterKeyError(f"the endpoint of key {number} must begin with http:// or https://")
    return KmsKey(name, endpoint=endpoint, region=options.get("region"))
