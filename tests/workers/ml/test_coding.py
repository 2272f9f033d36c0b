"""Shared weights and coded files: exactly what went in comes out, and nothing else does."""

import hashlib
import json
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file

from registry.errors import Invalid
from registry.formats import inspect
from registry.formats import myz as headers
from registry.formats.facts import Tensor
from tests.registry.formats import samples
from tests.workers.ml.little import (
    infer_recipe,
    read_state,
    run_job,
    train_recipe,
    write_cnn,
    write_encoder,
)
from workers.ml import myz
from workers.ml.compress import entropy, share
from workers.ml.formats import open_model

FEW = settings(max_examples=60, deadline=None)
BYTES = st.binary(max_size=3000).map(lambda data: np.frombuffer(data, np.uint8))
RUNS = st.lists(st.tuples(st.integers(0, 255), st.integers(1, 700)), max_size=12).map(
    lambda runs: np.concatenate(
        [np.zeros(0, np.uint8), *(np.full(length, value, np.uint8) for value, length in runs)]
    )
)


def recipe(*steps, **details):
    return {
        "kind": "compress",
        "model": "alice/tiny@1",
        "dataset": "alice/little@1",
        "steps": [{"method": step, **details.get(step, {})} for step in steps],
    }


def taken(call, *args):
    """Give what a decoder makes of it; None where it refuses as it should."""
    try:
        return call(*args)
    except Invalid as error:
        reason = error.reason
    assert reason == "malformed_file"
    return None


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("trained")
    return run_job(folder, train_recipe(epochs=3), dataset=digits).files


# --- entropy coding ------------------------------------------------------------------------------


@given(BYTES | RUNS)
@FEW
def test_huffman_gives_back_what_it_took(symbols):
    coded = entropy.huffman_encode(symbols)
    assert np.array_equal(entropy.huffman_decode(coded, len(symbols)), symbols)
    assert coded == entropy.huffman_encode(symbols)
    assert abs(len(coded) - entropy.huffman_size(np.bincount(symbols, minlength=256))) <= 4


@pytest.mark.parametrize("count", [1, 4095, 4096, 4097, 262_143, 262_144, 1_100_000])
def test_huffman_over_whole_and_broken_lanes(count):
    symbols = np.random.default_rng(count).geometric(0.3, count).clip(0, 255).astype(np.uint8)
    coded = entropy.huffman_encode(symbols)
    assert np.array_equal(entropy.huffman_decode(coded, count), symbols)
    shares = np.bincount(symbols) / count
    entropy_bits = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()
    assert len(coded) < count * (entropy_bits + 0.1) / 8 + 100


def test_codes_are_as_short_as_can_be_and_never_longer_than_fifteen_bits():
    lengths = entropy.code_lengths(np.array([5, 1, 1, 2, 0, 1]))
    assert lengths.tolist() in ([1, 3, 4, 2, 0, 4], [1, 4, 4, 2, 0, 3], [1, 3, 3, 3, 0, 3])
    fibonacci = np.array([1, 1])
    while len(fibonacci) < 40:
        fibonacci = np.append(fibonacci, fibonacci[-1] + fibonacci[-2])
    lengths = entropy.code_lengths(fibonacci)
    assert lengths.max() == 15
    assert (2.0 ** -lengths.astype(float)).sum() == 1


@given(st.binary(max_size=400), st.integers(0, 10_000), st.sampled_from(sorted(headers.CODERS)))
@settings(max_examples=300, deadline=None)
def test_noise_decodes_to_the_right_length_or_is_refused(data, size, coder):
    found = taken(entropy.decode, coder, data, size)
    assert found is None or len(found) == size


