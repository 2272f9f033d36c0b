"""What clients write into a bucket themselves, before it is a blob."""

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from registry.errors import Invalid, NotFound
from registry.storage.bucket import S3Object
from registry.storage.names import UPLOAD_ID, no_upload, plain_name
from registry.storage.objects import BLOCK_BYTES, Absent
from registry.storage.spool import GIT_SHA1_BYTES, Stored, require_match

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

    from registry.storage.s3 import S3Storage


class Incoming:
    """Objects that clients write themselves, part by part, with addresses that we sign.

    Such an object is `incoming/{upload}`. It is no blob: nobody reads it but `keep`, which hashes
    it and moves it under its digest.
    """

    # What S3 takes: every part but the last has at least 5 MiB, and there are at most 10,000.
    MAX_PARTS = 10_000
    PART_BYTES = 16 * 1024 * 1024

    def __init__(
        self, storage: "S3Storage", client: "S3Client", signer: "S3Client", transfer: Any
    ) -> None:
        self._storage = storage
        self._client = client
        self._signer = signer
        self._transfer = transfer

    def begin(self, upload_id: str) -> str:
        """Begin the parts of an upload; give the name that S3 has for them."""
        with self._storage.refusals():
            begun = self._client.create_multipart_upload(
                Bucket=self._storage.bucket, Key=self._key(upload_id)
            )
        return begun["UploadId"]

    def sign_part(
        self, upload_id: str, parts_id: str, *, number: int, size_bytes: int, seconds: int
    ) -> str:
        """Give the address at which one PUT of exactly so many bytes is taken, for some time."""
        return self._signer.generate_presigned_url(
            "upload_part",
            Params={
                "Bucket": self._storage.bucket,
                "Key": self._key(upload_id),
                "UploadId": parts_id,
                "PartNumber": number,
                "ContentLength": size_bytes,
            },
            ExpiresIn=seconds,
            HttpMethod="PUT",
        )

    def complete(self, upload_id: str, parts_id: str, tags: Sequence[str]) -> None:
        """Make one object of the parts, which have these tags in their order; safe to repeat.

        Raises:
            Invalid: a part has not arrived, is too small, or is not the one with this tag.

        """
        from botocore.exceptions import ClientError  # noqa: PLC0415

        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": at, "ETag": tag} for at, tag in enumerate(tags, 1)
        ]
        with self._storage.refusals():
            try:
                self._client.complete_multipart_upload(
                    Bucket=self._storage.bucket,
                    Key=self._key(upload_id),
                    UploadId=parts_id,
                    MultipartUpload={"Parts": parts},
                )
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code == "NoSuchUpload" and self._is_complete(upload_id):
                    return
                if code in {"InvalidPart", "InvalidPartOrder", "EntityTooSmall", "InvalidRequest"}:
                    raise Invalid(
                        "The bucket does not have every part as it was named; send again those "
                        "whose ETag differs, then complete the upload.",
                        code="wrong_part",
                    ) from error
                if code == "NoSuchUpload":
                    raise no_upload(upload_id) from error
                raise

    def read(self, upload_id: str, start: int, end: int) -> bytes:
        """Give a small range of what arrived, to look into its header."""
        return b"".join(self._open(upload_id).blocks(start, end, BLOCK_BYTES))

    def keep(self, upload_id: str, *, sha256: str | None, size_bytes: int) -> Stored:
        """Hash what arrived and store it under its digest; it stays until it is discarded.

        Raises:
            Invalid: it has another digest or length than was announced.

        """
        found = self._open(upload_id)
        require_match("", found.size_bytes, sha256=None, size_bytes=size_bytes)
        blocks = found.blocks(0, found.size_bytes, BLOCK_BYTES)
        if self._storage.keys is not None:
            # It is read either way, and encrypting it is what the usual way in does.
            return self._storage.put(blocks, sha256=sha256, size_bytes=size_bytes)
        digest = hashlib.sha256()
        small = hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
        arrived = 0
        for block in blocks:
            digest.update(block)
            arrived += len(block)
            if size_bytes <= GIT_SHA1_BYTES:
                small.update(block)
        require_match(digest.hexdigest(), arrived, sha256=sha256, size_bytes=size_bytes)
        name = plain_name(digest.hexdigest())
        with self._storage.refusals():
            self._client.copy(
                {"Bucket": self._storage.bucket, "Key": self._key(upload_id)},
                self._storage.bucket,
                self._storage.key(name),
                # What was hashed is what is copied: nothing else has this tag.
                ExtraArgs={"CopySourceIfMatch": found.tag},
                Config=self._transfer,
            )
        git_sha1 = small.hexdigest() if size_bytes <= GIT_SHA1_BYTES else None
        return Stored(digest.hexdigest(), size_bytes, git_sha1)

    def discard(self, upload_id: str, parts_id: str) -> None:
        """Forget what arrived, whether it is in parts or one object; safe to repeat."""
        from botocore.exceptions import ClientError  # noqa: PLC0415

        with self._storage.refusals():
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._storage.bucket, Key=self._key(upload_id), UploadId=parts_id
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                    raise
            self._client.delete_object(Bucket=self._storage.bucket, Key=self._key(upload_id))

    def sweep(self, *, older_than_seconds: float) -> int:
        """Remove what has lain here for so long; give how much that was.

        Whatever has a row is discarded with it: this is what a process that died left behind.
        """
        limit = time.time() - older_than_seconds
        folder = self._storage.key("incoming/")
        removed = 0
        with self._storage.refusals():
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self._storage.bucket, Prefix=folder
            )
            begun = [item for page in pages for item in page.get("Uploads", ())]
            pages_of_objects = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._storage.bucket, Prefix=folder
            )
            objects = [item for page in pages_of_objects for item in page.get("Contents", ())]
            for parts in begun:
                if parts["Initiated"].timestamp() < limit:
                    self._client.abort_multipart_upload(
                        Bucket=self._storage.bucket, Key=parts["Key"], UploadId=parts["UploadId"]
                    )
                    removed += 1
            for item in objects:
                if item["LastModified"].timestamp() < limit:
                    self._client.delete_object(Bucket=self._storage.bucket, Key=item["Key"])
                    removed += 1
        return removed

    def _open(self, upload_id: str) -> S3Object:
        try:
            return S3Object(self._storage, f"incoming/{upload_id}")
        except Absent:
            raise no_upload(upload_id) from None

    def _is_complete(self, upload_id: str) -> bool:
        try:
            self._open(upload_id)
        except NotFound:
            return False
        return True

    def _key(self, upload_id: str) -> str:
        if not UPLOAD_ID.fullmatch(upload_id):
            raise no_upload(upload_id)
        return self._storage.key(f"incoming/{upload_id}")
