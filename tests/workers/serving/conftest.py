"""A yard of small models, in a folder that the user of a sandbox may reach."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.workers.serving.yard import Yard


@pytest.fixture
def yard():
    root = Path(tempfile.mkdtemp(prefix="serving-"))
    root.chmod(0o711)
    yield Yard(root)
    shutil.rmtree(root, ignore_errors=True)
