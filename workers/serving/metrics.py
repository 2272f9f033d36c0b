"""Numbers of the data plane for Prometheus, under the names that Triton's dashboards read."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from workers.serving.messages import Counters


class _Metric(NamedTuple):
    name: str
    kind: str
    says: str
    read: Callable[[Counters], int]


_METRICS = (
    _Metric(
        "nv_inference_request_success",
        "counter",
        "Calls that were answered",
        lambda one: one.success.count,
    ),
    _Metric(
        "nv_inference_request_failure",
        "counter",
        "Calls that failed",
        lambda one: one.fail.count,
    ),
    _Metric(
        "nv_inference_count",
        "counter",
        "Rows that were computed",
        lambda one: one.inferences,
    ),
    _Metric(
        "nv_inference_exec_count",
        "counter",
        "Batches that were computed",
        lambda one: one.executions,
    ),
    _Metric(
        "nv_inference_request_duration_us",
        "counter",
        "Time of calls that were answered, in microseconds",
        lambda one: one.success.ns // 1000,
    ),
    _Metric(
        "nv_inference_queue_duration_us",
        "counter",
        "Time that calls waited, in microseconds",
        lambda one: one.queue.ns // 1000,
    ),
    _Metric(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Time to bring inputs to the model, in microseconds",
        lambda one: one.compute_input.ns // 1000,
    ),
    _Metric(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Time that models computed, in microseconds",
        lambda one: one.compute_infer.ns // 1000,
    ),
    _Metric(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Time to bring outputs back, in microseconds",
        lambda one: one.compute_output.ns // 1000,
    ),
    _Metric(
        "nv_inference_pending_request_count",
        "gauge",
        "Calls that wait or run now",
        lambda one: one.pending,
    ),
)


def exposition(counters: Sequence[Counters]) -> str:
    """Write what versions have done as Prometheus reads it."""
    lines = []
    for metric in _METRICS:
        lines.append(f"# HELP {metric.name} {metric.says}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for one in counters:
            labels = f'model="{_label(one.model)}",version="{_label(one.version)}"'
            lines.append(f"{metric.name}{{{labels}}} {metric.read(one)}")
    return "\n".join([*lines, ""])


def _label(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
