"""The same jobs on a GPU; skipped where there is none."""

import pytest
import torch

from tests.workers.ml.little import (
    CNN,
    LSTM,
    compress_recipe,
    equal,
    infer_recipe,
    read_state,
    run_job,
    train_recipe,
    write_digits,
    write_encoder,
    write_texts,
)
from tests.workers.ml.test_training import StopAfter
from workers.ml.compress.pack import pack_linear
from workers.ml.interrupt import Interrupted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # cuBLAS and cuDNN say so where an operation has no deterministic form.
    pytest.mark.filterwarnings("ignore:.*deterministic.*:UserWarning"),
]


@pytest.fixture
def digits(tmp_path):
    return write_digits(tmp_path / "digits")


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "texts")


@pytest.mark.parametrize("precision", ["float32", "mixed"])
@pytest.mark.parametrize("architecture", [CNN, LSTM], ids=["cnn", "lstm"])
def test_training_learns_and_resumes(tmp_path, digits, texts, architecture, precision):
    dataset = digits if architecture is CNN else texts
    recipe = train_recipe({**architecture, "dropout": 0.2}, epochs=10, precision=precision)
    whole = run_job(tmp_path / "whole", recipe, dataset=dataset, device="cuda")
    assert whole.metric("accuracy")["value"] > 0.85
    assert whole.metric("accuracy")["device"] == "cuda"
    assert whole.report["environment"]["gpu"]
    with pytest.raises(Interrupted):
        run_job(
            tmp_path / "broken", recipe, dataset=dataset, device="cuda", interrupt=StopAfter(30)
        )
    resumed = run_job(tmp_path / "broken", recipe, dataset=dataset, device="cuda")
    first, second = (read_state(result.files / "model.safetensors") for result in (whole, resumed))
    assert equal(first, second) or all(
        torch.allclose(first[name], second[name], rtol=1e-2, atol=1e-3) for name in first
    )


def test_a_model_trained_there_runs_here(tmp_path, digits):
    trained = run_job(tmp_path / "train", train_recipe(), dataset=digits, device="cuda").files
    said = [
        run_job(tmp_path / device, infer_recipe(), model=trained, dataset=digits, device=device)
        for device in ("cuda", "cpu")
    ]
    assert said[0].metric("accuracy")["value"] == said[1].metric("accuracy")["value"]
    small = run_job(
        tmp_path / "int8", compress_recipe(), model=trained, dataset=digits, device="cuda"
    )
    assert small.metric("agreement_with_parent")["value"] > 0.9


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_layers_run_there_and_here(tmp_path, digits, bits):
    """The kernel of 4 bits and weights that are unpacked say the same, but for its bfloat16."""
    trained = run_job(tmp_path / "train", train_recipe(epochs=6), dataset=digits).files
    recipe = compress_recipe(method="pack_linear", bits=bits, group_size=32)
    small = run_job(tmp_path / "pack", recipe, model=trained, dataset=digits, device="cuda")
    (told,) = small.report["summary"]["steps"]
    assert {layer["bits"] for layer in told["layers"]} == {bits}
    assert small.metric("agreement_with_parent")["value"] > 0.9
    said = [
        run_job(tmp_path / device, infer_recipe(), model=small.files, dataset=digits, device=device)
        for device in ("cuda", "cpu")
    ]
    apart = said[0].metric("accuracy")["value"] - said[1].metric("accuracy")["value"]
    assert abs(apart) <= 0.05


@pytest.mark.parametrize(("wide", "deep"), [(24, 64), (13, 1100)])
def test_the_kernel_of_four_bits_multiplies_by_what_is_stored(wide, deep):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(deep - deep % 32, wide))
    with torch.no_grad():
        module[0].weight.copy_(torch.randn(module[0].weight.shape, generator=generator))
    pack_linear(module, bits=4, group=32)
    x = torch.randn(5, module[0].in_features, generator=generator)
    expected = module(x)
    found = module.cuda()(x.cuda()).cpu()
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))


def test_an_encoder_runs_there(tmp_path, texts):
    encoder = write_encoder(tmp_path / "encoder")
    result = run_job(tmp_path / "job", infer_recipe(), model=encoder, dataset=texts, device="cuda")
    assert result.metric("throughput")["details"]["engine"] == "torch/cuda"
