"""A model repository of Triton Inference Server, where ONNX Runtime computes the graph."""

from registry.errors import Conflict
from registry.exports.package import TAR, Package, Port, Served, Source, onnx_files, require_tensors


def triton_repository(source: Source) -> Package:
    """Lay a version out for `tritonserver --model-repository`, under its own number.

    Raises:
        Conflict: it has no graph, or takes or gives what Triton does not.

    """
    files = onnx_files(source)
    require_tensors(source)
    for port in (*source.inputs, *source.outputs):
        if not port.shape and not source.is_batchable:
            raise Conflict(
                "{name!r} of {version} is a single value, which Triton takes for each row of a "
                "batch only: export the graph with an axis of one.",
                code="no_tensor",
                name=port.name,
                version=source.reference,
            )
    return Package(
        "triton.tar",
        TAR,
        (
            (f"{source.name}/config.pbtxt", config_text(source).encode()),
            *((f"{source.name}/{source.number}/{path}", file) for path, file in files),
        ),
    )


def config_text(source: Source) -> str:
    """Write config.pbtxt: ModelConfig in the text form of protocol buffers."""
    batched = source.is_batchable
    served = source.served
    on = " ".join(served.device_class.split())
    lines = [
        f"# {source.reference}",
        *([f"# Threads and batch as measured on {on}"] if on else []),
        f"name: {quoted(source.name)}",
        'platform: "onnxruntime_onnx"',
        'backend: "onnxruntime"',
        # A request of more rows is refused there, and not computed by itself.
        f"max_batch_size: {max(Served().max_batch_size, served.max_batch_size) if batched else 0}",
        f"version_policy {{ specific {{ versions: [ {source.number} ] }} }}",
        *(_port("input", one, batched=batched) for one in source.inputs),
        *(_port("output", one, batched=batched) for one in source.outputs),
        "instance_group [ { count: 1 } ]",
        # As this registry serves it: more threads than one make small models slower.
        _parameter("intra_op_thread_count", str(served.threads)),
    ]
    if batched and served.joins:
        # Without a delay: what waits goes together, and nothing waits for more to come. Where no
        # tuning has seen that a row's answer depends on no other, each request goes by itself.
        lines.append(f"dynamic_batching {{ preferred_batch_size: [ {served.max_batch_size} ] }}")
    return "\n".join([*lines, ""])


def _port(kind: str, port: Port, *, batched: bool) -> str:
    sizes = port.shape[1:] if batched else port.shape
    # A single value for each row: Triton has no empty dims, but a way to read one as none.
    shape = "" if sizes else " reshape { shape: [ ] }"
    dims = ", ".join(map(str, sizes or (1,)))
    said = "STRING" if port.datatype == "BYTES" else port.datatype or "INVALID"
    return (
        f"{kind} [ {{ name: {quoted(port.name)} data_type: TYPE_{said} dims: [ {dims} ]{shape} }} ]"
    )


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}"


def quoted(text: str) -> str:
    """Write a text as protocol buffers' text form does."""
    written = "".join(
        chr(one) if 32 <= one < 127 and chr(one) not in '"\\' else f"\\{one:03o}"
        for one in text.encode()
    )
    return f'"{written}"'
