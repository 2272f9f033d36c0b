"""The named architectures: what depends on the seed, and what padding must not change."""

import pytest
import torch
from torch import nn

from registry import recipes
from registry.errors import Invalid
from workers.ml.architectures import build, read_parameters
from workers.ml.vocabulary import PADDING

TEXT = {"name": "text_classifier", "vocabulary_size": 50, "embedding_size": 6, "hidden_size": 5}


def text_model(**changes):
    return build(recipes.TextClassifier(**{**TEXT, **changes}), classes=4).eval()


def tokens():
    drawn = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(1, 50, (6, 9), generator=drawn)
    for row, length in enumerate([9, 1, 4, 7, 2, 9]):
        tokens_BL[row, length:] = PADDING
    return tokens_BL


@pytest.mark.parametrize("name", ["digits_cnn", "text_classifier"])
def test_first_weights_depend_on_the_seed_alone(name):
    parameters = read_parameters({"name": name})
    torch.manual_seed(1)
    first = build(parameters, classes=3, seed=7).state_dict()
    torch.manual_seed(2)
    second = build(parameters, classes=3, seed=7).state_dict()
    other = build(parameters, classes=3, seed=8).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    build(read_parameters({"name": "digits_cnn"}), classes=3, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_classifier_computes_what_a_packed_sequence_would(layers, bidirectional):
    model = text_model(layers=layers, bidirectional=bidirectional)
    lstm = nn.LSTM(6, 5, layers, batch_first=True, bidirectional=bidirectional)
    with torch.no_grad():
        for layer in range(layers):
            copied = [(model.forwards[layer], "")]
            if bidirectional:
                copied.append((model.backwards[layer], "_reverse"))
            for source, suffix in copied:
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(lstm, f"{kind}_l{layer}{suffix}").copy_(getattr(source, f"{kind}_l0"))
    tokens_BL = tokens()
    lengths = (tokens_BL != PADDING).sum(1)
    packed = nn.utils.rnn.pack_padded_sequence(
        model.embedding(tokens_BL), lengths, batch_first=True, enforce_sorted=False
    )
    _, (states, _) = lstm(packed)
    last = torch.cat([states[-2], states[-1]], dim=1) if bidirectional else states[-1]
    torch.testing.assert_close(model(tokens_BL), model.classes(last), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_and_neighbours_do_not_change_an_answer(bidirectional):
    model = text_model(bidirectional=bidirectional)
    tokens_BL = tokens()
    wide_BL = nn.functional.pad(tokens_BL, (0, 5), value=PADDING)
    torch.testing.assert_close(model(tokens_BL), model(wide_BL))
    torch.testing.assert_close(model(tokens_BL)[1:2], model(tokens_BL[1:2, :1]))


def test_a_text_of_padding_alone_still_has_an_answer():
    assert torch.isfinite(text_model()(torch.zeros(2, 4, dtype=torch.int64))).all()


def test_padding_stays_zero_while_training():
    model = text_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    nn.functional.cross_entropy(model(tokens()), torch.zeros(6, dtype=torch.int64)).backward()
    optimizer.step()
    assert not model.embedding.weight[PADDING].any()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"name": "resnet"}, "unknown_architecture"),
        ({}, "unknown_architecture"),
        ({"name": "digits_cnn", "channels": 10**9}, "bad_config"),
        ({"name": "digits_cnn", "loader": "os.system"}, "bad_config"),
        ("digits_cnn", "bad_config"),
    ],
)
def test_an_architecture_is_refused_by_name(data, code):
    with pytest.raises(Invalid) as caught:
        read_parameters(data)
    assert caught.value.reason == code


@pytest.mark.parametrize("classes", [0, 1, 10_001])
def test_classes_are_bounded(classes):
    with pytest.raises(Invalid) as caught:
        build(read_parameters({"name": "digits_cnn"}), classes=classes)
    assert caught.value.reason == "bad_labels"


@pytest.mark.parametrize(
    "sizes",
    [
        {"name": "digits_cnn", "channels": 3, "hidden_size": 7},
        TEXT,
        {**TEXT, "layers": 2, "bidirectional": True},
    ],
)
def test_parameters_are_counted_without_building(sizes):
    parameters = read_parameters(sizes)
    built = sum(weight.numel() for weight in build(parameters, classes=4).parameters())
    assert recipes.count_parameters(parameters, classes=4) == built
