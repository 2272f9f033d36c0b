"""Who signed a version, on its page: seen, taken away, added, refused and deleted."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from django.core.files.uploadedfile import SimpleUploadedFile

from registry import signing
from registry.models import Role, Signature
from registry.services import signatures
from registry.storage import default_storage
from tests.factories import make_member
from tests.registry.test_signing import public_pem
from tests.registry.web.conftest import signed_in

pytestmark = pytest.mark.django_db

PAGE = "/models/olga/digits-cnn/versions/1"


@pytest.fixture
def version(model):
    return model.versions.get(number=1)


@pytest.fixture
def key():
    private = ec.generate_private_key(ec.SECP256R1())
    return signing.SigningKey(private=private, public_pem=public_pem(private))


def bundle_of(key, files):
    return SimpleUploadedFile("mine.sig", signing.sign("mine", files, key).encode())


def shown(client, address=PAGE):
    response = client.get(address)
    assert response.status_code == 200
    return response.content.decode()


def add(client, version, key, **form):
    bundle = bundle_of(key, signatures.signed_files(version))
    return client.post(f"{PAGE}/signatures", {"bundle": bundle, "public_key": "", **form})


def test_everybody_sees_that_the_installation_signed_and_takes_the_bundle(client, version):
    signature = version.signatures.get()
    page = shown(client)
    assert "This installation" in page
    assert signature.fingerprint in page
    assert "Add a signature of your own" not in page
    answer = client.get(f"{PAGE}/signatures/{signature.pk}")
    assert answer.status_code == 200
    assert answer["Content-Disposition"].startswith('attachment; filename="digits-cnn-v1-')
    assert signing.read_bundle(answer.content).name == "olga/digits-cnn@1"
    assert client.get(f"{PAGE}/signatures/{signature.pk + 1}").status_code == 404


def test_a_signature_of_ones_own_is_checked_kept_and_deleted(as_owner, owner, version, key):
    answer = add(as_owner, version, key, public_key=key.public_pem.replace("\n", "\r\n"))
    assert answer.status_code == 302
    kept = version.signatures.get(own=False)
    assert kept.public_key == key.public_pem
    assert kept.fingerprint in shown(as_owner)
    again = add(as_owner, version, key, public_key=key.public_pem)
    assert again.status_code == 422
    assert "already has a signature" in again.content.decode()
    helper = signed_in(make_member(version.repository.namespace, Role.CONTRIBUTOR))
    assert f"{kept.pk}/delete" in shown(as_owner)
    assert f"{kept.pk}/delete" not in shown(helper)
    helper.post(f"{PAGE}/signatures/{kept.pk}/delete")
    assert version.signatures.filter(own=False).exists()
    as_owner.post(f"{PAGE}/signatures/{kept.pk}/delete")
    assert not version.signatures.filter(own=False).exists()
    own = version.signatures.get()
    as_owner.post(f"{PAGE}/signatures/{own.pk}/delete")
    assert version.signatures.filter(pk=own.pk).exists()


def test_what_does_not_hold_is_an_error_of_the_form(as_owner, version, key):
    files = signatures.signed_files(version)
    first = next(iter(files))
    cases = {
        "请在 public_key 中以 PEM 格式发送其公钥": (bundle_of(key, files), ""),
        "public_key 不是 PEM 格式的公钥": (bundle_of(key, files), "no key"),
        "该签名针对的是其他文件": (bundle_of(key, {**files, first: "0" * 64}), key.public_pem),
        "无法使用该签名包": (SimpleUploadedFile("a.sig", b"{}"), key.public_pem),
    }
    for words, (bundle, pem) in cases.items():
        form = {"bundle": bundle, "public_key": pem}
        answer = as_owner.post(f"/zh-hans{PAGE}/signatures", form)
        assert answer.status_code == 422
        page = answer.content.decode()
        assert 'class="more" open' in page
        assert words in page
    assert as_owner.post(f"{PAGE}/signatures", {"public_key": ""}).status_code == 422
    assert version.signatures.count() == 1


def test_only_who_may_write_adds_one(as_stranger, client, version, key):
    answer = add(as_stranger, version, key, public_key=key.public_pem)
    assert answer.status_code == 403
    assert "login" in add(client, version, key)["Location"]
    assert version.signatures.count() == 1


def commands_of(page):
    blocks = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", page, re.DOTALL)
    codes = [unescape(re.sub(r"<[^>]+>", "", block)) for block in blocks]
    return [code for code in codes if "model_signing verify" in code]


def test_the_commands_beside_a_signature_check_it(as_owner, owner, version, key, tmp_path):
    """Run what the page says, with the stock tool; only the way to the server stands in."""
    pem = f"Bag attributes\nEND\ntouch {tmp_path}/never\n{key.public_pem}"
    add(as_owner, version, key, public_key=pem)
    Signature.objects.filter(own=False).update(public_key=pem)
    codes = commands_of(shown(as_owner))
    assert len(codes) == 2
    for place, code in enumerate(codes):
        folder = tmp_path / str(place)
        folder.mkdir()
        stand_in_for_curl(folder, as_owner, version, code)
        lines = [line for line in code.splitlines() if not line.startswith("pip ")]
        path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(lines)],
            cwd=folder,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "succeeded" in done.stdout + done.stderr
    assert not (tmp_path / "never").exists()


def stand_in_for_curl(folder, client, version, code):
    """Lay out every answer under its address, and a `curl` that copies it."""
    (base,) = re.findall("^url=(.*)$", code, re.MULTILINE)
    api = base.replace("http://testserver", "")
    answers = {
        f"{base}/files?limit=100": client.get(f"{api}/files?limit=100").content,
        "http://testserver/api/v1/signing-key": client.get("/api/v1/signing-key").content,
    }
    for artifact in version.revision.artifacts.select_related("blob"):
        size = artifact.blob.size_bytes
        content = default_storage().read(artifact.blob.sha256, start=0, end=size)
        answers[f"{base}/files/{artifact.path}"] = content
    for signature in version.signatures.all():
        answers[f"{base}/signatures/{signature.pk}"] = signature.bundle.encode()
    (folder / "bin").mkdir()
    kept = {}
    for number, (address, content) in enumerate(answers.items()):
        (folder / "bin" / f"{number}.answer").write_bytes(content)
        kept[address] = str(folder / "bin" / f"{number}.answer")
    program = folder / "bin" / "curl"
    program.write_text(
        f"#!{shutil.which('python3')}\n"
        "import json, pathlib, sys\n"
        f"kept = json.loads({json.dumps(json.dumps(kept))})\n"
        "content = pathlib.Path(kept[sys.argv[-1]]).read_bytes()\n"
        "if '-o' in sys.argv:\n"
        "    target = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
        "    target.parent.mkdir(parents=True, exist_ok=True)\n"
        "    target.write_bytes(content)\n"
        "else:\n"
        "    sys.stdout.buffer.write(content)\n"
    )
    program.chmod(0o755)