@given(RUNS, st.data())
@FEW
def test_damaged_huffman_is_refused_or_of_the_right_length(symbols, data):
    coded = bytearray(entropy.huffman_encode(symbols))
    if coded:
        coded[data.draw(st.integers(0, len(coded) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    count = len(symbols) + data.draw(st.sampled_from([-1, 0, 0, 1, 5000]))
    found = taken(entropy.huffman_decode, bytes(coded), max(0, count))
    assert found is None or len(found) == max(0, count)


@given(arrays.arrays(np.bool_, st.integers(0, 3000)), st.booleans())
@FEW
def test_places_survive_as_a_mask_and_as_gaps(marked, mostly_empty):
    if mostly_empty:
        marked = marked & (np.arange(len(marked)) % 701 == 0)
    places, elements = np.flatnonzero(marked), len(marked)
    mask, gaps = entropy.mask_of(places, elements), entropy.gaps_of(places)
    assert np.array_equal(entropy.places_of_mask(mask, elements, len(places)), places)
    assert np.array_equal(entropy.places_of_gaps(gaps, elements, len(places)), places)


@pytest.mark.parametrize(
    ("gaps", "elements", "count"),
    [([3], 3, 1), ([1, 1], 5, 1), ([1], 5, 2), ([1, 255], 500, 1), ([255, 255], 9, 0), ([], 9, 1)],
)
def test_gaps_that_lead_astray_are_refused(gaps, elements, count):
    with pytest.raises(Invalid):
        entropy.places_of_gaps(np.array(gaps, np.uint8), elements, count)


@pytest.mark.parametrize(
    ("mask", "elements", "count"), [([0b1000_0000], 9, 1), ([0b1], 7, 1), ([0xFF], 8, 7)]
)
def test_masks_that_mark_something_else_are_refused(mask, elements, count):
    with pytest.raises(Invalid):
        entropy.places_of_mask(np.array(mask, np.uint8), elements, count)


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("rotate", [False, True])
def test_planes_give_back_every_bit(width, rotate):
    data = np.random.default_rng(width).integers(0, 256, width * 500).astype(np.uint8)
    data[::width] = 7
    for coded in entropy.encode(data, width=width, rotate=rotate):
        assert np.array_equal(entropy.decode(coded.coder, coded.data, coded.size), data)


def test_the_exponents_of_floats_lie_together():
    weights = np.random.default_rng(0).normal(0, 0.02, 50_000).astype("<f4").view(np.uint8)
    ways = {coded.coder: len(coded.data) for coded in entropy.encode(weights, width=4, rotate=True)}
    assert ways["planes"] < 0.87 * len(weights) < ways["zstd"] < ways["raw"] == len(weights)


def test_a_frame_that_lies_about_its_length_is_refused_before_it_is_unpacked():
    (bomb,) = [
        coded.data for coded in entropy.encode(np.zeros(1 << 24, np.uint8)) if coded.coder == "zstd"
    ]
    assert len(bomb) < 2000
    for size in (0, 10, (1 << 24) - 1, (1 << 24) + 1):
        with pytest.raises(Invalid):
            entropy.decode("zstd", bomb, size)
    with pytest.raises(Invalid):
        entropy.decode("zstd", bomb + b"more", 1 << 24)


# --- shared values -------------------------------------------------------------------------------


@given(
    arrays.arrays(
        np.float32,
        st.integers(1, 400),
        elements=st.floats(-3, 3, width=32) | st.just(0.0),
    ),
    st.integers(1, 8),
)
@FEW
def test_a_shared_tensor_has_few_values_and_its_zeros(numbers, bits):
    weights = torch.from_numpy(numbers.copy())
    done = share.share_tensor(weights, bits=bits)
    changed = weights.numpy()
    assert len(np.unique(changed)) <= 2**bits
    assert done.values == len(np.unique(changed))
    assert np.array_equal(changed == 0, numbers == 0)
    assert done.mean_squared_error == pytest.approx(np.square(changed - numbers).mean(), abs=1e-6)
    again = torch.from_numpy(numbers.copy())
    share.share_tensor(again, bits=bits)
    assert torch.equal(weights, again)


def test_values_that_are_few_already_stay_as_they_are():
    weights = torch.tensor([[0.0, 1.5, -2.0], [1.5, 0.25, 0.0]])
    before = weights.clone()
    assert share.share_tensor(weights, bits=2).mean_squared_error == 0
    assert torch.equal(weights, before)


def test_k_means_finds_planted_values():
    drawn = np.random.default_rng(0)
    planted = np.array([-1.0, -0.2, 0.5, 2.0])
    numbers = planted[drawn.integers(0, 4, 5000)] + drawn.normal(0, 0.01, 5000)
    found = share.find_values(numbers, 4)
    assert found == pytest.approx(planted, abs=2e-3)
    evenly = np.square(
        numbers - np.linspace(-1, 2, 4)[share.assign(numbers, np.linspace(-1, 2, 4))]
    )
    assert np.square(numbers - found[share.assign(numbers, found)]).sum() < 0.1 * evenly.sum()


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(Invalid) as refused:
        share.share_tensor(torch.tensor([1.0, float("nan")]), bits=2)
    assert refused.value.reason == "not_finite"


def test_training_moves_shared_values_by_the_sum_of_their_gradients():
    layer = torch.nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 1, 1, -1], [-1, 1, 0, 0]]))
    sharing = share.Sharing(layer, smallest=8)
    layer.weight.grad = torch.tensor([[9.0, 1, 2, 3], [4, 5, 9, 9]])
    sharing.on_gradients()
    assert layer.weight.grad.tolist() == [[0, 8, 8, 7], [7, 8, 0, 0]]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    optimizer.step()
    sharing.after_step(1, 1)
    assert len(torch.unique(layer.weight)) == 3
    assert layer.weight[0, 0] == 0
    with pytest.raises(Invalid) as refused:
        share.Sharing(torch.nn.Linear(40, 40))
    assert refused.value.reason == "not_shared"


