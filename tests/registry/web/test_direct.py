"""What a person sees of the files that their programs sent straight to the bucket."""

import re

import pytest
from django.utils import timezone

from registry.errors import Invalid, pack
from registry.models import DirectUpload
from registry.services import uploads
from tests.factories import actor_of, make_blob, make_model, safetensors_bytes

pytestmark = pytest.mark.django_db

PAGE = "/models/olga/plain/versions/new"


@pytest.fixture
def plain(owner):
    return make_model(owner, "plain")


def sent(owner, name, **state):
    upload = uploads.add_upload(actor_of(owner), 220, name, "")
    return DirectUpload.objects.create(upload=upload, parts_id="x", part_bytes=220, **state)


def shown(client, address=PAGE):
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def test_each_says_how_far_it_is_and_why_it_is_refused(as_owner, as_stranger, owner, plain):
    assert "Sent straight to the bucket" not in shown(as_owner)
    sent(owner, "begun.safetensors")
    sent(owner, "there.safetensors", received_at=timezone.now())
    why = Invalid("The zip file has no directory at its end; the file is cut short.")
    refused = {"error_code": "malformed_file", "error_said": pack(why)}
    sent(owner, "broken.zip", received_at=timezone.now(), **refused)
    page = shown(as_owner)
    for words in ("parts are missing", "being checked", "refused", why.detail):
        assert words in page
    assert "zip 文件末尾没有目录" in shown(as_owner, f"/zh-hans{PAGE}")
    assert "Put into this version" not in page
    stranger_page = as_stranger.get("/models/new").content.decode()
    assert "broken.zip" not in stranger_page


def test_one_that_is_checked_is_put_into_a_version(as_owner, owner, plain):
    direct = sent(owner, "model.safetensors", received_at=timezone.now())
    upload = direct.upload
    upload.blob = make_blob(safetensors_bytes(weight=[1.0]))
    upload.completed_at = timezone.now()
    upload.save()
    (address,) = re.findall(rf'href="(\?upload={upload.pk})"', shown(as_owner))
    page = shown(as_owner, PAGE + address)
    assert "Put into this version" not in page
    fields = dict(re.findall(r'<input type="hidden" name="(upload|path)" value="([^"]+)"', page))
    assert fields == {"upload": str(upload.pk), "path": "model.safetensors"}
    answer = as_owner.post(PAGE, {**fields, "message": "From the bucket.", "variant": ""})
    assert answer.status_code == 302
    version = plain.versions.get()
    assert version.revision.artifacts.get().path == "model.safetensors"
    # Somebody else's upload is none.
    assert "<li data-size" not in shown(as_owner, f"{PAGE}?upload=other&upload={'0' * 32}")
