"""Clients of other projects against the program as it runs, in processes of their own."""

import subprocess
import sys

import pytest

from tests.factories import make_token
from tests.workers.serving import yard as y
from tests.workers.serving.servers import ROOT, deploy, outputs, wait_until

pytestmark = pytest.mark.slow


def test_connectrpc_calls_a_model_over_grpc_web(start, owner):
    repository, _ = deploy(owner, "double", y.linear(2.0))
    name, token = repository.full_name, make_token(owner)
    server = start()
    wait_until(lambda: outputs(server.call(name, token)) == [6.0])
    done = subprocess.run(
        [sys.executable, ROOT / "tests/protocols/stock/real_web.py", server.url, name, token],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]