# --- the container -------------------------------------------------------------------------------

DTYPES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "BOOL": 1, "I64": 8, "I32": 4}


@st.composite
def tensors(draw):
    """Make tensors as pruning, sharing and quantizing leave them, and as they do not."""
    drawn = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for number in range(draw(st.integers(0, 4))):
        dtype = draw(st.sampled_from(sorted(DTYPES)))
        shape = tuple(draw(st.lists(st.integers(0, 40), max_size=3)))
        count, width = int(np.prod(shape, dtype=int)), DTYPES[dtype]
        match draw(st.sampled_from(["noise", "few", "fixed", "zeros"])):
            case "noise":
                data = drawn.integers(0, 256, count * width).astype(np.uint8)
            case "few":
                book = drawn.integers(0, 256, (draw(st.integers(1, 300)), width)).astype(np.uint8)
                data = book[drawn.integers(0, len(book), count)].reshape(-1)
            case "fixed" if dtype == "F32":
                whole = drawn.integers(-40_000, 40_000, count) >> draw(st.integers(0, 12))
                data = (whole / 2.0 ** draw(st.integers(-3, 12))).astype("<f4").view(np.uint8)
            case _:
                data = np.zeros(count * width, np.uint8)
        kept = drawn.random(count) < draw(st.sampled_from([0.01, 0.3, 1.0]))
        data = (data.reshape(count, width) * kept[:, None]).reshape(-1).astype(np.uint8)
        found.append(myz.Given(Tensor(f"t{number}.ü", dtype, shape), data))
    return found


@given(tensors())
@settings(max_examples=120, deadline=None)
def test_every_tensor_comes_back_bit_for_bit(tmp_path_factory, given_tensors):
    target = tmp_path_factory.mktemp("coded") / "model.myz"
    written = myz.write(given_tensors, target, metadata={"format": "pt"})
    assert written.size == target.stat().st_size
    assert written.decoded_bytes == sum(len(one.data) for one in given_tensors)
    back = [(entry.tensor, data.tobytes()) for entry, data in myz.read_tensors(target)]
    assert back == [(one.tensor, one.data.tobytes()) for one in given_tensors]
    data = target.read_bytes()
    facts = inspect("model.myz", len(data), lambda start, end: data[start:end])
    assert facts.parameters_count == sum(one.tensor.elements_count for one in given_tensors)
    assert [item.shape for item in facts.tensors.items] == [t.tensor.shape for t in given_tensors]


DRAWN = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("numbers", "places", "values"),
    [
        (DRAWN.integers(-9000, 9000, 5000) / 64, {"all"}, "scaled16"),
        (DRAWN.integers(-127, 128, 5000) / 64, {"all"}, "scaled8"),
        (DRAWN.choice([0.1, 0.7, -3.3], 3000), {"all"}, "codebook"),
        (DRAWN.normal(0, 1, 4000), {"all"}, "plain"),
        (DRAWN.normal(0, 1, 4000) * (DRAWN.random(4000) < 0.02), {"gaps", "bitmask"}, "plain"),
        (DRAWN.choice([0, 0.1, 0.7], 4000, p=[0.6, 0.2, 0.2]), {"all", "bitmask"}, "codebook"),
        (np.full(900, -0.0), {"all"}, "plain"),
    ],
)
def test_the_form_fits_the_numbers(numbers, places, values):
    data = numbers.astype("<f4").view(np.uint8)
    form = myz.code_tensor(Tensor("w", "F32", numbers.shape), data)
    assert form.places in places
    assert form.values == values


