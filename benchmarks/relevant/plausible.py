"""Plausible models: facts drawn with a seed, and cards that say them in wording that varies.

`plausible_models(360)` is what relevance is measured on; any number may be asked for, and the first
ones are always the same. What a model is for is written by hand in uses.yaml.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

USES = Path(__file__).with_name("uses.yaml")
_CHINESE_SHARE = 0.35
_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "other")
_OWNERS = ("lab", "north", "atelier", "harbor", "meadow", "quarry", "delta", "signal")

# By the kind of task: libraries, backbones, and the metric that it is measured by.
_TABULAR = (("scikit-learn", "xgboost", "pytorch"), ("boosted trees", "a random forest", "an MLP"))
_VISION = (("timm", "pytorch", "onnx"), ("ResNet", "EfficientNet", "MobileNet", "ViT", "ConvNeXt"))
_SOUND = (("pytorch", "transformers", "onnx"), ("wav2vec", "Whisper", "HuBERT", "a small CNN"))
_TEXT = (
    ("transformers", "pytorch", "onnx"),
    ("BERT", "RoBERTa", "DistilBERT", "MiniLM", "an LSTM"),
)
_WRITING = (("transformers", "onnx"), ("T5", "BART", "Qwen", "Llama", "GPT-2"))
_KINDS = {
    "tabular": _TABULAR, "time-series": _TABULAR, "recommendation": _TABULAR, "graph": _TABULAR,
    "reinforcement": _TABULAR, "image": _VISION, "object": _VISION, "text-to-image": _VISION,
    "audio": _SOUND, "automatic": _SOUND, "text-to-speech": _SOUND, "text-generation": _WRITING,
    "text2text": _WRITING, "translation": _WRITING, "summarization": _WRITING,
}  # fmt: skip
SIZES: Mapping[str, tuple[int, Sequence[str], Sequence[str]]] = {
    "small": (4_000_000, ("tiny", "mini", "small"), ("It is tiny.", "Small enough for a phone.",
              "A lightweight network for edge devices.")),
    "base": (90_000_000, ("base", ""), ("Runs on any laptop.", "Of moderate size.", "")),
    "large": (700_000_000, ("large", "xl"), ("A large network; a GPU helps.", "Big and thorough.")),
}  # fmt: skip
_SIZES_ZH = {
    "small": ("轻量级，可在手机上运行。", "小模型，适合端侧部署。"),
    "base": ("普通电脑即可运行。", ""),
    "large": ("大型模型，建议使用 GPU。",),
}
_MADE: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "": (("",), ("",)),
    "quantized": (
        ("Quantized to int8 after training.", "Its weights are 8-bit integers."),
        ("已量化为 int8。", "权重为 8 位整数。"),
    ),
    "pruned": (("Half of its channels were pruned.",), ("剪枝了一半的通道。",)),
    "distilled": (("Distilled from a larger teacher.",), ("由更大的教师模型蒸馏而来。",)),
}
_TRAINED = (
    "Fine-tuned from {base} on {rows} rows that we collected and cleaned.",
    "{base}, trained for {epochs} epochs with AdamW and a cosine schedule.",
    "The backbone is {base}. Training took {hours} hours on one card.",
    "We started from {base} and kept the best of {epochs} epochs on held-out data.",
)
_TRAINED_ZH = (
    "以 {base} 为基础，在 {rows} 条清洗过的数据上微调。",
    "{base} 结构，训练 {epochs} 轮，取验证集上最好的一轮。",
    "骨干网络为 {base}，单卡训练 {hours} 小时。",
)
_LIMITS = (
    "Results get worse on inputs unlike those it was trained on.",
    "It has not been examined for bias. Do not let it decide alone.",
    "Numbers below are from a single seed.",
    "Report problems in the discussion of this repository.",
)
_LIMITS_ZH = (
    "对与训练数据差异较大的输入，效果会下降。",
    "未做偏见评估，请勿单独用于决策。",
    "下列结果来自单次实验。",
)
_DATA = {
    "en": ("The training data is English.", "训练数据为英文。"),
    "zh": ("The training data is Chinese.", "训练数据为中文。"),
    "multilingual": ("It knows several languages.", "支持多种语言。"),
}


@dataclass(frozen=True, kw_only=True)
class Use:
    """What models are for, and how people say so."""

    key: str
    task: str
    near: Sequence[str]
    names: Sequence[str]
    tags: Sequence[str]
    en: Sequence[str]
    zh: Sequence[str]

    @property
    def reads_text(self) -> bool:
        return not self.task.startswith(tuple(_KINDS)) or self.task.startswith(
            ("text-gen", "text2", "summarization")
        )


@dataclass(frozen=True, kw_only=True)
class PlausibleModel:
    """A model's facts, and the card that says some of them."""

    owner: str
    name: str
    use: str
    card_language: str
    data: str
    size: str
    made: str
    task: str
    library: str
    license: str
    parameters: int
    downloads: int
    quality: float
    summary: str
    tags: Sequence[str] = field(default_factory=list)
    body: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.owner}/{self.name}"

    @property
    def card(self) -> str:
        head = yaml.safe_dump(
            {
                "license": self.license,
                "pipeline_tag": self.task,
                "library_name": self.library,
                "tags": list(self.tags),
                "language": [self.data],
            },
            allow_unicode=True,
            sort_keys=False,
        )
        return f"---\n{head}---\n{self.body}"


