"""The playground in a real browser, on a real serving process, and its code run as it stands.

A digit is drawn for three versions side by side, a call is made again on another version, a text
goes to an encoder that is not public, and a table to a model of plain tensors.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import httpx
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from playwright.sync_api import expect
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.e2e.test_browser import (
    NARROW,
    WIDE,
    Visitor,
    installation,
    new_context,
    sign_in,
)
from tests.workers.serving.yard import linear

__all__ = ["installation"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("browser")]

WORDS = ["[PAD]", "[UNK]", "how", "do", "i", "read", "a", "file", "?"]


def strokes(*, swapped=False, factor=1.0):
    """Tell strokes across from strokes down, by where the light is."""
    weights = np.zeros((28, 28, 2), np.float32)
    weights[12:16, :, 0] = weights[:, 12:16, 1] = factor / 1000
    if swapped:
        weights = weights[..., ::-1].copy()
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["light"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["light", "flat"], ["row"]),
            helper.make_node("MatMul", ["row", "weights"], ["logits"]),
        ],
        "strokes",
        [value("image", TensorProto.UINT8, ["rows", 28, 28])],
        [value("logits", TensorProto.FLOAT, ["rows", 2])],
        [
            onnx.numpy_helper.from_array(weights.reshape(784, 2), "weights"),
            onnx.numpy_helper.from_array(np.array([-1, 784]), "flat"),
        ],
    )
    return saved(graph)


def encoder():
    """Give each word piece a vector, for the server to average."""
    table = np.random.default_rng(0).standard_normal((len(WORDS), 4)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["raw"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["raw", "column"], ["states"]),
        ],
        "encoder",
        [
            value("input_ids", TensorProto.INT64, ["rows", "length"]),
            value("attention_mask", TensorProto.INT64, ["rows", "length"]),
        ],
        [value("states", TensorProto.FLOAT, ["rows", "length", 4])],
        [
            onnx.numpy_helper.from_array(table, "table"),
            onnx.numpy_helper.from_array(np.array([-1]), "last"),
        ],
    )
    return saved(graph)


def saved(graph):
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def tokenizer():
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made.to_str().encode()


@pytest.fixture(scope="module")
def tried(installation):
    """Register and deploy three models over REST: of strokes, of words, of plain numbers."""
    with httpx.Client(
        base_url=f"{installation.url}/api/v1",
        headers={"Authorization": f"Bearer {installation.token}"},
        timeout=60,
    ) as api:
        labels = {"preprocessing": {"kind": "image"}, "labels": ["across", "down"]}
        image = {"task": "image-classification", "visibility": "public", **labels}
        for graph in (strokes(), strokes(swapped=True), strokes(factor=1.001)):
            add(api, "strokes", {"model.onnx": graph}, **image)
        text = {"task": "feature-extraction", "visibility": "private"}
        files = {"model.onnx": encoder(), "tokenizer.json": tokenizer()}
        add(api, "words", files, pad_token_id=0, max_position_embeddings=64, **text)
        add(api, "numbers", {"model.onnx": linear(width=3)}, task="other", visibility="public")
        for name in ("strokes", "words", "numbers"):
            made = {"model": f"admin/{name}", "version": "1"}
            api.post("/deployments", json=made).raise_for_status()
    return installation


def add(api, name, files, *, task, visibility, **config):
    about = {"namespace": "admin", "name": name, "task": task, "visibility": visibility}
    answer = api.post("/models", json=about)
    assert answer.status_code in {201, 409}, answer.text
    form = {path: (path, content) for path, content in files.items()}
    form["config.json"] = ("config.json", json.dumps(config).encode())
    api.post(f"/models/admin/{name}/versions", files=form).raise_for_status()


def opened(browser, tried, name, *, theme="light", language="en", size=WIDE, signed=True):
    visitor = Visitor(new_context(browser, theme, size).new_page(), tried.url, language)
    if signed:
        sign_in(visitor, tried)
    visitor.go(f"/models/admin/{name}/playground")
    return visitor


def drag(page, *points):
    box = page.locator("#draw").bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def answer_of(page, version):
    return page.locator(f".answer[data-version='{version}']")


def run(visitor):
    visitor.button("Run").click()
    expect(visitor.page.locator("#stop")).to_be_hidden(timeout=120_000)


def codes(page):
    """Read the code of each tab, by its title."""
    found = {}
    for tab in page.locator("#code [role=tab]").all():
        tab.click()
        found[tab.inner_text()] = page.locator("#code pre:not([hidden])").inner_text()
    return found


def printed(folder, *command, **environment):
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.mark.parametrize(("theme", "language"), [("light", "en"), ("dark", "zh-hans")])
def test_a_drawn_digit_on_three_versions_and_again_on_another(browser, tried, theme, language):
    visitor = opened(browser, tried, "strokes", theme=theme, language=language, signed=False)
    page, t = visitor.page, visitor.t
    visitor.look("playground")
    visitor.button("Run").click()
    expect(page.locator("#trouble")).to_have_text(t("Give it something first."))
    page.locator("#v2").check()
    page.locator("#v3").check()
    drag(page, (0.2, 0.3), (0.8, 0.3))
    run(visitor)
    expect(answer_of(page, 1).locator(".top-label")).to_have_text("across")
    expect(answer_of(page, 2).locator(".top-label")).to_have_text("down")
    expect(answer_of(page, 2).locator(".tag")).to_have_text(t("differs", "two answers"))
    expect(answer_of(page, 3).locator(".tag")).to_have_text(t("agrees", "two answers"))
    expect(answer_of(page, 3).locator(".beside")).to_contain_text("v1")
    expect(answer_of(page, 1).locator(".kv")).to_contain_text("onnxruntime")
    visitor.look("playground with answers")
    page.set_viewport_size(NARROW)
    visitor.look("playground with answers, narrow")

    # The same call on another version: what was drawn meanwhile is not sent.
    drag(page, (0.5, 0.1), (0.5, 0.9))
    for version in (1, 3):
        page.locator(f"#v{version}").uncheck()
    expect(page).to_have_url(re.compile(r"\?v=2$"))
    page.locator("#history").get_by_role("button").last.click()
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".answer")).to_have_count(1)
    expect(answer_of(page, 2).locator(".top-label")).to_have_text("down")
    expect(page.locator("#history li")).to_have_count(2)
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    page.context.close()


def test_the_code_of_a_call_makes_it_again(browser, tried, tmp_path):
    visitor = opened(browser, tried, "strokes", signed=False)
    page = visitor.page
    drag(page, (0.2, 0.5), (0.8, 0.5))
    run(visitor)
    found = codes(page)
    assert list(found) == ["curl", "Python", "JavaScript", "tritonclient", "gRPC"]
    assert json.loads(printed(tmp_path, "bash", "-c", found["curl"]))["version"] == "1"
    python = printed(tmp_path, sys.executable, "-c", found["Python"])
    assert "'label': 'across'" in python
    if shutil.which("node"):
        (tmp_path / "call.mjs").write_text(found["JavaScript"])
        assert "label: 'across'" in printed(tmp_path, "node", "call.mjs")
    for title in ("tritonclient", "gRPC"):
        said = printed(tmp_path, sys.executable, "-c", found[title])
        across, down = map(float, re.findall(r"[\d.]+", said.partition("[[")[2]))
        assert across > down
    page.context.close()


def test_a_text_for_an_encoder_that_is_not_public(browser, tried, tmp_path):
    visitor = opened(browser, tried, "words")
    page = visitor.page
    page.get_by_label("Text", exact=True).fill("How do I read a file?")
    run(visitor)
    expect(answer_of(page, 1)).to_contain_text("4 values, length 1.000")
    visitor.look("playground of words")
    found = codes(page)
    assert "OpenAI" in found
    token = {"MODELYARD_TOKEN": tried.token}
    vector = json.loads(printed(tmp_path, "bash", "-c", found["curl"], **token))
    python = printed(tmp_path, sys.executable, "-c", found["Python"], **token)
    assert str(vector["prediction"]["embedding"][0])[:6] in python
    said = [
        printed(tmp_path, sys.executable, "-c", found[t], **token) for t in ("tritonclient", "gRPC")
    ]
    assert said[0] == said[1]
    assert said[0].startswith("states [[[")
    if find_spec("openai"):
        openai = printed(tmp_path, sys.executable, "-c", found["OpenAI"], **token)
        assert str(vector["prediction"]["embedding"][0])[:6] in openai
    assert visitor.complaints == [], "\n".join(visitor.complaints)
    page.context.close()


def test_a_table_and_its_json(browser, tried, tmp_path):
    visitor = opened(browser, tried, "numbers", signed=False)
    page = visitor.page
    visitor.button("Add a row").click()
    for column in (1, 2, 3):
        page.get_by_label(f"x {column}, Row 2", exact=True).fill(f"{column}.5")
    run(visitor)
    expect(answer_of(page, 1)).to_contain_text("[3, 5, 7]")
    said = printed(tmp_path, sys.executable, "-c", codes(page)["tritonclient"])
    assert "[3. 5. 7.]" in said
    page.get_by_role("button", name="JSON", exact=True).click()
    field = page.get_by_label("Fields as JSON: one object, or a list of them")
    assert json.loads(field.input_value()) == [{"x": [0, 0, 0]}, {"x": [1.5, 2.5, 3.5]}]
    visitor.look("playground with a table")
    # What does not fit is said in words, by the serving process or before it is asked.
    field.fill("{")
    visitor.button("Run").click()
    expect(page.locator("#trouble")).to_contain_text("This is no JSON")
    field.fill('{"y": 1}')
    run(visitor)
    expect(answer_of(page, 1).locator(".errors")).to_contain_text("Row 0 lacks the field 'x'.")
    # The refusal itself is what a browser complains of.
    assert [one for one in visitor.complaints if "400" not in one] == []
    page.context.close()
