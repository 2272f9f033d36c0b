"""Sentence encoders as Transformers ships them: loaded offline, pooled, quantized, compared."""

import json
import pickle

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from registry.errors import RegistryError
from tests.workers.ml.little import (
    compress_recipe,
    infer_recipe,
    read_events,
    run_job,
    write_encoder,
)
from tests.workers.ml.test_formats import Trap
from workers.ml.architectures.sentence_encoder import Pooling, read_pooling
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.probes import NOWHERE
from workers.ml.texts import longest_text


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def embed(path, texts):
    runtime = load_runtime(open_model(path), device="cpu", threads=1)
    return runtime.run({"text": texts}, NOWHERE)


def test_vectors_have_unit_length_and_padding_does_not_change_them(encoder):
    texts = ["the cat", "the horse and the sheep and the cow and the dog", ""]
    together = embed(encoder, texts)
    alone = np.concatenate([embed(encoder, [text]) for text in texts])
    assert together.shape == (3, 32)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, alone, atol=1e-5)


def test_long_texts_are_cut_to_what_the_model_knows(encoder):
    assert embed(encoder, ["cat " * 5000]).shape == (1, 32)


@pytest.mark.slow
def test_a_quantized_encoder_stays_close_to_its_parent(tmp_path, encoder, texts):
    result = run_job(tmp_path / "job", compress_recipe(), model=encoder, dataset=texts)
    cosine = result.metric("cosine_to_parent")
    assert cosine["value"] > 0.97
    assert cosine["n"] == 30
    assert cosine["low"] <= cosine["value"] <= cosine["high"]
    assert cosine["details"]["same_nearest_neighbour"] is not None
    operators = result.report["summary"]["operators"]
    assert operators["MatMulInteger"] == 12
    weights = result.report["summary"]["weight_bytes_by_type"]
    assert weights["UINT8"] + weights["INT8"] > 128 * 32
    assert weights["FLOAT"] < 128 * 32 * 4
    card = (result.files / "README.md").read_text()
    assert "license: mit" in card
    assert "pipeline_tag: sentence-similarity" in card
    config = json.loads((result.files / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["signature"]["outputs"][0]["shape"] == [-1, 32]
    original, small = embed(encoder, ["the cat"]), embed(result.files, ["the cat"])
    assert float((original * small).sum()) > 0.95


@pytest.mark.slow
def test_without_a_dataset_sentences_of_our_own_are_compared(tmp_path, encoder):
    recipe = compress_recipe(embeddings=False)
    del recipe["dataset"]
    result = run_job(tmp_path / "job", recipe, model=encoder)
    assert result.metric("cosine_to_parent")["details"]["probes"] == "64 built-in sentences"
    assert result.report["summary"]["weight_bytes_by_type"]["FLOAT"] > 128 * 32 * 4


def test_embeddings_are_written_as_predictions(tmp_path, encoder, texts):
    result = run_job(tmp_path / "job", infer_recipe(), model=encoder, dataset=texts)
    rows = read_events((result.files / "predictions.jsonl").read_text())
    assert len(rows) == 30
    assert len(rows[0]["embedding"]) == 32


def refusal(path):
    with pytest.raises(RegistryError) as caught:
        load_runtime(open_model(path), device="cpu", threads=1)
    return caught.value.reason


def copied(encoder, target, *, without=()):
    target.mkdir()
    for file in encoder.iterdir():
        if file.name not in without:
            (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_pickle_beside_or_instead_of_the_weights_is_never_opened(tmp_path, encoder):
    mark = tmp_path / "mark"
    version = copied(encoder, tmp_path / "version")
    (version / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    assert embed(version, ["cat"]).shape == (1, 32)
    (version / "model.safetensors").unlink()
    assert refusal(version) == "unsupported_format"
    assert not mark.exists()


def test_code_in_a_version_is_never_run(tmp_path, encoder):
    mark = tmp_path / "mark"
    version = copied(encoder, tmp_path / "version")
    config = json.loads((version / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
    (version / "config.json").write_text(json.dumps(config))
    (version / "mine.py").write_text(f"open({str(mark)!r}, 'w')")
    assert refusal(version) == "malformed_file"
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("tokenizer.json", None, "missing_tokenizer"),
        ("tokenizer.json", b"{}", "malformed_file"),
        ("config.json", b'{"model_type": "no such model"}', "malformed_file"),
        (
            "config.json",
            b'{"model_type": "t5", "d_model": 8, "num_layers": 1}',
            "unknown_architecture",
        ),
        ("model.safetensors", b"\x40" + b"\0" * 7 + b"{" * 64, "malformed_file"),
    ],
)
def test_a_broken_encoder_is_refused(tmp_path, encoder, name, content, code):
    version = copied(encoder, tmp_path / "version", without=[name])
    if content is not None:
        (version / name).write_bytes(content)
    assert refusal(version) == code


def test_weights_that_are_missing_are_not_made_up(tmp_path, encoder):
    version = copied(encoder, tmp_path / "version")
    state = load_file(version / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, version / "model.safetensors", metadata={"format": "pt"})
    assert refusal(version) == "weights_mismatch"


@pytest.mark.parametrize(
    "claim",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 1 << 20, "num_attention_heads": 1},
        {"vocab_size": 10**12},
        {"intermediate_size": 1 << 40},
    ],
)
def test_a_config_that_calls_for_more_than_the_weights_hold_is_not_built(tmp_path, encoder, claim):
    version = copied(encoder, tmp_path / "version")
    config = json.loads((version / "config.json").read_text(encoding="utf-8"))
    (version / "config.json").write_text(json.dumps({**config, **claim}), encoding="utf-8")
    assert refusal(version) == "weights_mismatch"


def test_pooling_is_what_the_authors_shipped(tmp_path):
    assert read_pooling(tmp_path) == Pooling("mean", normalize=True)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "modules.json").write_text('[{"type": "a.Transformer"}, {"type": "a.Pooling"}]')
    assert read_pooling(tmp_path) == Pooling("cls", normalize=False)


def test_the_longest_text_is_what_the_authors_shipped(tmp_path):
    assert longest_text(tmp_path, {}) == 256
    assert longest_text(tmp_path, {"max_position_embeddings": 8192}) == 512
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert longest_text(tmp_path, {"max_position_embeddings": 512}) == 128
