"""`python -m workers.ml job.json`: run one job, write out/, say on stdout how it goes.

Exit codes: 0 done, 2 refused (an error event says why), 143 stopped by SIGTERM, 1 a bug.
"""

import os
import sys
import traceback
from pathlib import Path

from registry import recipes
from registry.errors import RegistryError, Text
from workers.ml.events import Events
from workers.ml.interrupt import EXIT_CODE, Interrupt, Interrupted
from workers.ml.job import Job, read_job

_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads that spin at barriers made a step thirty times slower where the cores were shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Without this, matrix products on a GPU may add up in another order each time.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def main(path: Path) -> int:
    os.environ.update(_SETTINGS)
    events = Events.on_stdout()
    interrupt = Interrupt()
    interrupt.install()
    try:
        job = read_job(path, events, interrupt)
        job.start_over()
        _run(job)
    except Interrupted:
        return EXIT_CODE
    except RegistryError as error:
        events.error(error.reason, error)
        return 2
    except MemoryError:
        events.error("out_of_memory", Text("The job needs more memory than it may use."))
        return 2
    except Exception as error:  # noqa: BLE001 - the last door: the traceback goes to the job log
        traceback.print_exc()
        if type(error).__name__ == "OutOfMemoryError":
            events.error("out_of_memory", Text("The job needs more memory than the GPU has."))
            return 2
        said = Text("{error}: {problem}", error=type(error).__name__, problem=str(error)[:500])
        events.error("internal", said)
        return 1
    return 0


def _run(job: Job) -> None:
    """Choose by kind; what loads torch is imported here, after the job has been read."""
    from workers.ml import tuning, weightdiff  # noqa: PLC0415 - after the job's settings

    if isinstance(job.recipe, recipes.TuneRecipe):
        # The model runs in processes of its own; so its own threads take nothing from them.
        tuning.run(job, job.recipe).write(job.out)
        return
    if isinstance(job.recipe, recipes.DiffRecipe):
        # Without torch, which takes seconds to load.
        weightdiff.run(job, job.recipe).write(job.out)
        return
    from workers.ml import assess, profile  # noqa: PLC0415 - takes seconds
    from workers.ml.compress import run as compression  # noqa: PLC0415
    from workers.ml.compress import search  # noqa: PLC0415
    from workers.ml.device import prepare  # noqa: PLC0415
    from workers.ml.export import run as exporting  # noqa: PLC0415
    from workers.ml.infer import batch  # noqa: PLC0415
    from workers.ml.train import run as training  # noqa: PLC0415

    prepare(device=job.device, threads=job.threads)
    recipe = job.recipe
    match recipe:
        case recipes.CompressRecipe():
            report = compression.run(job, recipe)
            weightdiff.add_to(report, job)
        case recipes.SearchRecipe():
            report = search.run(job, recipe)
        case recipes.TrainRecipe():
            report = training.run(job, recipe)
        case recipes.InferRecipe():
            report = batch.run(job, recipe)
        case recipes.EvaluateRecipe():
            report = assess.run(job, recipe)
        case recipes.ProfileRecipe():
            report = profile.run(job, recipe)
        case recipes.ExportRecipe():
            report = exporting.run(job, recipe)
    report.write(job.out)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
