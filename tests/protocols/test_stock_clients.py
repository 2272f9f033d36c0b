"""Clients of other projects, unmodified; each in a process of its own, for they share names."""

import subprocess
import sys
from pathlib import Path

STOCK = Path(__file__).parent / "stock"


def run(name, *args):
    done = subprocess.run(
        [sys.executable, str(STOCK / name), *args],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]


def test_tritonclient_over_http(served):
    run("triton_http.py", f"127.0.0.1:{served.port}")


def test_tritonclient_over_grpc(served):
    run("triton_grpc.py", f"127.0.0.1:{served.grpc_port}")


def test_connectrpc_over_grpc_web(served):
    run("connect_web.py", served.url)
