"""The playground of a model: what it offers to try, how inputs are made, and the key it lends."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest
from django.test import Client
from django.utils import timezone

from registry.authenticate import Visit, actor_from_token
from registry.models import Repository, Token, Version, Visibility
from registry.services.deployments import deploy
from tests.factories import actor_of, make_model, make_version, safetensors_bytes

pytestmark = pytest.mark.django_db
PAGE = "/models/olga/classifier/playground"
IMAGE = {"name": "image", "dtype": "uint8", "shape": [-1, 28, 28]}


def port(name, dtype, *shape):
    return {"name": name, "dtype": dtype, "shape": list(shape)}


@pytest.fixture
def model(owner):
    return make_model(owner)


def add(owner, model, *inputs, config=None, files=(), **details):
    content = {
        "config.json": json.dumps(config or {}).encode(),
        "model.safetensors": safetensors_bytes(weight=[1.0]),
        **dict.fromkeys(files, b"{}"),
    }
    version = make_version(owner, model, content, **details)
    signature = {"inputs": list(inputs), "outputs": []}
    Version.objects.filter(pk=version.pk).update(signature=signature)
    return version


def text_of(client, address=PAGE):
    answer = client.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


def described(client, address=PAGE):
    (said,) = re.findall(r'data-playground="([^"]*)"', text_of(client, address))
    return json.loads(unescape(said))


def chosen(page):
    return re.findall(r'name="v" value="(\d+)"\s+checked', page)


def put_up(owner, version="1", **more):
    return deploy(actor=actor_of(owner), model="olga/classifier", version=version, **more)


PREPARED = {"preprocessing": {"kind": "image", "columns": {"image": "picture"}}}
WORDS = {"preprocessing": {"kind": "words", "columns": {"text": "review"}, "max_length": 64}}


PIECES = [port("input_ids", "int64", -1, -1), port("attention_mask", "int64", -1, -1)]
TOKENIZER = ("tokenizer.json", "sentence_bert_config.json")


@pytest.mark.parametrize(
    ("version", "kind", "column"),
    [
        (([IMAGE], PREPARED), "digit", "picture"),
        (([port("tokens", "int64", -1, -1)], WORDS), "text", "review"),
        (([], {}, TOKENIZER[:1]), "text", "text"),
        ((PIECES, {}, TOKENIZER), "text", "text"),
        (([port("pixels", "float32", "batch", 3, 32, 48)],), "picture", "pixels"),
        (([port("pixels", "uint8", "batch", 32, 48, 1)],), "picture", "pixels"),
        (([port("x", "float32", "batch", 4)],), "table", None),
        (([port("age", "int64", -1), port("name", "string", -1)],), "table", None),
        # Too wide for a table, of no known size, of no known type, nothing known at all.
        (([port("x", "float32", "batch", 400)],), "json", None),
        (([port("x", "float32", "batch", "width")],), "json", None),
        (([port("x", "complex64", "batch", 2)],), "json", None),
        (([],), "json", None),
    ],
)
def test_an_input_is_made_from_what_the_version_takes(as_owner, owner, version, kind, column):
    ports, *more = version
    add(owner, make_model(owner), *ports, **dict(zip(("config", "files"), more, strict=False)))
    put_up(owner)
    takes = described(as_owner)["takes"]
    assert (takes["kind"], takes.get("column")) == (kind, column)
    if kind in {"digit", "text"}:
        assert column in takes["example"]


def test_an_example_has_the_sizes_of_the_input(as_owner, owner, model):
    add(owner, model, port("x", "float32", "batch", 3, 224, 224))
    put_up(owner)
    example = described(as_owner)["takes"]["example"]["x"]
    assert (len(example), len(example[0]), len(example[0][0])) == (3, 224, 224)


def test_a_table_has_a_column_for_each_number(as_owner, owner, model):
    add(owner, model, port("age", "int64", -1), port("size", "float32", -1, 2))
    put_up(owner)
    columns = described(as_owner)["takes"]["columns"]
    assert [(one["name"], one["input"], one["at"]) for one in columns] == [
        ("age", "age", None),
        ("size 1", "size", 0),
        ("size 2", "size", 1),
    ]
    assert [one["whole"] for one in columns] == [True, False, False]


def test_what_answers_is_chosen_unless_others_are_asked_for(as_owner, owner, model):
    for _ in range(9):
        add(owner, model, IMAGE, config=PREPARED)
    put_up(owner, "3")
    page = text_of(as_owner)
    assert chosen(page) == ["3"]
    assert "Live 100 %" in page
    assert chosen(text_of(as_owner, f"{PAGE}?v=2&v=9&v=77&v=x&v=-1")) == ["9", "2"]
    asked = "&".join(f"v={number}" for number in range(1, 10))
    assert len(chosen(text_of(as_owner, f"{PAGE}?{asked}"))) == 6
    model.versions.filter(number=9).update(state="archived")
    assert 'id="v9"' not in text_of(as_owner)


def test_it_says_what_is_missing(as_owner, owner, model):
    add(owner, model, IMAGE)
    page = text_of(as_owner)
    assert "It is not deployed." in page
    assert "/endpoints/new?model=olga/classifier" in page
    assert 'id="playground"' not in page
    assert as_owner.get("/datasets/olga/classifier/playground").status_code == 404


def test_it_is_reached_from_the_model_and_the_endpoint(as_owner, owner, model):
    add(owner, model, IMAGE)
    put_up(owner, endpoint="tried")
    for address in ("/models/olga/classifier", "/models/olga/classifier?tab=serve"):
        assert f'href="{PAGE}"' in text_of(as_owner, address)
    assert f'href="{PAGE}?endpoint=tried"' in text_of(as_owner, "/endpoints/olga/tried")
    assert described(as_owner, f"{PAGE}?endpoint=tried")["endpoint"] == "olga/tried"


def test_only_its_scripts_may_call_the_serving_process(as_owner, owner, model, settings):
    add(owner, model, IMAGE)
    put_up(owner)
    settings.INFER_URL = "https://models.example.org/infer"
    answer = as_owner.get(PAGE)
    policy = answer["Content-Security-Policy"]
    assert "connect-src 'self' https://models.example.org;" in f"{policy};"
    other = as_owner.get("/models/olga/classifier")["Content-Security-Policy"]
    assert "models.example.org" not in other
    assert described(as_owner)["infer"] == "https://models.example.org/infer"


def test_from_https_it_says_that_serving_needs_an_address(as_owner, owner, model, settings):
    add(owner, model, IMAGE)
    put_up(owner)
    said = "MODELYARD_INFER_URL"
    assert said not in text_of(as_owner)
    page = as_owner.get(PAGE, secure=True).content.decode()
    assert said in page
    settings.INFER_URL = "https://models.example.org"
    assert said not in as_owner.get(PAGE, secure=True).content.decode()


def test_the_key_reads_this_model_for_a_while(as_owner, owner, model):
    answer = as_owner.post(f"{PAGE}/key")
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    lent = answer.json()
    actor = actor_from_token(lent["key"], Visit(door="serving"))
    assert (actor.scopes, actor.limited_repository_id) == (frozenset({"read"}), model.pk)
    token = Token.objects.get()
    assert 0 < (token.expires_at - timezone.now()).total_seconds() <= lent["seconds"] == 900
    # What has run out makes room for what comes.
    Token.objects.update(expires_at=timezone.now())
    assert as_owner.post(f"{PAGE}/key").status_code == 200
    assert Token.objects.count() == 1


def test_nobody_gets_a_key_to_what_they_do_not_see(as_stranger, owner, model):
    Repository.objects.filter(pk=model.pk).update(visibility=Visibility.PRIVATE)
    assert as_stranger.get(PAGE).status_code == 404
    assert as_stranger.post(f"{PAGE}/key").status_code == 404
    assert Client().post(f"{PAGE}/key").status_code == 302
    assert not Token.objects.exists()


def test_visitors_try_public_models_without_a_key(owner, model):
    add(owner, model, IMAGE)
    put_up(owner)
    Repository.objects.filter(pk=model.pk).update(visibility=Visibility.PUBLIC)
    assert described(Client())["private"] is False
    Repository.objects.filter(pk=model.pk).update(visibility=Visibility.INTERNAL)
    assert Client().get(PAGE).status_code == 404


CODE = """
import { clientCode } from "./playground-code.mjs";
const { spec, rows } = JSON.parse(process.argv[2]);
const found = clientCode(spec, "1", rows, spec.takes.ports);
console.log(JSON.stringify(Object.fromEntries(found.map(({ key, code }) => [key, code]))));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("grpcs://models.example.org:443", '"models.example.org:443", ssl=True'),
        ("grpc://models.example.org:8081", '"models.example.org:8081"'),
        ("", '"testserver:8081"'),
    ],
)
def test_the_code_of_a_call_says_whether_grpc_has_tls(  # noqa: PLR0917 - fixtures
    as_owner, owner, model, settings, tmp_path, address, written
):
    settings.INFER_URL, settings.GRPC_ADDRESS = "https://models.example.org", address
    add(owner, model, port("x", "float32", -1, 2))
    put_up(owner)
    script = Path(settings.BASE_DIR) / "static" / "js" / "playground-code.js"
    shutil.copy(script, tmp_path / "playground-code.mjs")
    (tmp_path / "code.mjs").write_text(CODE)
    asked = json.dumps({"spec": described(as_owner), "rows": [{"x": [1, 2]}]})
    done = subprocess.run(
        ["node", "code.mjs", asked], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert f"triton.InferenceServerClient({written})\n" in found["triton-grpc"]
    assert 'InferenceServerClient("models.example.org", ssl=True)\n' in found["triton-http"]
