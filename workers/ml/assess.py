"""An evaluation job: numbers about a version, and no new files."""

from registry import recipes
from workers.ml import environment
from workers.ml.data import check_columns, open_dataset
from workers.ml.formats import open_model
from workers.ml.infer.runtime import load_runtime
from workers.ml.job import Job
from workers.ml.measure import CHILD, Contest, HeldOut, measure_classes, measure_cost
from workers.ml.report import Report


def run(job: Job, recipe: recipes.EvaluateRecipe) -> Report:
    """Measure a classifier's accuracy, and any version's size and speed."""
    (step,) = recipe.steps
    given = job.input("dataset")
    held_out = HeldOut(
        open_dataset(given.path, given.ref), step.split, step.label_column, step.batch_size
    )
    runtime = load_runtime(
        open_model(job.input("model").path),
        device=job.device,
        threads=job.threads,
        columns={"text": step.text_column, "image": step.image_column},
    )
    needed = list(runtime.feeder.columns)
    classes = runtime.answers == "classes"
    check_columns(held_out.split, [*needed, step.label_column] if classes else needed)
    contest = Contest({CHILD: runtime}, job)
    metrics = measure_classes(contest, held_out) if classes else []
    if step.latency:
        metrics += measure_cost(contest, held_out=held_out)
    described = environment.describe(device=job.device, threads=job.threads)
    message = f"{job.input('model').title} measured on {step.split} of {given.title}"
    if metrics and metrics[0].metric == "accuracy":
        message += f": accuracy {metrics[0].value:.4f} (n={metrics[0].n})"
    return Report("evaluate", metrics, described, message)
