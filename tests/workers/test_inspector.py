"""Untrusted files are opened where nothing can happen, and come back as files that run nothing."""

import io
import json
import os
import re
import subprocess
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from registry.formats import inspect
from tests.workers import hostile
from tests.workers.ordinary import ORDINARY, copied_code, prefixes, python_for
from workers import inspector as inspector_module
from workers.inspector import Inspector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def inspector():
    one = Inspector()
    yield one
    one.stop()


@pytest.fixture
def canary(tmp_path):
    folder = tmp_path / "canary"
    folder.mkdir()
    one = hostile.Canary(folder)
    yield one
    one.close()


@pytest.fixture
def convert(inspector, tmp_path):
    """Convert bytes; give what was said and where the result lies."""

    def act(kind, data, *, seconds=inspector_module.MAX_SECONDS, **hints):
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(data)
        said = inspector.convert(source, target, kind=kind, hints=hints, seconds=seconds)
        return said, target

    return act


def facts_of(path, name="model.safetensors"):
    data = path.read_bytes()
    return inspect(name, len(data), lambda start, end: data[start:end])


# --- What can be converted is --------------------------------------------------------------------


@pytest.mark.parametrize("save", [hostile.torch_zip, hostile.torch_legacy])
def test_weights_become_safetensors(convert, save):
    state = hostile.Net().state_dict()
    said, target = convert(
        "torch-zip" if save is hostile.torch_zip else "torch-legacy",
        save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}),
    )
    assert (said.format, said.reason.detail) == ("safetensors", "")
    assert said.toolchain.startswith("torch-")
    assert {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2"} <= set(said.imports)
    assert any("taken from 'state_dict'" in note.detail for note in said.notes)
    assert facts_of(target).parameters_count == 8
    for name, tensor in load_file(target).items():
        assert torch.equal(tensor, state[name])


def test_every_type_and_odd_layouts_survive(convert):
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    state = {
        "half": base.half(),
        "brain": base.bfloat16(),
        "double": base.double(),
        "turned": base.t(),
        "part": base[1:, ::2],
        "bits": base > 3,
        "whole": base.long(),
        "byte": base.to(torch.uint8),
        "empty": torch.zeros(0, 3),
        "one": torch.tensor(2.5),
        "shared": base,
        "shared again": base,
    }
    said, target = convert("torch-zip", hostile.torch_zip(state))
    assert said.format == "safetensors", said
    found = load_file(target)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_arrays_become_safetensors(convert):
    out = io.BytesIO()
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], dtype=">i4")}
    np.savez_compressed(out, text=np.array(["x"]), **arrays)
    said, target = convert("npz", out.getvalue())
    assert said.format == "safetensors"
    assert any("Left out" in note.detail for note in said.notes)
    found = load_file(target)
    assert found["a"].tolist() == arrays["a"].tolist()
    assert found["b"].tolist() == [1, 2]


def test_programs_become_onnx_or_at_least_weights(convert):
    net = hostile.Net()
    ports = [{"name": "x", "dtype": "float32", "shape": [-1, 3]}]
    said, target = convert("torchscript", hostile.torchscript(net), signature={"inputs": ports})
    assert said.format == "onnx", said
    facts = facts_of(target, "model.onnx")
    assert [port.name for port in facts.inputs] == ["x"]
    said, target = convert("torchscript", hostile.torchscript(net))
    assert said.format == "safetensors"
    assert torch.equal(load_file(target)["layer.weight"], net.layer.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = hostile.exported(net, torch.zeros(1, 3))
    said, target = convert("pt2", program)
    assert said.format == "onnx", said
    assert facts_of(target, "model.onnx").parameters_count == 8


# --- What does harm does none --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "exec",
        "eval",
        "chain",
        "inside a dictionary",
        "pickle in a pickle",
    ],
)
@pytest.mark.parametrize("save", [hostile.torch_zip, hostile.torch_legacy, hostile.torch_tar])
def test_a_pickle_that_calls_is_named_and_never_run(convert, canary, save, name):
    kind = "torch-zip" if save is hostile.torch_zip else "torch-legacy"
    said, target = convert(kind, save(hostile.payloads(canary)[name]))
    assert said.format == ""
    assert said.reason.detail
    assert target.stat().st_size == 0
    assert canary.is_untouched()
    if save is not hostile.torch_tar:
        assert any(
            one.split(".")[-1] in {"system", "exec", "eval", "getattr", "loads"}
            for one in said.imports
        )


def test_a_program_that_writes_as_it_is_loaded_writes_nothing(convert, canary):
    canary.file.parent.chmod(0o777)
    program = hostile.torchscript(hostile.Writer(str(canary.file)))
    canary.file.unlink(missing_ok=True)
    said, _ = convert("torchscript", program)
    assert canary.is_untouched()
    assert said.format == ""
    assert said.reason.detail


