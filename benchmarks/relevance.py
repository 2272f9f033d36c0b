"""How well a search finds what people need; the needs are written down in `benchmarks/relevant`.

nDCG@10 of words alone, of vectors alone, and of both together as the search has them. A model's
grade follows by rule from the facts that its card was made of (needs.py).
"""

import json
import os
import subprocess
import sys

from benchmarks.installation import ROOT, running
from benchmarks.report import Figure, keep
from config.local.addresses import Addresses

_WAYS = {"text": "words alone", "semantic": "vectors alone", "blended": "both"}
_GROUPS = {
    "all": "all needs",
    "en": "English",
    "zh": "Chinese",
    "mixed": "both languages in one",
    "words: plain": "words that some card has",
    "words: other": "words that no card has",
    "words: typo": "mistyped words",
}


def main() -> None:
    with running(MODELYARD_ENCODER="1") as installation:
        addresses = Addresses(installation.home)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.relevant.measure"],
            cwd=ROOT,
            env={
                **os.environ,
                "MODELYARD_HOME": str(installation.home),
                "MODELYARD_LOG_LEVEL": "WARNING",
                "DATABASE_URL": addresses.database_url,
                "REDIS_URL": addresses.redis_url,
            },
            stdout=subprocess.PIPE,
            check=True,
        )
    found = json.loads(done.stdout)
    better = found["blended"]["ndcg"]["all"] - found["text"]["ndcg"]["all"]
    figures = [
        Figure(
            what=f"nDCG@10, {group_words} ({found[way]['needs'][group]}), by {way_words}",
            value=round(found[way]["ndcg"][group], 3),
            unit="",
        )
        for group, group_words in _GROUPS.items()
        for way, way_words in _WAYS.items()
    ]
    figures += [
        Figure(
            what="nDCG@10 that both together add to words alone",
            value=round(better, 3),
            unit="",
            aim=">= 0",
        ),
        *(
            Figure(
                what=f"one search of 360 models, by {words}, p50",
                value=round(found[way]["median_ms"], 1),
                unit="ms",
            )
            for way, words in _WAYS.items()
            if way != "semantic"
        ),
    ]
    keep("relevance", figures)
