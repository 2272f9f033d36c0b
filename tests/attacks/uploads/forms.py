"""Bodies that are no forms, forms that are no files, and lies about where a body ends."""

import gzip

from tests.attacks.corpus import refused, request
from tests.attacks.doors import BOUNDARY, UPLOADS, VERSIONS, closed, disposition, part

FILE = disposition("file", "a.txt")
KIND = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
POST = f"POST {VERSIONS} HTTP/1.1"
WHOLE = closed(part(FILE, b"x"))


# --- Forms ---------------------------------------------------------------------------------------


@request(refused("before its closing boundary", "truncated_body"))
def a_form_without_an_end(door):
    return door.body(part(FILE, b"x"))


@request(refused("before its closing boundary", "truncated_body"))
def an_empty_body(door):
    return door.body(b"")


@request(refused("malformed", "invalid"))
def a_body_that_is_no_form(door):
    return door.body(b"\x80\x04N." * 100)


@request(refused("malformed", "invalid"))
def a_header_of_a_megabyte(door):
    return door.body(closed(part(FILE + b"\r\nX-Long: " + b"y" * (1 << 20), b"x")))


@request(refused("malformed", "invalid"))
def ten_thousand_headers(door):
    many = b"".join(b"\r\nX-%d: y" % number for number in range(10_000))
    return door.body(closed(part(FILE + many, b"x")))


@request(refused("no Content-Disposition", "invalid"))
def a_part_without_a_name(door):
    return door.body(closed(part("X-Other: y", b"x")))


@request(refused("no Content-Disposition", "invalid"))
def a_form_within_a_form(door):
    inner = b"--inner\r\nContent-Disposition: file; filename=a.txt\r\n\r\nx\r\n--inner--"
    head = "Content-Disposition: mixed; name=files\r\nContent-Type: multipart/mixed; boundary=inner"
    return door.body(closed(part(head, inner)))


@request(refused("not understood", "invalid"))
def a_part_in_base64(door):
    return door.body(closed(part(FILE + b"\r\nContent-Transfer-Encoding: base64", b"eA==")))


@request(refused("There is no field", "unknown_field"))
def a_field_that_nobody_asked_for(door):
    return door.body(closed(part(disposition("state"), b"ready"), part(FILE, b"x")))


@request(refused("twice", "repeated"))
def a_file_twice(door):
    return door.body(closed(part(FILE, b"good"), part(FILE, b"evil")))


@request(refused("twice", "repeated"))
def a_field_twice(door):
    message = disposition("message")
    return door.body(closed(part(message, b"one"), part(message, b"two"), part(FILE, b"x")))


@request(refused("more than 1048576", "too_large", 413))
def a_message_of_megabytes(door):
    return door.body(closed(part(disposition("message"), b"y" * (2 << 20))))


@request(refused("UTF-8", "invalid"))
def a_message_that_is_no_text(door):
    return door.body(closed(part(disposition("message"), b"\xff\xfe"), part(FILE, b"x")))


@request(refused("", "bad_character"))
def a_message_with_a_nul(door):
    return door.body(closed(part(disposition("message"), b"a\0b"), part(FILE, b"x")))


@request(refused("UTF-8", "invalid"))
def a_name_that_is_no_text(door):
    head = b'Content-Disposition: form-data; name="file"; filename="\xff\xfe.txt"'
    return door.body(closed(part(head, b"x")))


@request(refused("boundary", "invalid"))
def a_form_without_a_boundary(door):
    return door.body(WHOLE, headers={"Content-Type": "multipart/form-data"})


@request(refused("boundary", "invalid"))
def a_boundary_of_kilobytes(door):
    return door.body(WHOLE, headers={"Content-Type": f"multipart/form-data; boundary={'x' * 9000}"})


@request(refused("malformed", "invalid"))
def another_boundary_than_announced(door):
    return door.body(WHOLE, headers={"Content-Type": "multipart/form-data; boundary=other"})


@request(refused("malformed", "invalid"))
def a_form_that_is_compressed(door):
    return door.body(gzip.compress(bytes(10 << 20)), headers={"Content-Encoding": "gzip"})


@request(refused("deeper than 64", "too_deep"))
def tags_a_hundred_thousand_deep(door):
    tags = b'{"a":' * 100_000
    return door.body(closed(part(disposition("tags"), tags), part(FILE, b"x")))


@request(refused("twice", "duplicate_key"))
def tags_with_two_answers(door):
    tags = b'{"a": "x", "a": "y"}'
    return door.body(closed(part(disposition("tags"), tags), part(FILE, b"x")))


# --- JSON ----------------------------------------------------------------------------------------


