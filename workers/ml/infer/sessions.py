"""Sessions of ONNX Runtime, opened alike by jobs and by the inference server; without torch."""

from pathlib import Path
from typing import Any

from registry.errors import Invalid


def open_session(file: Path, *, threads: int, gpu: bool, log_severity: int) -> Any:
    """Load a graph, on a GPU if `gpu` and this ONNX Runtime was built for one.

    `log_severity` is the least that ONNX Runtime writes to stderr: 3 errors, 4 what is fatal.

    Raises:
        Invalid: ONNX Runtime cannot load it.

    """
    import onnxruntime  # noqa: PLC0415 - a process that runs a torch model does without

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = log_severity
    # Threads that spin for work win microseconds and take the cores from everybody else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    if gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers.insert(0, "CUDAExecutionProvider")
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # the library's own exception types are not exported
        raise Invalid(
            "ONNX Runtime cannot load {file}: {problem}",
            code="malformed_file",
            file=file.name,
            problem=first_line(error),
        ) from error


def first_line(error: Exception) -> str:
    """Say what a library complained about, without its stack."""
    return (str(error).strip().splitlines() or [repr(error)])[0][:300]
