"""Uploads that lie about their length, order, digest or owner, or come again when they are over."""

import uuid

from tests.attacks.corpus import refused, request
from tests.attacks.doors import TUS, UPLOADS, VERSIONS, checksum_of, encoded, sha256_of
from tests.factories import make_model, make_version
from tests.registry.formats import samples

PRIVATE = b"only Alice may know these bytes"


# --- Digests -------------------------------------------------------------------------------------


@request(refused("send them again", "checksum_mismatch", 460))
def a_checksum_of_other_bytes(door):
    url = door.open(4)
    return door.send(url, 0, b"evil", **{"Upload-Checksum": checksum_of(b"good")})


@request(refused("sha256, sha1", "invalid"))
def a_checksum_that_is_broken_by_now(door):
    return door.send(
        door.open(4), 0, b"data", **{"Upload-Checksum": "md5 AAAAAAAAAAAAAAAAAAAAAA=="}
    )


@request(refused("no base64", "invalid"))
def a_checksum_that_is_no_text(door):
    return door.send(
        door.open(4),
        0,
        b"data",
        **{"Upload-Checksum": "sha256 \udc00".encode("utf-8", "surrogatepass")},
    )


@request(refused("send them again", "checksum_mismatch", 460))
def a_checksum_cut_short(door):
    return door.send(door.open(4), 0, b"data", **{"Upload-Checksum": "sha256 AAAA"})


@request(refused("", "digest_mismatch"))
def another_digest_than_declared(door):
    metadata = f"filename {encoded('a.bin')},sha256 {encoded(sha256_of(b'good'))}"
    url = door.open(4, **{"Upload-Metadata": metadata})
    return door.send(url, 0, b"evil")


@request(refused("64 hexadecimal", "bad_digest"))
def a_digest_that_is_a_path(door):
    return door.begin(4, **{"Upload-Metadata": f"sha256 {encoded('../' * 21 + 'x')}"})


@request(refused("that you may read", "blob_not_found", 404))
def the_digest_of_a_file_that_is_private(door):
    return _by_digest(door, sha256_of(PRIVATE), own=True)


@request(refused("that you may read", "blob_not_found", 404))
def a_digest_that_nobody_has(door):
    return _by_digest(door, "0" * 64)


def _by_digest(door, digest, *, own=False):
    """Ask as Bob for bytes by their digest; whether they exist must not show."""
    if own:
        make_version(door.alice, _private(door), {"a.bin": PRIVATE})
    place = make_model(door.bob, f"mine-{uuid.uuid4().hex}")
    return door.other.post(
        f"/api/v1/models/{place.full_name}/versions",
        json={"files": [{"path": "a.bin", "sha256": digest}]},
    )


def _private(door):
    return make_model(door.alice, f"hidden-{uuid.uuid4().hex}", visibility="private")


# --- Lengths and order ---------------------------------------------------------------------------


@request(refused("Upload-Length", "invalid"))
def a_negative_length(door):
    return door.begin(-1)


@request(refused("Upload-Length", "invalid"))
def a_length_beyond_64_bits(door):
    return door.begin(1 << 64)


@request(refused("more than one file may have", "too_large", 413))
def a_length_of_a_terabyte(door):
    return door.begin(1 << 40)


@request(refused("length must be known", "invalid"))
def a_length_to_be_told_later(door):
    return door.client.post(UPLOADS, headers={**TUS, "Upload-Defer-Length": "1"})


@request(refused("Upload-Length said 4", "too_large", 413))
def more_than_was_announced(door):
    return door.send(door.open(4), 0, b"12345")


@request(refused("More bytes arrived", "too_large", 413))
def more_than_was_announced_in_chunks(door):
    return door.send(door.open(4), 0, iter([b"1234", b"5678"]))


@request(refused("at byte 4, not 2", "offset_mismatch", 409))
def a_part_that_overlaps(door):
    url = door.open(8)
    assert door.send(url, 0, b"1234").status_code == 204
    return door.send(url, 2, b"evil")


@request(refused("at byte 0, not 4", "offset_mismatch", 409))
def a_part_that_leaves_a_hole(door):
    return door.send(door.open(8), 4, b"5678")


@request(refused("Upload-Offset", "invalid"))
def an_offset_before_the_beginning(door):
    return door.send(door.open(8), -4, b"1234")


@request(refused("named twice", "repeated"))
def a_part_twice(door):
    (url,) = door.parts(b"1234")
    return door.join([url, url])


@request(refused("", "digest_mismatch"))
def parts_out_of_order(door):
    urls = door.parts(b"1234", b"5678")
    return door.join(urls[::-1], sha256=sha256_of(b"12345678"))


@request(refused("", "part_unfinished", 409))
def a_part_that_is_not_there_yet(door):
    half = door.open(8, **{"Upload-Concat": "partial"})
    return door.join([*door.parts(b"1234"), half])


@request(refused("", "part_joined", 409))
def parts_that_were_joined_otherwise(door):
    urls = door.parts(b"1234", b"5678")
    assert door.join(urls).status_code == 201
    return door.join(urls[::-1])


@request(refused("not valid JSON"))
def a_header_and_its_data_in_two_parts_that_do_not_fit(door):
    data = samples.safetensors()
    return door.join(door.parts(data[:50], data[60:]), filename="model.safetensors")