def test_a_tensor_that_unfolds_is_refused(convert):
    huge = torch.as_strided(torch.zeros(4), (1 << 33,), (0,))
    said, target = convert("torch-zip", hostile.torch_zip({"w": huge}))
    assert "claims 34359738368 bytes and has 16" in said.reason.detail
    assert target.stat().st_size == 0


def test_tensors_that_share_their_bytes_do_not_multiply(convert):
    base = torch.zeros(1 << 20)
    said, _ = convert("torch-zip", hostile.torch_zip({f"w{i}": base for i in range(100)}))
    assert "many share their bytes" in said.reason.detail


def test_a_pickle_that_grows_without_end_ends(convert):
    bomb = b"\x80\x02" + b"]" + b"(" + b"2" * 60
    data = hostile.torch_legacy({"w": torch.zeros(1)})
    said, _ = convert("torch-legacy", data[:20] + bomb * 1000)
    assert said.format == ""
    assert said.reason.detail
    packed = io.BytesIO()
    np.savez_compressed(packed, a=np.zeros(1 << 24))
    said, _ = convert("npz", packed.getvalue())
    assert "packed more than" in said.reason.detail


def test_one_child_after_another_and_the_server_lives_on(convert, inspector):
    convert("torch-zip", b"PK\x03\x04 no zip at all")
    first = inspector._server.pid
    said, _ = convert("torch-zip", hostile.torch_zip({"w": torch.zeros(3)}))
    assert said.format == "safetensors"
    assert inspector._server.pid == first
    inspector._server.kill()
    inspector._server.wait()
    said, _ = convert("torch-zip", hostile.torch_zip({"w": torch.zeros(3)}))
    assert said.format == "safetensors"


@pytest.mark.parametrize(
    ("program", "seconds", "reason"),
    [
        # By the clock of the processor or the one on the wall, whichever comes first.
        (hostile.Endless, 2, r"It took more time|It was not done after 2 seconds"),
        (hostile.Hungry, 60, r"needs more memory"),
        (hostile.Forking, 60, r"Its reader"),
        (hostile.Filling, 60, r"Its reader"),
    ],
)
def test_a_program_that_takes_without_end_gets_no_more_than_its_part(
    convert, inspector, program, seconds, reason
):
    """Such programs do not come back from being loaded; the server does, for the next file."""
    convert("torch-zip", hostile.torch_zip({"w": torch.zeros(3)}))
    server = inspector._server.pid
    said, target = convert("torchscript", hostile.torchscript(program()), seconds=seconds)
    assert said.format == ""
    assert re.search(reason, said.reason.detail), said.reason.detail
    assert target.stat().st_size == 0
    assert convert("torch-zip", hostile.torch_zip({"w": torch.zeros(3)}))[0].format == "safetensors"
    assert inspector._server.pid == server


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[",
        b"[]",
        b"{}",
        b'{"format": 7, "notes": [1, {}, "a", {"detail": 1}]}',
        b"[" * 9000,
        b"x" * (300 << 10),
    ],
)
def test_a_report_is_a_strangers_word(raw):
    said = inspector_module._read_report(raw, "done")
    assert said.format == ""
    assert said.notes == []


def test_a_report_cannot_grow():
    """It lies in memory that is the worker's: a child could write until there is none left."""
    with inspector_module._blank_report() as report:
        whole = os.fstat(report.fileno()).st_size
        for grow in (os.ftruncate, os.posix_fallocate):
            arguments = (whole + 1,) if grow is os.ftruncate else (0, whole + 1)
            with pytest.raises(PermissionError):
                grow(report.fileno(), *arguments)
        with pytest.raises(PermissionError):
            os.pwrite(report.fileno(), b"more", whole)
        os.pwrite(report.fileno(), b"x" * whole, 0)
        report.seek(0)
        said = inspector_module._read_report(report.read(), "done")
    assert "without saying why" in said.reason.detail


def test_a_report_is_cleaned():
    raw = json.dumps(
        {
            "format": "onnx" * 99,
            "notes": [
                {"detail": "a\u202eb\x1b[31m" * 200, "said": {"template": "{a:>9}", "values": {}}}
            ],
            "imports": ["x"] * 9999,
        }
    )
    said = inspector_module._read_report(raw.encode(), "done")
    assert len(said.format) <= 16
    assert "\x1b" not in said.notes[0].detail
    assert "\u202e" not in said.notes[0].detail
    assert said.notes[0].said is None
    assert len(said.imports) <= 200


# --- Ways out, tried from inside -----------------------------------------------------------------

