"""Reading datasets: bounded, streaming, and plain about what is wrong."""

import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from registry.errors import Invalid, NotFound
from tests.workers.ml.little import write_digits, write_texts
from workers.ml import data
from workers.ml.data import (
    Labels,
    divide,
    find_labels,
    load_split,
    open_dataset,
    read_classes,
)
from workers.ml.texts import clean_text


def refusal(call, *args, **kwargs):
    with pytest.raises((Invalid, NotFound)) as caught:
        call(*args, **kwargs)
    return caught.value.reason, caught.value.detail


def drain(split, columns, size, **kwargs):
    return list(split.batches(columns, size, **kwargs))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_text_splits_stream_from_any_row(tmp_path, suffix):
    split = open_dataset(write_texts(tmp_path, suffix=suffix), "a/b@1").split("test")
    assert split.columns() == ["text", "label"]
    assert split.count() == 30
    whole = drain(split, ["label"], 7)
    assert [len(rows["label"]) for rows in whole] == [7, 7, 7, 7, 2]
    rest = [value for rows in drain(split, ["label"], 7, start=13) for value in rows["label"]]
    assert rest == [value for rows in whole for value in rows["label"]][13:]


def test_tensor_splits_stream_from_any_row(tmp_path):
    split = open_dataset(write_digits(tmp_path), "a/b@1").split("test")
    assert split.columns() == ["image", "label"]
    assert split.count() == 40
    (rows,) = drain(split, ["label"], 100, start=38)
    assert rows["label"].tolist() == [2, 3]


def test_splits_are_found_in_a_data_folder_too_and_links_out_are_not(tmp_path):
    write_texts(tmp_path / "set" / "data")
    write_texts(tmp_path / "elsewhere")
    (tmp_path / "set" / "secret.csv").symlink_to(tmp_path / "elsewhere" / "train.csv")
    assert set(open_dataset(tmp_path / "set", "a/b@1").splits) == {"train", "test"}


def test_a_missing_split_names_the_ones_there_are(tmp_path):
    code, detail = refusal(open_dataset(write_texts(tmp_path), "a/b@1").split, "dev")
    assert code == "missing_split"
    assert "it has test, train" in detail


@pytest.mark.parametrize("write", [write_digits, write_texts])
def test_a_missing_column_names_the_ones_present(tmp_path, write):
    split = open_dataset(write(tmp_path), "a/b@1").split("train")
    code, detail = refusal(drain, split, ["target"], 8)
    assert code == "missing_column"
    assert "no column 'target'" in detail
    assert "'label'" in detail


def test_a_dataset_without_readable_files_is_refused(tmp_path):
    (tmp_path / "train.pkl").write_bytes(b"\x80\x04.")
    assert refusal(open_dataset, tmp_path, "a/b@1")[0] == "unsupported_format"


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("train.csv", b"", "bad_dataset"),
        ("train.csv", b'text,label\n"' + b"x" * 1_100_000, "malformed_file"),
        ("train.jsonl", b'{"text": "a"}\n[1]\n', "malformed_file"),
        ("train.jsonl", b'{"text": "a"}\n{"text": \n', "malformed_file"),
        ("train.jsonl", b'{"text": ' + b"[" * 100_000, "malformed_file"),
        ("train.safetensors", b"\xff" * 64, "malformed_file"),
        ("train.safetensors", (10**9).to_bytes(8, "little") + b"{}", "malformed_file"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, name, content, code):
    (tmp_path / name).write_bytes(content)
    split = open_dataset(tmp_path, "a/b@1").split("train")
    found, detail = refusal(lambda: (split.columns(), drain(split, ["text"], 8)))
    assert found == code
    assert name in detail


def test_a_header_that_lies_about_its_size_is_refused(tmp_path):
    header = json.dumps(
        {"image": {"dtype": "U8", "shape": [10**6, 28, 28], "data_offsets": [0, 784]}}
    ).encode()
    (tmp_path / "train.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"\0" * 784
    )
    split = open_dataset(tmp_path, "a/b@1").split("train")
    assert refusal(split.count)[0] == "malformed_file"


def test_columns_must_agree_on_the_number_of_rows(tmp_path):
    save_file(
        {"image": np.zeros((3, 2), np.uint8), "label": np.zeros(2, np.int64)},
        tmp_path / "train.safetensors",
    )
    split = open_dataset(tmp_path, "a/b@1").split("train")
    assert refusal(split.count) == (
        "bad_dataset",
        "Every tensor in train.safetensors must have the same number of rows; found [2, 3].",
    )


def test_rows_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_ROWS", 20)
    assert refusal(open_dataset(write_texts(tmp_path), "a/b@1").split("train").count)[0] == (
        "too_large"
    )


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_LOADED_BYTES", 1000)
    digits = open_dataset(write_digits(tmp_path), "a/b@1")
    code, _ = refusal(
        load_split,
        read_classes(digits, digits.split("train"), "label", Labels(["0", "1", "2", "3"])),
        input_column="image",
        images=True,
    )
    assert code == "too_large"