@request(refused("You have no upload", "not_found", 404))
def a_part_that_is_a_path(door):
    return door.join([*door.parts(b"1234"), "/api/v1/uploads/../../../etc/passwd"])


@request(refused("takes no bytes", "final_upload", 403))
def bytes_for_a_whole_that_was_joined(door):
    url = door.join(door.parts(b"1234")).headers["location"]
    return door.send(url, 4, b"more")


@request(refused("Upload-Concat", "invalid"))
def a_whole_and_a_part_at_once(door):
    return door.begin(4, **{"Upload-Concat": "partial;final"})


@request(refused("twice", "invalid"))
def two_names_for_one_upload(door):
    twice = f"filename {encoded('a.txt')},filename {encoded('b.exe')}"
    return door.begin(4, **{"Upload-Metadata": twice})


@request(refused("longer than 16384", "invalid"))
def a_megabyte_of_metadata(door):
    return door.begin(4, **{"Upload-Metadata": "a " + "QUFB" * 5000})


@request(refused("tus 1.0.0", "wrong_tus_version", 412))
def a_protocol_of_long_ago(door):
    return door.begin(4, **{"Tus-Resumable": "0.2.1"})


@request(refused("application/offset+octet-stream", "unsupported_media_type", 415))
def bytes_by_the_name_of_a_form(door):
    return door.send(door.open(4), 0, b"data", **{"Content-Type": "multipart/form-data"})


# --- Over, or never begun ------------------------------------------------------------------------


@request(refused("You have no upload", "not_found", 404))
def an_upload_that_was_given_up(door):
    url = door.open(8)
    assert door.send(url, 0, b"1234").status_code == 204
    assert door.client.delete(url, headers=TUS).status_code == 204
    return door.send(url, 4, b"5678")


@request(refused("You have no upload", "upload_not_found", 404))
def a_version_of_an_upload_that_was_given_up(door):
    upload = door.upload()
    assert door.client.delete(f"{UPLOADS}/{upload}", headers=TUS).status_code == 204
    return door.version([("a.bin", upload)])


@request(refused("is complete", "upload_complete", 409))
def an_upload_that_is_played_again(door):
    url = door.open(4)
    assert door.send(url, 0, b"good").status_code == 204
    return door.send(url, 0, b"evil")


@request(refused("not finished", "upload_unfinished"))
def a_version_of_half_an_upload(door):
    url = door.open(8)
    assert door.send(url, 0, b"half").status_code == 204
    return door.version([("a.bin", url.rpartition("/")[2])])


@request(refused("not finished", "upload_unfinished"))
def a_version_of_a_mere_part(door):
    (url,) = door.parts(b"1234")
    return door.version([("a.bin", url.rpartition("/")[2])])


@request(refused("which its ending .safetensors denies"))
def a_name_that_changes_after_the_inspection(door):
    upload = door.upload(b"\x80\x04N.", filename="innocent.bin")
    return door.version([("model.safetensors", upload)])


@request(refused("You have no upload", "upload_not_found", 404))
def an_upload_that_never_was(door):
    return door.version([("a.bin", str(uuid.uuid4()))])


@request(refused("another body", "idempotency_key_reused", 409))
def another_form_under_the_same_key(door):
    key = {"Idempotency-Key": f"once-{uuid.uuid4().hex}"}
    assert door.form({"a.txt": b"good"}, headers=key).status_code == 201
    return door.form({"a.txt": b"evil"}, headers=key)


@request(refused("at most 10000 items", "invalid"))
def ten_thousand_files_and_one(door):
    upload = door.upload()
    return door.version([(f"{number}.bin", upload) for number in range(10_001)])


# --- Of somebody else ----------------------------------------------------------------------------


@request(refused("You have no upload", "upload_not_found", 404))
def a_version_of_a_finished_upload_of_somebody_else(door):
    upload = door.upload(b"data of Bob", by=door.other)
    return door.version([("a.bin", upload)])


@request(refused("You have no upload", "not_found", 404))
def bytes_for_an_upload_of_somebody_else(door):
    url = door.begin(8, by=door.other).headers["location"]
    return door.send(url, 0, b"evil")


@request(refused("You have no upload", "not_found", 404))
def the_end_of_an_upload_of_somebody_else(door):
    url = door.begin(8, by=door.other).headers["location"]
    return door.client.delete(url, headers=TUS)


@request(refused("You have no upload", "not_found", 404))
def a_whole_with_a_part_of_somebody_else(door):
    return door.join(door.parts(b"1234"), by=door.other)


@request(refused("needs the role contributor", "denied", 403))
def a_version_of_somebody_elses_model(door):
    return door.form({"a.txt": b"x"}, by=door.other)


@request(refused("that you may see", "model_not_found", 404))
def a_version_of_a_model_that_is_private(door):
    address = f"/api/v1/models/{_private(door).full_name}/versions"
    return door.form({"a.txt": b"x"}, by=door.other, url=address)


@request(refused("that you may see", "model_not_found", 404))
def a_version_of_a_model_that_never_was(door):
    return door.form({"a.txt": b"x"}, url=VERSIONS.replace("classifier", "nothing-here"))