@pytest.mark.parametrize("steps", [127, 64, 7])
@pytest.mark.parametrize("sparse", [False, True])
def test_rows_that_were_rounded_apart_have_a_scale_each(tmp_path, steps, sparse):
    drawn = np.random.default_rng(steps)
    whole = drawn.integers(-steps, steps + 1, (40, 64))
    whole[:, 0] = steps  # the largest of each row is what its scale comes from
    if sparse:
        whole *= drawn.random((40, 64)) < 0.2
        whole[:, 0] = steps
        whole[3] = 0
    largest = drawn.lognormal(0, 1, (40, 1)).astype("<f4")
    scales = (largest / np.float32(steps)).astype("<f4")
    numbers = (whole.astype("<f4") * scales).astype("<f4")
    tensor = Tensor("w", "F32", (40, 64))
    form = myz.code_tensor(tensor, numbers.reshape(-1).view(np.uint8))
    assert form.values == "scaled8"
    assert form.places in ({"gaps", "bitmask"} if sparse else {"all"})
    assert form.cost < numbers.nbytes / 3
    save_file({"w": torch.from_numpy(numbers)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    myz.pack_folder(tmp_path)
    assert myz.unpack(tmp_path / "model.myz", tmp_path).read_bytes() == before


def test_numbers_of_six_bits_are_refused(tmp_path):
    raw = samples.safetensors({"w": ("F6_E2M3", [8], bytes(6))})
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(Invalid, match="F6_E2M3") as refused:
        myz.pack(tmp_path / "model.safetensors", tmp_path / "model.myz")
    assert refused.value.reason == "unsupported_dtype"


def test_a_file_of_the_first_writer_is_still_read(tmp_path):
    old = Path(__file__).parents[2] / "golden" / "first.myz"
    again = myz.unpack(old, tmp_path).read_bytes()
    # The file that went in, when the format was new.
    assert hashlib.sha256(again).hexdigest() == (
        "78a9fd4d681b3014c9243b0193bf7349cc32c21c5b092733507de4fe727e9f10"
    )


def test_numbers_that_are_none_at_the_end_of_a_large_tensor_survive():
    numbers = np.zeros(70_000, "<f4")
    numbers[:66_000] = 0.5
    numbers[-3:] = np.nan, np.inf, -0.0
    data = numbers.view(np.uint8)
    form = myz.code_tensor(Tensor("w", "F32", numbers.shape), data)
    assert form.values in {"codebook", "plain"}
    assert form.cost < 10_000


def test_a_state_and_a_graph_come_back_as_the_same_files(tmp_path, trained, digits):
    state = trained / "model.safetensors"
    graph = run_job(tmp_path / "int8", recipe("quantize_dynamic"), model=trained, dataset=digits)
    for source in (state, graph.files / "model.onnx"):
        folder = tmp_path / source.suffix
        folder.mkdir()
        myz.pack(source, folder / "model.myz")
        first = (folder / "model.myz").read_bytes()
        assert myz.unpack(folder / "model.myz", folder).read_bytes() == source.read_bytes()
        myz.pack(source, folder / "model.myz")
        assert (folder / "model.myz").read_bytes() == first


def test_a_sparse_shared_state_is_coded_near_its_entropy(tmp_path):
    drawn = np.random.default_rng(0)
    weights = drawn.normal(0, 1, 200_000)
    weights[np.abs(weights) < np.quantile(np.abs(weights), 0.95)] = 0
    tensor = torch.from_numpy(weights.astype(np.float32)).reshape(400, 500)
    share.share_tensor(tensor, bits=4)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    written = myz.pack(tmp_path / "model.safetensors", tmp_path / "model.myz")
    places = -(0.05 * np.log2(0.05) + 0.95 * np.log2(0.95)) * 200_000 / 8
    shares = torch.unique(tensor[tensor != 0], return_counts=True)[1].numpy() / 10_000
    least = places - (shares * np.log2(shares)).sum() * 10_000 / 8
    assert least < written.size < 1.05 * least + 300
    assert 800_000 / written.size > 60


def test_a_graph_with_weights_elsewhere_is_refused(tmp_path):
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, [3])],
            [onnx.helper.make_tensor_value_info("y", 1, [3])],
            [onnx.numpy_helper.from_array(np.zeros(3, np.float32), "w")],
        )
    )
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.bin"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(Invalid) as refused:
        myz.pack(tmp_path / "model.onnx", tmp_path / "model.myz")
    assert refused.value.reason == "unsupported_format"