def test_labels_come_from_the_description_or_from_the_values(tmp_path):
    digits = open_dataset(write_digits(tmp_path / "digits"), "a/b@1")
    assert find_labels(digits, digits.split("train"), "label").names == ["0", "1", "2", "3"]
    (tmp_path / "digits" / "dataset.json").unlink()
    plain = open_dataset(tmp_path / "digits", "a/b@1")
    assert find_labels(plain, plain.split("train"), "label").names == ["0", "1", "2", "3"]
    texts = open_dataset(write_texts(tmp_path / "texts"), "a/b@1")
    assert find_labels(texts, texts.split("train"), "label").names == (
        ["animals", "numbers", "weather"]
    )


def test_a_column_of_everything_is_no_column_of_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MAX_CLASSES", 10)
    texts = open_dataset(write_texts(tmp_path), "a/b@1")
    assert refusal(find_labels, texts, texts.split("train"), "text")[0] == "bad_labels"


def test_an_unknown_class_names_its_row(tmp_path):
    dataset = open_dataset(write_texts(tmp_path), "a/b@1")
    classes = read_classes(dataset, dataset.split("test"), "label", Labels(["animals"]))
    code, detail = refusal(classes.numbers, ["animals", "", "plants"], first_row=4)
    assert code == "bad_label"
    assert detail.startswith("Row 7 of test.csv: 'plants' is no class; the classes are 'animals'")


def write_labels(folder, splits, names=None):
    """Write a dataset whose splits are their labels alone, as numbers or as text."""
    folder.mkdir(exist_ok=True)
    for name, values in splits.items():
        if isinstance(values, str):
            rows = "".join(f"x,{value}\n" for value in values.split(" "))
            (folder / f"{name}.csv").write_text("text,label\n" + rows)
        else:
            save_file({"label": np.array(values)}, folder / f"{name}.safetensors")
    if names is not None:
        (folder / "dataset.json").write_text(json.dumps({"labels": names}))
    return open_dataset(folder, "a/b@1")


def classes_of(dataset, names=None, split="test"):
    """Give the classes of the rows of a split, for a model of these classes or a new one."""
    chosen = dataset.split(split)
    labels = Labels(names) if names else find_labels(dataset, dataset.split("train"), "label")
    (rows,) = drain(chosen, ["label"], 100)
    return read_classes(dataset, chosen, "label", labels).numbers(rows["label"]).tolist()


FIVE = ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        ([1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
        ([1, 4], [0, 3]),
        ("0 1 2 3 4", [0, 1, 2, 3, 4]),
        ("1 2 3 4 5", [0, 1, 2, 3, 4]),
        ("1.0 5.0 ", [0, 4, -1]),
    ],
)
def test_a_column_holds_names_or_numbers_and_never_both(tmp_path, values, expected):
    assert classes_of(write_labels(tmp_path, {"test": values}, FIVE), FIVE) == expected


def test_where_a_split_may_be_read_both_ways_the_other_splits_decide(tmp_path):
    splits = {"test": [1, 2], "train": [0, 1, 2, 3, 4]}
    assert classes_of(write_labels(tmp_path / "0", splits, FIVE)) == [1, 2]
    splits = {"test": [1, 2], "train": [1, 2, 3, 4, 5]}
    assert classes_of(write_labels(tmp_path / "1", splits, FIVE)) == [0, 1]


@pytest.mark.parametrize(
    ("values", "names", "odd"),
    [
        ([0, 1, 2, 3, 4, 5], FIVE, "'0'"),
        ("cat 1", ["cat", "dog"], "'1'"),
        ([0, 2], ["cat", "dog"], "'2'"),
    ],
)
def test_a_column_of_both_is_refused(tmp_path, values, names, odd):
    dataset = write_labels(tmp_path, {"test": values}, names)
    code, detail = refusal(classes_of, dataset, names)
    assert code == "bad_label"
    assert f"{odd} is no class" in detail
    assert "or else their numbers from 0 on" in detail


def test_numbers_that_pandas_wrote_as_fractions_are_the_same_classes(tmp_path):
    dataset = write_labels(tmp_path, {"train": "1.0 2.0  3.0", "test": "1 2"})
    assert classes_of(dataset) == [1, 2]
    assert classes_of(dataset, split="train") == [1, 2, -1, 3]
    assert classes_of(dataset, ["1.0", "2.0", "3.0"]) == [0, 1]
    grades = write_labels(tmp_path / "grades", {"train": "1.0 1.5 2.0"})
    assert find_labels(grades, grades.split("train"), "label").names == ["1.0", "1.5", "2.0"]