@cache
def uses() -> Mapping[str, Use]:
    """Read what models are for."""
    read: Mapping[str, Any] = yaml.safe_load(USES.read_text(encoding="utf-8"))
    return {key: Use(key=key, **facts) for key, facts in read.items()}


def plausible_models(count: int, *, seed: int = 0) -> Iterator[PlausibleModel]:
    """Draw so many models, each use in its turn."""
    known = list(uses().values())
    taken: set[str] = set()
    for number in range(count):
        use = known[number % len(known)]
        chance = random.Random(f"{seed}/{number}")
        model = _draw(use, number // len(known), chance)
        while model.full_name in taken:
            model = _draw(use, number // len(known), chance)
        taken.add(model.full_name)
        yield model


def _draw(use: Use, turn: int, chance: random.Random) -> PlausibleModel:
    libraries, bases = next(
        (known for kind, known in _KINDS.items() if use.task.startswith(kind)), _TEXT
    )
    chinese = chance.random() < _CHINESE_SHARE
    data = "en"
    if use.reads_text:
        weights = (1, 6, 2) if chinese else (7, 1, 2)
        data = chance.choices(("en", "zh", "multilingual"), weights)[0]
    if fixed := {"zh", "en", "de"} & set(use.tags):
        data = "multilingual" if len(fixed) > 1 or "de" in fixed else fixed.pop()
    size = chance.choices(list(SIZES), (3, 4, 2))[0]
    made = chance.choices(list(_MADE), (6, 2, 1, 1))[0]
    typical, affixes, said = SIZES[size]
    base = chance.choice(bases)
    affix = chance.choice(affixes)
    name = chance.choice(use.names)
    # A name often says what a model was made of, and sometimes nothing of what it is for.
    if chance.random() < 0.3:
        name = f"{base.split()[-1].lower()}-{chance.choice(use.tags[0].split('-'))}"
    parts = [name, affix, {"quantized": "int8"}.get(made, ""), f"v{turn + 1}" if turn > 4 else ""]
    values = {
        "base": base,
        "rows": f"{chance.randint(2, 900)}000",
        "epochs": chance.randint(2, 40),
        "hours": chance.randint(2, 90),
    }
    phrases = chance.sample(use.zh if chinese else use.en, 2)
    which = 1 if chinese else 0
    body = [
        f"# {name.replace('-', ' ').capitalize()}",
        phrases[1],
        chance.choice(_SIZES_ZH[size] if chinese else said),
        chance.choice(_MADE[made][which]),
        chance.choice(_TRAINED_ZH if chinese else _TRAINED).format(**values),
        _DATA[data][which] if use.reads_text else "",
        chance.choice(_LIMITS_ZH if chinese else _LIMITS),
    ]
    return PlausibleModel(
        owner=chance.choice(_OWNERS),
        name="-".join(part for part in parts if part),
        use=use.key,
        card_language="zh" if chinese else "en",
        data=data,
        size=size,
        made=made,
        task=use.task,
        library=chance.choice(libraries),
        license=chance.choice(_LICENSES),
        parameters=int(typical * chance.uniform(0.4, 2.5)),
        downloads=int(10 ** chance.uniform(0, 5)),
        quality=round(chance.uniform(0.7, 0.97), 3),
        summary=phrases[0],
        tags=[tag for tag in use.tags if chance.random() < 0.6],
        body="\n\n".join(part for part in body if part) + "\n",
    )
