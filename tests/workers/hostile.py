"""Files that try to do harm when they are opened, and the traces that they would leave."""

import io
import os
import pickle
import socket
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Canary:
    """A folder and a listening socket that nothing may touch."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "touched"
        folder.chmod(0o777)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(0)
        self.port = self.listener.getsockname()[1]

    @property
    def command(self) -> str:
        return f"touch {self.file}; exec 3<>/dev/tcp/127.0.0.1/{self.port}"

    @property
    def program(self) -> str:
        return (
            f"open({str(self.file)!r}, 'w').close()\n"
            f"import socket\nsocket.create_connection(('127.0.0.1', {self.port}), 2)\n"
        )

    def is_untouched(self) -> bool:
        try:
            self.listener.accept()
        except BlockingIOError:
            return not self.file.exists()
        return False

    def close(self) -> None:
        self.listener.close()


class Calls:
    """Becomes a call when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(canary: Canary) -> dict[str, object]:
    """Give objects whose pickles do harm, by what they use."""
    return {
        "os.system": Calls(os.system, canary.command),
        "exec": Calls(exec, canary.program),
        "eval": Calls(eval, f"open({str(canary.file)!r}, 'w')"),
        "chain": Calls(getattr, Calls(__import__, "os"), "system"),
        "inside a dictionary": {"weight": torch.zeros(2), "bias": Calls(os.system, canary.command)},
        "pickle in a pickle": Calls(pickle.loads, pickle.dumps(Calls(exec, canary.program))),
    }


def torch_zip(value) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


def torch_legacy(value) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def torch_tar(value) -> bytes:
    """Write the oldest format of torch.save: a tar whose entries are pickles."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(value, 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def object_array(value) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([value], dtype=object), allow_pickle=True)
    return out.getvalue()


def object_arrays(value) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.npy", object_array(value))
    return out.getvalue()


class Net(nn.Module):
    """A model of one layer, to be brought in every format."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Writer(nn.Module):
    """A TorchScript program that writes a file as soon as it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.layer = nn.Linear(3, 2)

    @torch.jit.export
    def __getstate__(self):
        return self.path, self.layer.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        self.path = state[0]
        self.training = state[2]
        torch.save(state[1], state[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class _AtLoading(nn.Module):
    """A TorchScript program that does something as soon as it is loaded, but not as it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    @torch.jit.export
    def __getstate__(self):
        return self.layer.weight, self.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Endless(_AtLoading):
    """Is never done being loaded."""

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        turns = 0
        while turns >= 0:
            turns += 1


class Hungry(_AtLoading):
    """Takes memory until there is none."""

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        taken: list[torch.Tensor] = []
        while len(taken) < 1 << 30:
            taken.append(torch.empty([1 << 26]))


class Forking(_AtLoading):
    """Starts one thing after another beside itself."""

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        for _ in range(10_000):
            torch.jit.fork(torch.ones, [3])


class Filling(_AtLoading):
    """Writes where it may: into the file that was meant for its weights."""

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        for place in ("/proc/self/fd/501", "/proc/self/fd/502", "/dev/shm/x", "/tmp/x", "x"):
            torch.save(state[0], place)


def torchscript(module: nn.Module) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # torch would have nobody write such files any more; people still have them.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), out)
    return out.getvalue()


def exported(module: nn.Module, *example: torch.Tensor) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.pt2"
        torch.export.save(torch.export.export(module.eval(), example), path)
        return path.read_bytes()