def test_numbers_count_the_classes_of_their_own_dataset(tmp_path):
    dataset = write_labels(tmp_path, {"test": [0, 1, 1]}, ["dog", "cat"])
    assert classes_of(dataset, ["cat", "dog"]) == [1, 0, 0]
    assert classes_of(dataset, ["bird", "cat", "dog"]) == [2, 1, 1]
    # Other names altogether, as many: nothing but the order can be meant.
    assert classes_of(dataset, ["LABEL_0", "LABEL_1"]) == [0, 1, 1]
    code, detail = refusal(classes_of, dataset, ["bird", "cat"])
    assert code == "bad_label"
    assert detail.startswith("Row 1 of test.safetensors: 'dog' is no class")
    assert refusal(classes_of, dataset, ["a", "b", "c"])[0] == "bad_label"


def test_images_of_another_shape_are_refused(tmp_path):
    save_file(
        {"image": np.zeros((2, 8, 8), np.uint8), "label": np.zeros(2, np.int64)},
        tmp_path / "train.safetensors",
    )
    split = open_dataset(tmp_path, "a/b@1").split("train")
    (rows,) = drain(split, ["image"], 8)
    assert refusal(data.check_images, rows["image"], split, "image") == (
        "bad_column",
        "Column 'image' of train.safetensors must be uint8 [rows, 28, 28], not uint8 [2, 8, 8].",
    )


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 1, 28, 28), (2, 28, 28, 1), (2, 784)])
def test_one_channel_may_have_an_axis_or_not(tmp_path, shape):
    split = open_dataset(write_digits(tmp_path), "a/b@1").split("train")
    images = data.check_images(np.zeros(shape, np.uint8), split, "image")
    assert images.shape == (2, 28, 28)


def test_rows_without_text_or_class_are_left_out(tmp_path):
    (tmp_path / "train.csv").write_text(
        '﻿text,label\n  A \t cat ,x\n,x\n"  ",y\nB,\n\nC\nD,y,extra\n', encoding="utf-8"
    )
    dataset = open_dataset(tmp_path, "a/b@1")
    labels = find_labels(dataset, dataset.split("train"), "label")
    classes = read_classes(dataset, dataset.split("train"), "label", labels)
    loaded = load_split(classes, input_column="text", images=False)
    assert loaded.inputs == ["A cat", "D"]
    assert loaded.labels.tolist() == [0, 1]
    assert loaded.dropped == 4


def test_a_split_without_a_usable_row_is_refused(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n,\n")
    dataset = open_dataset(tmp_path, "a/b@1")
    classes = read_classes(dataset, dataset.split("train"), "label", Labels(["a"]))
    code, _ = refusal(load_split, classes, input_column="text", images=False)
    assert code == "empty_split"


def test_text_is_normalised():
    assert clean_text(" e\u0301a\x00\n b ") == "\u00e9a b"
    assert clean_text(None) == ""


def test_the_same_seed_holds_out_the_same_rows():
    train, validation = divide(100, 0.1, seed=3)
    again, _ = divide(100, 0.1, seed=3)
    assert len(validation) == 10
    assert sorted([*train, *validation]) == list(range(100))
    assert (train == again).all()
    assert (divide(100, 0.1, seed=4)[0] != train).any()
    assert len(divide(1, 0.5, seed=0)[0]) == 1


def test_half_characters_do_not_get_in(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text('{"te\\ud800xt": "a\\udfffb", "odd": ["\\ud800"]}\n', encoding="utf-8")
    (rows,) = drain(data.TextSplit(file), ["te?xt", "odd"], 8)
    assert rows == {"te?xt": ["a?b"], "odd": ['["?"]']}


def test_parquet_splits_stream_from_any_row(tmp_path):
    rows = {
        "text": [f"row {at}" for at in range(20)],
        "label": list(range(20)),
        "tags": [["a", "b"], None] * 10,
        "price": [Decimal("1.50")] * 20,
    }
    pq.write_table(pa.table(rows), tmp_path / "train.parquet", row_group_size=6)
    split = open_dataset(tmp_path, "a/b@1").split("train")
    assert split.columns() == ["text", "label", "tags", "price"]
    assert split.count() == 20
    for start in (0, 5, 6, 13, 20):
        found = drain(split, ["text", "label"], 4, start=start)
        assert [text for part in found for text in part["text"]] == rows["text"][start:]
        numbers = [part["label"].tolist() for part in found]
        assert [number for part in numbers for number in part] == rows["label"][start:]
        assert all(len(part["text"]) <= 4 for part in found)
    (first, *_) = drain(split, ["tags", "price"], 4)
    assert first["tags"][:2] == ['["a", "b"]', None]
    assert first["price"][0] == '"1.50"'


@pytest.mark.parametrize("keep", [0, 3, 40, -9])
def test_a_damaged_parquet_file_is_refused(tmp_path, keep):
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": ["a"] * 500}), file)
    file.write_bytes(file.read_bytes()[:keep])
    split = open_dataset(tmp_path, "a/b@1").split("train")
    assert refusal(split.count)[0] == "malformed_file"
    assert refusal(drain, split, ["text"], 4)[0] == "malformed_file"