# --- files that lie ------------------------------------------------------------------------------


def refused_unpacking(tmp_path, data):
    (tmp_path / "model.myz").write_bytes(data)
    (tmp_path / "config.json").write_text('{"architecture": {"name": "digits_cnn"}}')
    with pytest.raises(Invalid) as refused:
        open_model(tmp_path)
    return refused.value.detail


def test_a_tensor_that_is_not_what_its_digest_says_is_refused(tmp_path):
    assert "'w' is damaged" in refused_unpacking(tmp_path, samples.myz(b"abcd"))


@pytest.mark.parametrize(
    ("changes", "body"),
    [
        ({"streams": {"values": ["huffman", 4, 4]}}, b"abcd"),
        ({"streams": {"values": ["zstd", 4, 4]}}, b"abcd"),
        ({"streams": {"values": ["planes", 4, 4]}}, b"\x02abc"),
        ({"values": "codebook", "streams": {"codebook": ["raw", 1, 1], "values": ["raw", 4, 4]}},
         b"a\0\0\1\0"),
        ({"places": "bitmask", "count": 2,
          "streams": {"mask": ["raw", 1, 1], "values": ["raw", 2, 2]}}, b"\x0fab"),
        ({"places": "gaps", "count": 2,
          "streams": {"gaps": ["raw", 2, 2], "values": ["raw", 2, 2]}}, b"\2\2ab"),
    ],
)  # fmt: skip
def test_a_stream_that_is_not_what_it_says_is_refused(tmp_path, changes, body):
    assert "'w' is damaged" in refused_unpacking(tmp_path, samples.myz(body, **changes))


