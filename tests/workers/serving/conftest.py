"""A yard of small models, in a folder that the user of a sandbox may reach."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.workers.serving.servers import InferenceServer
from tests.workers.serving.yard import Yard


@pytest.fixture
def yard():
    root = Path(tempfile.mkdtemp(prefix="serving-"))
    root.chmod(0o711)
    yield Yard(root)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def home():
    folder = Path(tempfile.mkdtemp(prefix="served-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def start(process_environment, home):
    started = []

    def run(*, module="workers.serving", wait=True, **more):
        own = home / str(len(started))
        own.mkdir(mode=0o711)
        started.append(InferenceServer({**process_environment, **more}, own, module))
        return started[-1].wait() if wait else started[-1]

    yield run
    for server in started:
        if server.process.poll() is None:
            server.stop()
