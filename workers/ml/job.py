"""One job as the runner hands it over: the recipe, where its inputs lie, where results go."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from registry.errors import Invalid
from registry.recipes import Recipe, kind_of, parse_recipe, parse_reference
from workers.ml.events import Events
from workers.ml.interrupt import Interrupt


@dataclass(frozen=True)
class Input:
    """A version laid out as files, and its exact reference.

    The log and the report of a job are for those who see its inputs. What else it writes goes to
    everybody who sees the result: files and the message of a version say `title`, not `ref`.
    """

    path: Path
    ref: str
    role: str
    may_be_named: bool

    @property
    def title(self) -> str:
        return self.ref if self.may_be_named else f"a {kind_of(self.role)} that is not public"

    @property
    def repository(self) -> str | None:
        """Give the name of its repository, where it may be named."""
        if not self.may_be_named:
            return None
        reference = parse_reference(self.ref)
        return f"{reference.namespace}/{reference.name}"


class Part(NamedTuple):
    """Which part of the whole a job computes: the first of four is 0 of 4."""

    at: int
    of: int


WHOLE = Part(0, 1)


class PartDone(NamedTuple):
    """What a part of this job left: its file, and the summary of its report."""

    path: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Everything that job.json says, checked, and the means to report on it."""

    job_id: str
    recipe: Recipe
    inputs: dict[str, Input]
    out: Path
    checkpoints: Path
    device: str
    threads: int
    events: Events
    interrupt: Interrupt
    part: Part = WHOLE
    parts: tuple[PartDone, ...] = ()

    @property
    def files(self) -> Path:
        """Where the files of the new version go."""
        return self.out / "files"

    def input(self, role: str) -> Input:
        found = self.inputs.get(role)
        if found is None:
            raise Invalid("The job has no {role}.", code="missing_input", role=role)
        return found

    def start_over(self) -> None:
        """Empty the result folder: a former attempt may have left half a result."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.files.mkdir(parents=True)
        self.checkpoints.mkdir(parents=True, exist_ok=True)


def read_job(path: Path, events: Events, interrupt: Interrupt) -> Job:
    """Read job.json; relative paths in it start at its own folder."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        folder = path.resolve().parent
        inputs = {
            role: Input(folder / given["path"], given["ref"], role, given["may_be_named"] is True)
            for role, given in data["inputs"].items()
        }
        return Job(
            job_id=str(data["job_id"]),
            recipe=parse_recipe(data["recipe"]),
            inputs=inputs,
            out=folder / data["out"],
            checkpoints=folder / data["checkpoints"],
            device=_device(data.get("device", "cpu")),
            threads=max(1, int(data.get("threads", 1))),
            events=events,
            interrupt=interrupt,
            part=Part(*map(int, data.get("part", WHOLE))),
            parts=tuple(
                PartDone(folder / part["path"], part["summary"]) for part in data.get("parts", ())
            ),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(
            "{file} cannot be read: {problem}", code="bad_job", file=path.name, problem=repr(error)
        ) from error


def _device(name: object) -> str:
    if name not in {"cpu", "cuda"}:
        raise Invalid("{name!r} is no device; choose cpu or cuda.", code="bad_job", name=name)
    return str(name)