def test_more_than_the_disk_holds_is_refused_before_it_is_written(tmp_path, monkeypatch):
    full = SimpleNamespace(free=3)
    monkeypatch.setattr(myz.shutil, "disk_usage", lambda path: full)
    assert "unpacks to 4 bytes, and 3 are free" in refused_unpacking(tmp_path, samples.myz(b"abcd"))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_refused_or_gives_back_the_same(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    drawn = np.random.default_rng(0)
    weights = np.where(drawn.random(800) < 0.1, drawn.integers(1, 9, 800), 0).astype("<f4")
    one = myz.Given(Tensor("w", "F32", (800,)), weights.view(np.uint8))
    myz.write([one], folder / "model.myz", metadata={})
    damaged = bytearray((folder / "model.myz").read_bytes())
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    (folder / "model.myz").write_bytes(damaged)
    read = taken(lambda: list(myz.read_tensors(folder / "model.myz")))
    assert read is None or [found.tobytes() for _, found in read] == [weights.tobytes()]


def test_a_graph_whose_header_tells_of_other_tensors_is_refused(tmp_path, trained, digits):
    exported = run_job(tmp_path / "job", recipe("export_onnx"), model=trained, dataset=digits)
    myz.pack(exported.files / "model.onnx", tmp_path / "model.myz")
    whole = (tmp_path / "model.myz").read_bytes()
    coded, _ = struct.unpack_from("<2I", whole, 12)
    header = json.loads(zlib.decompress(whole[20 : 20 + coded]))
    header["tensors"][0]["name"] = "another"
    lying = samples.myz_file(header, whole[20 + coded :])
    assert "do not agree on their tensors" in refused_unpacking(tmp_path, lying)


# --- jobs ----------------------------------------------------------------------------------------


def test_a_coded_version_runs_and_answers_as_the_one_that_was_coded(tmp_path, trained, digits):
    steps = {"cluster": {"bits": 3}}
    plain = run_job(tmp_path / "plain", recipe("cluster", **steps), model=trained, dataset=digits)
    coded = run_job(
        tmp_path / "coded", recipe("cluster", "code", **steps), model=trained, dataset=digits
    )
    assert sorted(file.name for file in coded.files.iterdir()) == [
        "README.md",
        "config.json",
        "model.myz",
    ]
    state = read_state(plain.files / "model.safetensors")
    assert len(torch.unique(state["hidden.weight"])) == 8
    unpacked = open_model(coded.files)
    assert unpacked.weights.read_bytes() == (plain.files / "model.safetensors").read_bytes()
    stored = coded.metric("stored_bytes")
    assert stored["value"] == (coded.files / "model.myz").stat().st_size
    assert stored["details"]["file"] == "model.myz"
    assert coded.metric("parameters")["value"] == plain.metric("parameters")["value"]
    assert coded.metric("accuracy")["value"] == plain.metric("accuracy")["value"]
    notes = coded.report["summary"]["steps"]
    assert notes[0]["values"] == 8
    assert notes[1]["size"] == stored["value"]
    answers = [
        run_job(tmp_path / f"infer-{name}", infer_recipe(), model=result.files, dataset=digits)
        for name, result in (("plain", plain), ("coded", coded))
    ]
    first, second = ((one.files / "predictions.jsonl").read_bytes() for one in answers)
    assert first == second


def test_a_pruned_and_shared_version_is_trained_and_stays_small(tmp_path, trained, digits):
    steps = {
        "prune_magnitude": {"sparsity": 0.8, "epochs": 0},
        "cluster": {"bits": 4, "epochs": 2, "learning_rate": 0.001, "batch_size": 16},
    }
    names = ("prune_magnitude", "cluster", "code")
    first = run_job(tmp_path / "one", recipe(*names, **steps), model=trained, dataset=digits)
    folder = open_model(first.files)
    weights = read_state(folder.weights)["hidden.weight"]
    assert len(torch.unique(weights)) <= 16
    assert (weights == 0).float().mean() > 0.7
    notes = first.report["summary"]["steps"]
    assert notes[1]["fine_tuning"]["epochs"] == 2
    assert "accuracy_of_dense_control" in {found["metric"] for found in first.report["metrics"]}
    assert notes[2]["decoded_bytes"] / notes[2]["size"] > 7
    again = run_job(tmp_path / "two", recipe(*names, **steps), model=trained, dataset=digits)
    coded = [(one.files / "model.myz").read_bytes() for one in (first, again)]
    assert coded[0] == coded[1]


def test_a_coded_version_is_compressed_and_trained_further(tmp_path, trained, digits):
    coded = run_job(tmp_path / "coded", recipe("code"), model=trained, dataset=digits)
    twice = run_job(
        tmp_path / "int8", recipe("quantize_dynamic", "code"), model=coded.files, dataset=digits
    )
    parent = twice.metric("stored_bytes")["details"]["parent"]
    assert parent == {"value": (coded.files / "model.myz").stat().st_size, "file": "model.myz"}
    folder = open_model(twice.files)
    assert folder.is_onnx
    assert twice.metric("accuracy")["value"] == pytest.approx(
        coded.metric("accuracy")["value"], abs=0.1
    )
    again = {**train_recipe(epochs=1), "model": "alice/tiny@1"}
    del again["architecture"]
    further = run_job(tmp_path / "train", again, model=coded.files, dataset=digits)
    assert (further.files / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_coded_encoder_gives_the_same_vectors(tmp_path):
    model = write_encoder(tmp_path / "model")
    plan = recipe("code")
    del plan["dataset"]
    result = run_job(tmp_path / "job", plan, model=model)
    assert (result.files / "model.myz").is_file()
    assert result.metric("cosine_to_parent")["value"] == pytest.approx(1, abs=1e-6)


def test_what_was_unpacked_goes_with_the_model(tmp_path, trained, digits):
    coded = run_job(tmp_path / "coded", recipe("code"), model=trained, dataset=digits)
    folder = open_model(coded.files)
    path = folder.path
    assert path != coded.files
    assert (path / "config.json").is_file()
    del folder
    assert not path.exists()


def test_training_what_a_graph_shares_is_refused(tmp_path, trained, digits):
    exported = run_job(tmp_path / "onnx", recipe("export_onnx"), model=trained, dataset=digits)
    plan = recipe("cluster", cluster={"epochs": 2})
    with pytest.raises(Invalid) as refused:
        run_job(tmp_path / "job", plan, model=exported.files, dataset=digits)
    assert refused.value.reason == "needs_module"


def test_a_model_without_a_layer_to_share_is_refused(tmp_path, digits):
    plan = recipe("cluster", cluster={"smallest": 1_000_000})
    with pytest.raises(Invalid) as refused:
        run_job(tmp_path / "job", plan, model=write_cnn(tmp_path / "model"), dataset=digits)
    assert refused.value.reason == "nothing_to_share"
