"""The form of the upload page without scripts: files of any size, and every refusal is a page."""

import hashlib
import html
import os
import re

import pytest

from registry.models import Artifact, Upload, Version
from registry.storage import default_storage
from tests.factories import make_model
from tests.registry.stream.test_registration import part
from tests.registry.stream.test_upload import signed_in_page

PAGE = "/models/alice/classifier/versions/new"


@pytest.fixture
def visitor(server, alice, model):
    visitor, token = signed_in_page(server, alice)
    visitor.token = token
    with visitor:
        yield visitor


@pytest.fixture
def post(visitor, server):
    def post(*files, page=PAGE, headers=None, **texts):
        fields = {"csrfmiddlewaretoken": visitor.token, "message": "By hand.", "variant": ""}
        # The texts of the page stand before its files, as httpx sends them.
        return visitor.post(
            page,
            data=fields | texts,
            files=[("files", file[1]) for file in files],
            headers={"Origin": server.url} if headers is None else headers,
        )

    return post


def named(path, data):
    return part("files", data, path)


def files_of_the_version():
    revision = Version.objects.get().revision_id
    rows = Artifact.objects.filter(revision=revision).select_related("blob")
    return {row.path: row.blob.sha256 for row in rows}


def words_of(answer):
    assert answer.headers["content-type"].startswith("text/html"), answer.text
    return html.unescape(re.sub(r"<[^>]+>", " ", answer.text))


def in_spool():
    return list((default_storage().spool / "incoming").iterdir())


def test_files_of_any_size_become_a_version(post):
    data = os.urandom(23 << 20)
    answer = post(named("weights.bin", data), named("empty.txt", b""))
    assert answer.status_code == 302, answer.text
    assert answer.headers["location"] == "/models/alice/classifier/versions/1"
    assert Version.objects.get().message == "By hand."
    assert files_of_the_version() == {
        "weights.bin": hashlib.sha256(data).hexdigest(),
        "empty.txt": hashlib.sha256(b"").hexdigest(),
    }


def test_a_form_of_the_chinese_page(post):
    answer = post(named("a.txt", b"a"), page=f"/zh-hans{PAGE}")
    assert answer.headers["location"] == "/zh-hans/models/alice/classifier/versions/1"
    answer = post(named("a.txt", b"a"), named("a.txt", b"b"), page=f"/zh-hans{PAGE}")
    assert answer.status_code == 422
    assert "a.txt" in words_of(answer)
    assert "twice" not in words_of(answer)


def test_two_files_of_one_name_are_refused_and_the_first_is_kept(post):
    answer = post(named("a.txt", b"first"), named("a.txt", b"second"), named("b.txt", b"x" * 4096))
    assert answer.status_code == 422
    assert "The form has the file 'a.txt' twice." in words_of(answer)
    assert Version.objects.count() == 0
    upload = Upload.objects.get()
    assert default_storage().read(upload.blob.sha256) == b"first"
    assert f'name="upload" value="{upload.pk}"' in answer.text
    # What arrived need not be chosen again.
    answer = post(named("b.txt", b"b"), upload=str(upload.pk), path="a.txt")
    assert answer.status_code == 302, words_of(answer)
    assert set(files_of_the_version()) == {"a.txt", "b.txt"}


def test_an_input_without_a_file_is_no_file(visitor, server):
    answer = visitor.post(
        PAGE,
        content=b'--x\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n'
        + visitor.token.encode()
        + b'\r\n--x\r\nContent-Disposition: form-data; name="files"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--x--\r\n",
        headers={"Origin": server.url, "Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 422
    assert "Choose at least one file." in words_of(answer)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (named("../evil.txt", b"x"), "evil.txt"),
        (named("model.safetensors", b"\xff" * 7 + b"\0{}"), "model.safetensors"),
    ],
)
def test_a_bad_file_is_refused_on_the_page(post, file, words):
    answer = post(file)
    assert answer.status_code == 422
    assert words in words_of(answer)
    assert Version.objects.count() == 0
    assert in_spool() == []


@pytest.mark.slow
def test_a_file_larger_than_allowed_is_refused_on_the_page(post):
    answer = post(named("huge.bin", bytes((256 << 20) + 1)))
    assert answer.status_code == 413
    assert "huge.bin" in words_of(answer)
    assert in_spool() == []
    assert Upload.objects.count() == 0


@pytest.mark.parametrize(
    ("texts", "headers"),
    [
        ({"csrfmiddlewaretoken": "b" * 32}, None),
        ({"csrfmiddlewaretoken": ""}, None),
        ({}, {"Origin": "https://evil.example"}),
        ({}, {"Origin": "null"}),
    ],
)
def test_the_form_of_another_site_stores_nothing(post, texts, headers):
    before = set(default_storage().inventory())
    answer = post(named("a.bin", os.urandom(3 << 20)), headers=headers, **texts)
    assert answer.status_code == 403, answer.text
    words_of(answer)
    assert set(default_storage().inventory()) == before
    assert in_spool() == []
    assert (Upload.objects.count(), Version.objects.count()) == (0, 0)


def test_files_before_the_token_are_not_stored(visitor, server):
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nhello\r\n'
        b'--x\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n'
        + visitor.token.encode()
        + b"\r\n--x--\r\n"
    )
    headers = {"Origin": server.url, "Content-Type": "multipart/form-data; boundary=x"}
    assert visitor.post(PAGE, content=body, headers=headers).status_code == 403
    assert (Upload.objects.count(), Version.objects.count()) == (0, 0)


def test_whoever_is_not_signed_in_is_led_to_sign_in(post, visitor):
    visitor.cookies.delete("sessionid")
    answer = post(named("a.bin", os.urandom(12 << 20)))
    assert answer.status_code == 302
    assert answer.headers["location"].startswith("/login?next=")
    assert Upload.objects.count() == 0


def test_whoever_may_not_write_here_gets_the_page_that_says_so(post, bob):
    make_model(bob, "open")
    make_model(bob, "secret", visibility="private")
    for name, status in (("open", 403), ("secret", 404), ("nothing", 404)):
        answer = post(named("a.bin", b"a"), page=f"/models/bob/{name}/versions/new")
        assert answer.status_code == status, name
        words_of(answer)
    assert Upload.objects.count() == 0


def test_a_form_that_breaks_off_registers_nothing(visitor, server):
    body = (
        b'--x\r\nContent-Disposition: form-data; name="csrfmiddlewaretoken"\r\n\r\n'
        + visitor.token.encode()
        + b'\r\n--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\nhello'
    )
    headers = {"Origin": server.url, "Content-Type": "multipart/form-data; boundary=x"}
    answer = visitor.post(PAGE, content=body, headers=headers)
    assert answer.status_code == 422
    assert "closing boundary" in words_of(answer)
    assert Version.objects.count() == 0
    assert in_spool() == []
