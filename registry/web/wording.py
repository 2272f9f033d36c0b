"""How machine words read to people: sizes, counts, times, states, tasks, metrics."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, pgettext_lazy

from registry.web.charts import short

KINDS: Final = {"model": gettext_lazy("Models"), "dataset": gettext_lazy("Datasets")}
TASKS: Final = {
    "image-classification": gettext_lazy("Image classification"),
    "text-classification": gettext_lazy("Text classification"),
    "sentence-similarity": gettext_lazy("Sentence similarity"),
    "feature-extraction": gettext_lazy("Feature extraction"),
    "text-generation": gettext_lazy("Text generation"),
    "token-classification": gettext_lazy("Token classification"),
    "question-answering": gettext_lazy("Question answering"),
    "translation": gettext_lazy("Translation"),
    "summarization": gettext_lazy("Summarization"),
    "fill-mask": gettext_lazy("Fill mask"),
    "object-detection": gettext_lazy("Object detection"),
    "image-segmentation": gettext_lazy("Image segmentation"),
    "automatic-speech-recognition": gettext_lazy("Speech recognition"),
    "tabular-classification": gettext_lazy("Tabular classification"),
    "tabular-regression": gettext_lazy("Tabular regression"),
}
LIBRARIES: Final = {
    "pytorch": "PyTorch",
    "tensorflow": "TensorFlow",
    "keras": "Keras",
    "onnx": "ONNX",
    "sentence-transformers": "Sentence Transformers",
    "transformers": "Transformers",
    "scikit-learn": "scikit-learn",
}
LICENSES: Final = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "psf-2.0": "PSF-2.0",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
}
STATES: Final = {
    "pending": pgettext_lazy("version state", "Pending"),
    "ready": pgettext_lazy("version state", "Ready"),
    "quarantined": pgettext_lazy("version state", "Quarantined"),
    "deprecated": pgettext_lazy("version state", "Deprecated"),
    "archived": pgettext_lazy("version state", "Archived"),
    "queued": pgettext_lazy("job state", "Queued"),
    "running": pgettext_lazy("job state", "Running"),
    "succeeded": pgettext_lazy("job state", "Succeeded"),
    "failed": pgettext_lazy("job state", "Failed"),
    "cancelled": pgettext_lazy("job state", "Cancelled"),
    "open": pgettext_lazy("state of a request", "Open"),
    "approved": pgettext_lazy("state of a request", "Approved"),
    "declined": pgettext_lazy("state of a request", "Declined"),
    "withdrawn": pgettext_lazy("state of a request", "Withdrawn"),
    "ignored": pgettext_lazy("state of a request", "Ignored"),
    "waiting": pgettext_lazy("delivery state", "Waiting"),
    "delivered": pgettext_lazy("delivery state", "Delivered"),
    "loading": pgettext_lazy("state of a served model", "Loading"),
    "asleep": pgettext_lazy("state of a served model", "Asleep"),
}
STATE_TONES: Final = {
    "ready": "good",
    "succeeded": "good",
    "delivered": "good",
    "waiting": "now",
    "running": "now",
    "queued": "",
    "pending": "now",
    "loading": "now",
    "failed": "bad",
    "quarantined": "warn",
    "deprecated": "warn",
    "open": "now",
    "approved": "good",
    "declined": "bad",
}
DEPLOYMENT_ROLES: Final = {
    "live": pgettext_lazy("deployment role", "Live"),
    "canary": pgettext_lazy("deployment role", "Canary"),
    "shadow": pgettext_lazy("deployment role", "Shadow"),
}
VISIBILITIES: Final = {
    "public": pgettext_lazy("visibility", "Public"),
    "internal": pgettext_lazy("visibility", "Internal"),
    "private": pgettext_lazy("visibility", "Private"),
}
ROLES: Final = {
    "weights": pgettext_lazy("lineage role", "weights"),
    "data": pgettext_lazy("lineage role", "data"),
    "teacher": pgettext_lazy("lineage role", "teacher"),
    "calibration": pgettext_lazy("lineage role", "calibration"),
    "merged": pgettext_lazy("lineage role", "merged"),
}
JOB_KINDS: Final = {
    "compress": gettext_lazy("Compress"),
    "search": gettext_lazy("Search for smaller versions"),
    "train": gettext_lazy("Train"),
    "infer": gettext_lazy("Run over a dataset"),
    "evaluate": gettext_lazy("Evaluate"),
    "profile": gettext_lazy("Profile"),
    "diff": gettext_lazy("Compare weights"),
    "tune": gettext_lazy("Tune for serving"),
    "export": gettext_lazy("Export"),
}
QUOTAS: Final = {
    "bytes": gettext_lazy("Stored bytes"),
    "versions": gettext_lazy("Versions"),
    "jobs": gettext_lazy("Jobs that run"),
    "deployments": gettext_lazy("Deployments"),
}
WEBHOOK_EVENTS: Final = {
    "version.created": gettext_lazy("A version is registered"),
    "version.changed": gettext_lazy("A version's state or message changes"),
    "version.deleted": gettext_lazy("A version is deleted"),
    "alias.moved": gettext_lazy("An alias moves"),
    "alias.deleted": gettext_lazy("An alias is deleted"),
    "approval.requested": gettext_lazy("An approval is asked for"),
    "approval.decided": gettext_lazy("An approval is decided"),
    "deployment.changed": gettext_lazy("What is deployed changes"),
    "job.finished": gettext_lazy("A job ends"),
}
STEPS: Final = {
    "queued": pgettext_lazy("job step", "Queued"),
    "train": pgettext_lazy("job step", "Train"),
    "export_onnx": pgettext_lazy("job step", "Export"),
    "quantize_dynamic": pgettext_lazy("job step", "Quantize"),
    "evaluate": pgettext_lazy("job step", "Evaluate"),
    "predict": pgettext_lazy("job step", "Predict"),
    "join": pgettext_lazy("job step", "Put together"),
    "write": pgettext_lazy("job step", "Write"),
    "profile": pgettext_lazy("job step", "Measure layers"),
    "sensitivity": pgettext_lazy("job step", "Try layers smaller"),
    "search": pgettext_lazy("job step", "Search"),
    "diff": pgettext_lazy("job step", "Compare weights"),
    "tune": pgettext_lazy("job step", "Measure settings"),
    "export": pgettext_lazy("job step", "Export"),
    "done": pgettext_lazy("job step", "Register"),
}
# What a step trains beside the model it is about.
_CONTROLS: Final = {
    "dense_control_": gettext_lazy("dense control"),
    "scratch_control_": gettext_lazy("trained from scratch"),
    "labels_control_": gettext_lazy("trained on labels alone"),
}
METRICS: Final = {
    "accuracy": gettext_lazy("Accuracy"),
    "f1_macro": gettext_lazy("F1, macro"),
    "loss": gettext_lazy("Loss"),
    "throughput": gettext_lazy("Throughput"),
    "cosine_to_parent": gettext_lazy("Cosine to parent"),
    "agreement_with_parent": gettext_lazy("Agreement with parent"),
    "stored_bytes": gettext_lazy("Stored size"),
    "size_bytes": gettext_lazy("Stored size"),
    "parameters": gettext_lazy("Parameters"),
    "parameters_count": gettext_lazy("Parameters"),
    "nonzero": gettext_lazy("Parameters that are not zero"),
    "macs_per_row": gettext_lazy("Multiply-accumulates per row"),
    "wire_bytes_zstd3": gettext_lazy("Size on the wire (zstd, level 3)"),
    "cpu_seconds_per_1000_rows": gettext_lazy("CPU time for 1,000 rows"),
    "job_seconds": gettext_lazy("Time the job took"),
    "accuracy_change": gettext_lazy("Accuracy against the parent"),
    "worst_class_recall_change": gettext_lazy("Recall of the class that lost most"),
    "accuracy_of_dense_control": gettext_lazy("Accuracy of the dense control"),
    "gap_to_dense_control": gettext_lazy("Accuracy against the dense control"),
    "accuracy_of_scratch_control": gettext_lazy("Accuracy of the student trained from scratch"),
    "gap_to_scratch_control": gettext_lazy("Accuracy against the student trained from scratch"),
    "accuracy_of_labels_control": gettext_lazy("Accuracy of the student trained on labels alone"),
    "gap_to_labels_control": gettext_lazy("Accuracy against the student trained on labels alone"),
    "kl_to_parent": gettext_lazy("Divergence from the parent (KL)"),
    "peak_memory": gettext_lazy("Peak memory"),
    "validation_accuracy": gettext_lazy("Validation accuracy"),
    "validation_loss": gettext_lazy("Validation loss"),
    "train_loss": gettext_lazy("Training loss"),
    "learning_rate": gettext_lazy("Learning rate"),
    "latency_p50_batch1": gettext_lazy("p50 latency, batch 1"),
    "latency_p95_batch1": gettext_lazy("p95 latency, batch 1"),
    "latency_p50_batch8": gettext_lazy("p50 latency, batch 8"),
    "latency_p95_batch8": gettext_lazy("p95 latency, batch 8"),
    "latency_p50_batch32": gettext_lazy("p50 latency, batch 32"),
    "latency_p95_batch32": gettext_lazy("p95 latency, batch 32"),
}
# Values of refusals that are words themselves, by the last word of the value's name.
WORDS: Final = {
    "kind": {
        "model": pgettext_lazy("in a sentence", "model"),
        "dataset": pgettext_lazy("in a sentence", "dataset"),
        "compress": pgettext_lazy("in a sentence", "compress"),
        "search": pgettext_lazy("in a sentence", "search for smaller versions"),
        "train": pgettext_lazy("in a sentence", "train"),
        "infer": pgettext_lazy("in a sentence", "infer"),
        "evaluate": pgettext_lazy("in a sentence", "evaluate"),
        "profile": pgettext_lazy("in a sentence", "profile"),
        "diff": pgettext_lazy("in a sentence", "compare weights"),
        "tune": pgettext_lazy("in a sentence", "tune for serving"),
        "export": pgettext_lazy("in a sentence", "export"),
    },
    "state": {
        "pending": pgettext_lazy("in a sentence", "pending"),
        "ready": pgettext_lazy("in a sentence", "ready"),
        "quarantined": pgettext_lazy("in a sentence", "quarantined"),
        "deprecated": pgettext_lazy("in a sentence", "deprecated"),
        "archived": pgettext_lazy("in a sentence", "archived"),
        "open": pgettext_lazy("in a sentence", "open"),
        "approved": pgettext_lazy("in a sentence", "approved"),
        "declined": pgettext_lazy("in a sentence", "declined"),
        "withdrawn": pgettext_lazy("in a sentence", "withdrawn"),
        "deleted": pgettext_lazy("in a sentence", "deleted"),
        "queued": pgettext_lazy("in a sentence", "queued"),
        "running": pgettext_lazy("in a sentence", "running"),
        "succeeded": pgettext_lazy("in a sentence", "succeeded"),
        "failed": pgettext_lazy("in a sentence", "failed"),
        "cancelled": pgettext_lazy("in a sentence", "cancelled"),
    },
    "role": {
        "none": pgettext_lazy("in a sentence", "none"),
        "reader": pgettext_lazy("in a sentence", "reader"),
        "contributor": pgettext_lazy("in a sentence", "contributor"),
        "maintainer": pgettext_lazy("in a sentence", "maintainer"),
        "owner": pgettext_lazy("in a sentence", "owner"),
    },
}
# What readers of headers say of a file beside its own metadata.
FACTS: Final = {
    "entries_count": gettext_lazy("Entries"),
    "nodes_count": gettext_lazy("Operations"),
    "compression": gettext_lazy("Compression"),
    "opset": gettext_lazy("Operator set"),
    "ir_version": gettext_lazy("ONNX version"),
}
# Numbers from 0 to 1 that read better as percentages.
SHARES: Final = frozenset({"accuracy", "f1_macro", "agreement_with_parent"})
# Differences of such shares: points that were won or lost.
CHANGES: Final = frozenset({"accuracy_change", "worst_class_recall_change"})
_GAP: Final = "gap_to_"
# What the progress of a job is counted in.
UNITS: Final = {
    "candidates": pgettext_lazy("of progress", "candidates"),
    "changes": pgettext_lazy("of progress", "changes"),
    "rows": pgettext_lazy("of progress", "rows"),
    "settings": pgettext_lazy("of progress", "settings"),
    "stages": pgettext_lazy("of progress", "stages"),
    "steps": pgettext_lazy("of progress", "steps"),
    "versions": pgettext_lazy("of progress", "versions"),
}
LATENCY_METRIC: Final = "latency_p50_batch1"
_SIZES: Final = ("B", "kB", "MB", "GB", "TB", "PB")
NOTHING: Final = "\N{EN DASH}"
_COUNTS: Final = ("", " k", " M", " B", " T")


def size_text(size: float | None) -> str:
    """Write bytes in decimal units: 10.8 MB."""
    if size is None:
        return NOTHING
    value = float(size)
    for unit in _SIZES:
        if abs(value) < 999.95 or unit == _SIZES[-1]:
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def count_text(count: float | None) -> str:
    """Write a large count in three digits: 22.7 M."""
    if count is None:
        return NOTHING
    value = float(count)
    for unit in _COUNTS:
        if abs(value) < 999.5 or unit == _COUNTS[-1]:
            break
        value /= 1000
    digits = 0 if unit == "" or value >= 100 else 1
    return f"{value:.{digits}f}{unit}"


def percent_text(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f}%"


def points_text(change: float) -> str:
    """Write a difference of shares in points, with its sign: +0.5 pt."""
    return _("%(points)s pt") % {"points": signed(f"{change * 100:+.2f}")}


def signed(text: str) -> str:
    """Write a number with its sign as people do; nought has none."""
    return "0" if not text.strip("+-0.") else text.replace("-", "\N{MINUS SIGN}")


def value_text(value: float, unit: str, metric: str = "") -> str:
    """Write a measured number with its unit."""
    if unit in {"bytes", "B"} or metric.endswith("_bytes"):
        return size_text(value)
    if metric.startswith("parameters") or unit == "count":
        return count_text(value)
    if metric in CHANGES or metric.startswith(_GAP):
        return points_text(value)
    if unit == "share" or (not unit and metric in SHARES):
        return percent_text(value)
    return {"%": f"{value:.1f}%", "cosine": f"{value:.4f}"}.get(
        unit, f"{short(value)} {unit}".strip()
    )


def interval_text(low: float | None, high: float | None, unit: str, metric: str) -> str:
    """Write the 95 % interval of a number, or nothing."""
    if low is None or high is None:
        return ""
    return f"{value_text(low, unit, metric)} {NOTHING} {value_text(high, unit, metric)}"


def unit_name(unit: str) -> str:
    """Say what the progress of a job is counted in."""
    return str(UNITS.get(unit, unit))


def metric_name(metric: str) -> str:
    for begins, control in _CONTROLS.items():
        if metric.startswith(begins) and (known := METRICS.get(metric.removeprefix(begins))):
            return _("%(metric)s, %(control)s") % {"metric": known, "control": control}
    return str(METRICS.get(metric, metric))


def task_name(task: str) -> str:
    return str(TASKS.get(task.lower(), task))


def state_name(state: str) -> str:
    return str(STATES.get(state, state))


def step_name(step: str, titles: Mapping[str, str]) -> str:
    """Name what a job is doing; a step that no recipe has reads as it was written."""
    return str(STEPS.get(step) or titles.get(step) or step[:1].upper() + step[1:].replace("_", " "))


def family_of(variant: str) -> int:
    """Sort a variant into the five families of the charts: float, quantized, pruned and so on."""
    name = variant.lower()
    marks = [
        (
            "int8",
            "int4",
            "uint8",
            "fp16",
            "bf16",
            "quant",
            "q8",
            "q4",
            "fixed",
            "weights",
            "shared",
        ),
        ("prun", "sparse", "slim"),
        ("distil", "student"),
    ]
    hits = [at for at, words in enumerate(marks, 2) if any(word in name for word in words)]
    if not hits:
        return 1
    return hits[0] if len(hits) == 1 else 5


def family_name(family: int) -> str:
    return {
        1: _("Float"),
        2: _("Quantized"),
        3: _("Pruned"),
        4: _("Distilled"),
        5: _("Combined"),
    }[family]


def relative_time(then: datetime, now: datetime | None = None) -> str:
    """Say how long ago (or how far ahead) `then` is, in one unit."""
    seconds = ((now or timezone.now()) - then).total_seconds()
    if seconds < 0:
        return _in_future(-seconds)
    if seconds < 45:
        return _("just now")
    return _span_ago(seconds)


def _span_ago(seconds: float) -> str:
    minutes, hours, days = (round(seconds / unit) for unit in (60, 3600, 86400))
    if minutes < 60:
        return ngettext("%(n)d min ago", "%(n)d min ago", minutes) % {"n": minutes}
    if hours < 24:
        return ngettext("%(n)d h ago", "%(n)d h ago", hours) % {"n": hours}
    if days < 31:
        return ngettext("%(n)d day ago", "%(n)d days ago", days) % {"n": days}
    months = round(days / 30.4)
    if months < 12:
        return ngettext("%(n)d month ago", "%(n)d months ago", months) % {"n": months}
    years = max(1, round(days / 365.25))
    return ngettext("%(n)d year ago", "%(n)d years ago", years) % {"n": years}


def _in_future(seconds: float) -> str:
    hours = round(seconds / 3600)
    if hours < 48:
        return ngettext("in %(n)d h", "in %(n)d h", hours) % {"n": hours}
    days = round(seconds / 86400)
    return ngettext("in %(n)d day", "in %(n)d days", days) % {"n": days}


def duration_text(seconds: float | None) -> str:
    """Write a span of time in at most two units: 2 min 05 s."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return _("%(seconds)s s") % {"seconds": f"{seconds:.1f}"}
    whole = round(seconds)
    if whole < 60:
        return _("%(seconds)s s") % {"seconds": whole}
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return _("%(minutes)s min %(seconds)s s") % {"minutes": minutes, "seconds": f"{rest:02}"}
    hours, minutes = divmod(minutes, 60)
    return _("%(hours)s h %(minutes)s min") % {"hours": hours, "minutes": f"{minutes:02}"}
