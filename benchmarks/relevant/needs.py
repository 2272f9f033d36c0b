"""What people look for, and how well each model would serve them: by rule, from facts alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from benchmarks.relevant.plausible import PlausibleModel, uses

NEEDS = Path(__file__).with_name("needs.yaml")
# How many models the set has; each use five times.
MODELS = 360


@dataclass(frozen=True, kw_only=True)
class Need:
    """A query as somebody types it, and what would serve them.

    `words` says whether some card may say it so: plain, other, typo or mixed.
    """

    q: str
    uses: Sequence[str]
    words: str
    size: str = ""
    data: str = ""
    made: str = ""

    @property
    def language(self) -> str:
        """Say in which language it is asked: en, zh, or mixed."""
        chinese = any("\u4e00" <= letter <= "\u9fff" for letter in self.q)
        latin = any("a" <= letter.lower() <= "z" for letter in self.q)
        return "mixed" if chinese and latin else "zh" if chinese else "en"

    def grade(self, model: PlausibleModel) -> int:
        """Grade how a model serves: 3 all that was asked, 2 but for one thing, 1 a near use."""
        if model.use in self.uses:
            missed = sum(
                bool(wanted) and wanted != has
                for wanted, has in (
                    (self.size, model.size),
                    (self.data, self.data if model.data == "multilingual" else model.data),
                    (self.made, model.made),
                )
            )
            return 3 if not missed else 2
        near = {key for one in self.uses for key in uses()[one].near}
        return 1 if model.use in near else 0


@cache
def needs() -> Sequence[Need]:
    """Read what people look for."""
    read: Sequence[Mapping[str, Any]] = yaml.safe_load(NEEDS.read_text(encoding="utf-8"))
    return [Need(**facts) for facts in read]


def grades(need: Need, models: Sequence[PlausibleModel]) -> dict[str, int]:
    """Give the grade of each model that serves at all, by its full name."""
    found = {model.full_name: need.grade(model) for model in models}
    return {name: grade for name, grade in found.items() if grade}
