"""Objects of an S3 bucket."""

import os
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from registry.encryption import KeyRing
from registry.errors import RegistryError, StorageFull, Unavailable
from registry.storage.bucket import HEAD_BYTES, BodyBlocks, S3Object
from registry.storage.incoming import Incoming
from registry.storage.objects import Absent, StoredBlocks, StoredObject
from registry.storage.spool import out_of_space
from registry.storage.uploads import Storage

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client


_GONE = frozenset({"404", "NoSuchKey", "NotFound", "412", "PreconditionFailed"})


class S3Storage(Storage):
    """Blobs as objects below `prefix/` of one bucket; the spool stays on a local disk."""

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str,
        endpoint: str | None,
        region: str | None,
        spool: Path,
        keys: KeyRing | None = None,
        public: str | None = None,
    ) -> None:
        super().__init__(spool, keys=keys)
        # Slow to import and not needed where blobs are on a local disk.
        import boto3  # noqa: PLC0415
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self._client: S3Client
        self._signer: S3Client
        self._transfer = TransferConfig(
            multipart_threshold=16 * 1024 * 1024,
            multipart_chunksize=16 * 1024 * 1024,
            max_concurrency=4,
        )
        self._client, self._signer = (
            boto3.client(
                "s3",
                endpoint_url=address,
                region_name=region or os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
                config=Config(
                    # The older version would sign neither the headers nor the whole query.
                    signature_version="s3v4",
                    connect_timeout=5,
                    read_timeout=60,
                    retries={"max_attempts": 4, "mode": "standard"},
                    max_pool_connections=32,
                    # Servers other than Amazon's do not all know the newer trailing checksums.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if address else "auto"},
                ),
            )
            for address in (endpoint, public or endpoint)
        )
        self._for_clients = Incoming(self, self._client, self._signer, self._transfer)

    @property
    def incoming(self) -> "Incoming":
        return self._for_clients

    def look(self, name: str) -> tuple[bytes, int, float, str]:
        """Give the first bytes of an object, its length, its age and its tag."""
        with self.refusals(name):
            try:
                answer = self._client.get_object(
                    Bucket=self.bucket, Key=self.key(name), Range=f"bytes=0-{HEAD_BYTES - 1}"
                )
                with closing(answer["Body"]) as body:
                    head = body.read()
                size = int(answer["ContentRange"].rpartition("/")[2])
                return head, size, answer["LastModified"].timestamp(), answer["ETag"]
            except self._client.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") not in {"InvalidRange", "416"}:
                    raise
            found = self._client.head_object(Bucket=self.bucket, Key=self.key(name))
            return b"", found["ContentLength"], found["LastModified"].timestamp(), found["ETag"]

    def fetch(self, name: str, start: int, end: int, step: int, *, tag: str) -> StoredBlocks:
        """Begin to read a range of the object that had this tag."""
        with self.refusals(name):
            answer = self._client.get_object(
                Bucket=self.bucket,
                Key=self.key(name),
                Range=f"bytes={start}-{end - 1}",
                IfMatch=tag,
            )
        return BodyBlocks(self, answer["Body"], step)

    def _check_store(self) -> None:
        with self.refusals():
            self._client.head_bucket(Bucket=self.bucket)

    def _length(self, name: str) -> int:
        with self.refusals(name):
            head = self._client.head_object(Bucket=self.bucket, Key=self.key(name))
            return head["ContentLength"]

    def _open(self, name: str) -> StoredObject:
        return S3Object(self, name)

    def _place(self, path: Path, name: str) -> None:
        size = path.stat().st_size
        with self.refusals(name):
            self._client.upload_file(str(path), self.bucket, self.key(name), Config=self._transfer)
        if self._length(name) != size:
            self._remove(name)
            raise Unavailable("The storage server kept fewer bytes than it was sent; try again.")
        path.unlink()

    def _copy_out(self, name: str, target: Path) -> None:
        temporary = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with self.refusals(name), out_of_space():
                self._client.download_file(
                    self.bucket, self.key(name), str(temporary), Config=self._transfer
                )
            temporary.chmod(0o444)
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove(self, name: str) -> None:
        with self.refusals():
            self._client.delete_object(Bucket=self.bucket, Key=self.key(name))

    def _touch(self, name: str) -> None:
        """Leave it: a bucket knows no way that does not copy the object."""

    def _list(self, prefix: str) -> Iterator[tuple[str, float]]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.key(prefix)
        )
        with self.refusals():
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"][len(self.prefix) :], item["LastModified"].timestamp()

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    @contextmanager
    def refusals(self, name: str | None = None) -> Iterator[None]:
        """Say what the storage server refused in our words; Absent for an object that is gone."""
        from boto3.exceptions import Boto3Error  # noqa: PLC0415
        from botocore.exceptions import (  # noqa: PLC0415
            BotoCoreError,
            ClientError,
            HTTPClientError,
        )

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if name is not None and code in _GONE:
                raise Absent(name) from None
            raise self._refusal(code) from error
        except Boto3Error as error:
            # A refused transfer arrives as text around the server's own code.
            raise self._refusal(str(error)) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise Unavailable(
                "The storage server of bucket {bucket} does not answer; try again.",
                bucket=self.bucket,
            ) from error

    def _refusal(self, code: str) -> RegistryError:
        if "StorageFull" in code or "InsufficientCapacity" in code or "QuotaExceeded" in code:
            return StorageFull("The bucket {bucket} is full.", bucket=self.bucket)
        return Unavailable(
            "The storage server refused ({reason}) for bucket {bucket}.",
            reason=code[:200],
            bucket=self.bucket,
        )