def sent(door, body):
    return door.client.post(VERSIONS, content=body, headers={"Content-Type": "application/json"})


@request(refused("deeper than 64", "too_deep"))
def json_a_hundred_thousand_deep(door):
    return sent(door, b'{"files":' + b"[" * 100_000 + b"]" * 100_000 + b"}")


@request(refused("twice", "duplicate_key"))
def json_with_two_answers(door):
    return sent(door, b'{"message": "good", "message": "evil"}')


@request(refused("not a JSON number", "not_finite"))
def json_with_nan(door):
    return sent(door, b'{"message": NaN}')


@request(refused("U+0000", "nul_character"))
def json_with_a_nul(door):
    return sent(door, b'{"message": "a\\u0000b"}')


@request(refused("surrogate", "lone_surrogate"))
def json_with_half_a_character(door):
    return sent(door, b'{"message": "\\ud800"}')


@request(refused("64 bits", "out_of_range"))
def json_with_a_number_beyond_64_bits(door):
    return sent(door, b'{"message": 1' + b"0" * 5000 + b"}")


@request(refused("not UTF-8", "not_utf8"))
def json_that_is_no_text(door):
    return sent(door, b'{"message": "\xff"}')


@request(refused("at most 10551296 bytes", "too_large", 413))
def json_of_a_hundred_megabytes(door):
    return sent(door, b'{"message": "' + b"x" * (12 << 20) + b'"}')


@request(refused("files.0.url: There is no such field", "invalid"))
def a_file_at_an_address(door):
    return sent(door, b'{"files": [{"path": "a", "url": "file:///etc/passwd"}]}')


@request(refused("", "invalid"))
def a_file_of_two_sources(door):
    upload = door.upload()
    both = f'{{"path": "a", "upload": "{upload}", "sha256": "{"0" * 64}"}}'
    return sent(door, f'{{"files": [{both}]}}'.encode())


@request(refused("", "invalid"))
def a_file_of_no_source(door):
    return sent(door, b'{"files": [{"path": "a"}]}')


# --- Where a body ends ---------------------------------------------------------------------------


@request(refused("", "", 408))
def a_body_shorter_than_it_claims(door):
    return door.raw([POST, KIND, "Content-Length: 99999"], WHOLE[:-10])


@request(refused("", "", 408))
def chunks_of_garbage(door):
    return door.raw([POST, KIND, "Transfer-Encoding: chunked"], b"ZZ\r\nnonsense\r\n", end=False)


@request(refused("", "", 408))
def a_chunk_of_minus_one(door):
    return door.raw([POST, KIND, "Transfer-Encoding: chunked"], b"-1\r\nx\r\n0\r\n\r\n", end=False)


@request(refused("", "", 408))
def a_chunk_longer_than_any_disk(door):
    body = b"fffffffffffffffff\r\nx\r\n0\r\n\r\n"
    return door.raw([POST, KIND, "Transfer-Encoding: chunked"], body, end=False)


@request(refused("", "", 408))
def a_length_and_chunks(door):
    # The chunks count, as the standard has it, and this body has none.
    lines = [POST, KIND, f"Content-Length: {len(WHOLE)}", "Transfer-Encoding: chunked"]
    return door.raw(lines, WHOLE, end=False)


@request(refused("", "", 400))
def two_lengths(door):
    lines = [POST, KIND, f"Content-Length: {len(WHOLE)}", "Content-Length: 5"]
    return door.raw(lines, WHOLE, end=False)


@request(refused("", "", 400))
def a_negative_length(door):
    return door.raw([POST, KIND, "Content-Length: -1"], WHOLE, end=False)


@request(refused("", "", 400))
def a_length_beyond_64_bits(door):
    return door.raw([POST, KIND, f"Content-Length: {1 << 65}"], WHOLE, end=False)


@request(refused("", "", 400))
def a_length_in_words(door):
    return door.raw([POST, KIND, "Content-Length: 0x10"], WHOLE, end=False)


@request(refused("before its closing boundary", "truncated_body"))
def a_request_hidden_behind_a_short_length(door):
    # What follows the length claimed must not be taken for a part of this request.
    hidden = f"POST {UPLOADS} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    return door.raw([POST, KIND, "Content-Length: 40"], WHOLE[:40] + hidden)


@request(refused("", "", 400))
def a_header_with_a_line_break(door):
    return door.raw([POST, KIND, "X-Evil: a\nTransfer-Encoding: chunked\x00", "Content-Length: 0"])


@request(refused("", "", 431))
def a_thousand_headers_at_the_door(door):
    many = [f"X-{number}: y" for number in range(1000)]
    return door.raw([POST, KIND, *many, "Content-Length: 0"], end=False)
