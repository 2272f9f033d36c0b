"""`python -m benchmarks.relevant.measure`: fills a registry with the set and asks it everything.

Runs beside an installation, with DATABASE_URL naming its database, and writes gains as JSON.
"""

import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.conf import settings  # noqa: E402 - needs the settings

from benchmarks.relevant.fill import fill  # noqa: E402
from benchmarks.relevant.gain import ndcg  # noqa: E402
from benchmarks.relevant.needs import MODELS, grades, needs  # noqa: E402
from benchmarks.relevant.plausible import plausible_models  # noqa: E402
from registry.encoder import EncoderAway, encode, forget_queries, vector_of  # noqa: E402
from registry.lexicon import english_of  # noqa: E402
from registry.meaning import nearest  # noqa: E402
from registry.models import ANONYMOUS, Repository  # noqa: E402
from registry.search import SearchQuery, search_repositories  # noqa: E402
from registry.services.vectors import encode_cards  # noqa: E402

PATIENCE_SECONDS = 300


def by_search(q: str) -> list[int]:
    page = search_repositories(ANONYMOUS, "model", SearchQuery(q=q, limit=10), with_facets=False)
    return [row["id"] for row in page.items]


def by_vectors(q: str) -> list[int]:
    """Order by nothing but the cosine."""
    found = vector_of(english_of(q))
    if found is None:
        return []
    among = Repository.objects.visible_to(ANONYMOUS).models()
    return list(nearest(found.vector, found.encoder, among, count=10) or {})


def measure(ask: Callable[[str], list[int]], names: dict[int, str]) -> dict[str, object]:
    """Ask for everything once, and time it the second time, when vectors of queries are kept."""
    models = list(plausible_models(MODELS))
    gains: dict[str, list[float]] = defaultdict(list)
    for need in needs():
        gain = ndcg([names[key] for key in ask(need.q)], grades(need, models))
        for group in ("all", need.language, f"words: {need.words}"):
            gains[group].append(gain)
    times = []
    for need in needs():
        started = time.perf_counter()
        ask(need.q)
        times.append((time.perf_counter() - started) * 1000)
    return {
        "ndcg": {group: statistics.fmean(values) for group, values in gains.items()},
        "needs": {group: len(values) for group, values in gains.items()},
        "median_ms": statistics.median(times),
    }


def main() -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            encode(["model"], seconds=10)
            break
        except EncoderAway:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
    settings.ENCODER_MILLISECONDS = 10_000
    names = fill(plausible_models(MODELS))
    while encode_cards(seconds=60):
        pass
    found = {"blended": measure(by_search, names), "semantic": measure(by_vectors, names)}
    settings.ENCODER_SOCKET = Path("/nowhere")
    forget_queries()
    found["text"] = measure(by_search, names)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