ESCAPES = {
    "open a file": "open('/etc/passwd').read()",
    "list a folder": "os.listdir('/')",
    "read a secret": "open({secret!r}).read()",
    "read the environment of its parent": "open(f'/proc/{{os.getppid()}}/environ', 'rb').read()",
    "read the environment of the first process": "open('/proc/1/environ', 'rb').read()",
    "read memory": "open(f'/proc/{{os.getppid()}}/mem', 'rb').read(1)",
    "write a file": "open({canary!r}, 'w')",
    "make a folder": "os.mkdir({canary!r})",
    "delete a file": "os.unlink({secret!r})",
    "rename a file": "os.rename({secret!r}, {canary!r})",
    "open up a file": "os.chmod({secret!r}, 0o666)",
    "link a file": "os.link({secret!r}, {canary!r})",
    "make a socket": "socket.socket()",
    "make a socket for datagrams": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "make a local socket": "socket.socket(socket.AF_UNIX)",
    "make a pair of sockets": "socket.socketpair()",
    "run a program": "os.execv('/bin/true', ['true'])",
    "start a process": "os.fork()",
    "start a thread": "_thread.start_new_thread(print, ())",
    "ask for what only later kernels know": "call(463, 0, 0, 0)",
    "signal its parent": "os.kill(os.getppid(), 9)",
    "signal everybody": "os.kill(-1, 9)",
    "trace its parent": "call(101, 16, os.getppid(), 0, 0)",
    "read its parent's memory": "call(310, os.getppid(), 0, 0, 0, 0, 0)",
    "leave its namespaces": "call(272, 0x10000000)",
    "mount": "call(165, 0, 0, 0, 0, 0)",
    "load a program for the kernel": "call(321, 0, 0, 0)",
    "ask through a ring": "call(425, 1, 0)",
    "catch page faults": "call(323, 0)",
    "watch the processor": "call(298, 0, 0, -1, -1, 0)",
    "keep a key": "call(250, 0, 0)",
    "become root": "os.setuid(0)",
    "leave its session": "os.setsid()",
    "make memory a file": "os.memfd_create('x')",
    "raise its limits": "resource.setrlimit(resource.RLIMIT_CPU, (1 << 40, 1 << 40))",
    "take the old way into the kernel": "call(0x40000000 | 59, 0, 0, 0)",
}

PROGRAM = """
import _thread, ctypes, json, os, resource, socket, sys
sys.path.insert(0, sys.argv[1])
from workers import sandbox
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *values):
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, values)) < 0:
        raise OSError(ctypes.get_errno(), "refused")
attempts = json.loads(sys.argv[2])
out = os.dup(1)
def attempt(act):
    # Each in a process of its own: one that is killed for it was stopped too.
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        uid = 60599 if os.geteuid() == 0 else None
        limits = sandbox.Limits(processes=0, niceness=0)
        sandbox.confine_inspection(uid=uid, limits=limits, parent=os.getppid())
        try:
            exec(act)
        except (OSError, RuntimeError) as error:
            os.write(writer, b"refused")
        else:
            os.write(writer, b"done")
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    return os.read(reader, 100).decode() or "killed"
os.write(out, json.dumps({name: attempt(act) for name, act in attempts.items()}).encode())
"""


@pytest.mark.parametrize("prefix", prefixes(), ids=lambda prefix: prefix[0] if prefix else "as is")
def test_there_is_no_way_out(tmp_path, prefix):
    code = copied_code(tmp_path, prefix)
    secret, canary = tmp_path / "secret", tmp_path / "canary"
    secret.write_text("secret")
    if prefix:
        os.chown(secret, ORDINARY, ORDINARY)
    acts = {
        name: act.format(secret=str(secret), canary=str(canary)) for name, act in ESCAPES.items()
    }
    done = subprocess.run(
        [*prefix, python_for(prefix), "-I", "-S", "-c", PROGRAM, str(code), json.dumps(acts)],
        capture_output=True,
        check=True,
        timeout=120,
    )
    answers = json.loads(done.stdout)
    assert {name for name, answer in answers.items() if answer == "done"} == set()
    assert len(answers) == len(ESCAPES)
    assert secret.read_text() == "secret"
    assert not canary.exists()


def is_running(process):
    try:
        fields = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    # One that nobody has asked about yet still has its number.
    return fields.rpartition(")")[2].split()[0] != "Z"


STAYING = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from workers import sandbox
if (child := os.fork()) == 0:
    uid = 60599 if os.geteuid() == 0 else None
    sandbox.confine_inspection(uid=uid, limits=sandbox.Limits(), parent=os.getppid())
    os.write(1, b"confined\\n")
    time.sleep(600)
os.write(1, b"%d\\n" % child)
os.wait()
"""


@pytest.mark.parametrize("prefix", prefixes(), ids=lambda prefix: prefix[0] if prefix else "as is")
def test_a_child_dies_with_its_server(tmp_path, prefix):
    """Whoever it became: to change users takes back what was agreed with the kernel before."""
    code = copied_code(tmp_path, prefix)
    with subprocess.Popen(
        [*prefix, python_for(prefix), "-I", "-S", "-c", STAYING, str(code)], stdout=subprocess.PIPE
    ) as server:
        lines = {server.stdout.readline().strip() for _ in range(2)}
        (child,) = lines - {b"confined"}
        assert len(lines) == 2
        server.kill()
    until = time.monotonic() + 10
    while is_running(int(child)):
        assert time.monotonic() < until
        threading.Event().wait(0.02)
