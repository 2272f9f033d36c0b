"""The corpus is as large as it has to be; nothing in it is sent here."""

from collections import Counter

import pytest

from tests.attacks import corpus

pytestmark = pytest.mark.contract


def test_there_are_at_least_eighty_hostile_uploads():
    cases = corpus.hostile_cases().values()
    assert len(cases) >= 80
    # Of each kind enough, too: files, names, and whole requests.
    assert sum(bool(case.path) for case in cases) >= 80
    assert sum(bool(case.names) for case in cases) >= 40
    assert sum(case.speaks for case in cases) >= 80


def test_there_are_at_least_fifteen_good_files_of_every_format():
    counts = Counter(found.format for found in corpus.good_files().values())
    assert all(count >= 15 for count in counts.values()), counts
