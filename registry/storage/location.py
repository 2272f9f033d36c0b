"""Where the storage of this installation is, and how it is opened."""

import functools
import re
from pathlib import Path
from typing import NamedTuple, Never, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from django.conf import settings

from registry.encryption import KeyRing, parse_master_keys
from registry.storage.local import LocalStorage
from registry.storage.s3 import S3Storage
from registry.storage.uploads import Storage

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class Location(NamedTuple):
    """A parsed `MODELYARD_STORAGE_URL`."""

    scheme: str
    path: Path | None
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None
    public: str | None = None

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read a storage URL; raise ValueError with one line that says what is wrong."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            if parts.netloc or options or not path.is_absolute():
                _bad_url(url, "a local folder is written file:///absolute/path")
            return cls("file", path, "", "", None, None)
        if parts.scheme != "s3":
            _bad_url(url, "it must begin with file:/// or s3://")
        if not _BUCKET.fullmatch(parts.netloc):
            _bad_url(url, f"{parts.netloc!r} is no bucket name; write s3://bucket/prefix")
        unknown = sorted(options.keys() - {"endpoint", "public", "region"})
        if unknown:
            _bad_url(url, f"unknown option {unknown[0]!r}; known are endpoint, public and region")
        for option in ("endpoint", "public"):
            address = options.get(option)
            if address is not None and urlsplit(address).scheme not in {"http", "https"}:
                _bad_url(url, f"the {option} must begin with http:// or https://")
        prefix = unquote(parts.path).strip("/")
        return cls(
            "s3",
            None,
            parts.netloc,
            prefix,
            options.get("endpoint"),
            options.get("region"),
            options.get("public"),
        )


def storage_at(url: str, *, spool: Path, master_keys: str = "") -> Storage:
    """Open the storage that `url` names; `spool` is where bytes arrive before they go to S3."""
    location = Location.parse(url)
    wrappers = parse_master_keys(master_keys)
    keys = KeyRing(wrappers) if wrappers else None
    if location.path is not None:
        return LocalStorage(location.path, keys=keys)
    return S3Storage(
        bucket=location.bucket,
        prefix=location.prefix,
        endpoint=location.endpoint,
        region=location.region,
        spool=spool,
        keys=keys,
        public=location.public,
    )


def default_storage() -> Storage:
    """Give the storage of the settings, one per process."""
    spool = Path(settings.HOME_DIR) / "spool"
    return _opened(settings.STORAGE_URL, spool, settings.MASTER_KEYS)


@functools.cache
def _opened(url: str, spool: Path, master_keys: str) -> Storage:
    return storage_at(url, spool=spool, master_keys=master_keys)


def _bad_url(url: str, reason: str) -> Never:
    shown = urlsplit(url)._replace(query="").geturl()
    raise ValueError(f"MODELYARD_STORAGE_URL {shown!r}: {reason}.")
