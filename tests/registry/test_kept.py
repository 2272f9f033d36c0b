import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry.kept import keep_secret


def test_a_secret_is_made_once_and_is_its_owners(tmp_path):
    path = tmp_path / "folder/secret"
    numbers = iter(range(100))

    def make():
        return f"secret-{next(numbers)}"

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: keep_secret(path, make), range(50)))
    assert len(found) == 1
    assert re.fullmatch(r"secret-[0-9]+", found.pop())
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_who_dies_while_making_one_leaves_no_half(tmp_path):
    path = tmp_path / "secret"

    def die():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep_secret(path, die)
    assert not path.exists()
    assert keep_secret(path, lambda: "made") == "made"
