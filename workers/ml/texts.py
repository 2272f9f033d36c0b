"""Texts on their way into a model and its vectors on the way out; loads neither torch nor data."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from registry.errors import Invalid

MAX_CHARACTERS = 1_000_000
MAX_LENGTH = 512


def clean_text(value: object) -> str:
    """Normalise a text; what is empty afterwards is no row."""
    if value is None:
        return ""
    text = unicodedata.normalize("NFC", str(value)[:MAX_CHARACTERS])
    return " ".join(text.replace("\x00", " ").split())


def longest_text(path: Path, config: dict[str, Any]) -> int:
    """Tell how many word pieces the model was meant for."""
    shipped = _read(path / "sentence_bert_config.json")
    given = shipped.get("max_seq_length") if isinstance(shipped, dict) else None
    if not isinstance(given, int):
        given = config.get("max_position_embeddings")
    return min(given, MAX_LENGTH) if isinstance(given, int) and given > 0 else MAX_LENGTH // 2


def load_tokenizer(path: Path, *, max_length: int, pad_id: int) -> Tokenizer:
    """Read tokenizer.json; texts are cut and padded as the model expects."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise Invalid(
            "The version has no tokenizer.json, so texts cannot be turned into word pieces.",
            code="missing_tokenizer",
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise Invalid(
            "tokenizer.json cannot be read: {problem}", code="malformed_file", problem=error
        ) from error
    pad_token = tokenizer.id_to_token(pad_id)
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(pad_id=pad_id, pad_token=pad_token or "[PAD]")
    return tokenizer


def pool(hidden_BLH: NDArray[Any], mask_BL: NDArray[Any]) -> NDArray[Any]:
    """Average over real tokens and scale to unit length."""
    mask_BL1 = mask_BL[..., None].astype(hidden_BLH.dtype)
    vector_BH = (hidden_BLH * mask_BL1).sum(1) / np.maximum(mask_BL1.sum(1), 1e-9)
    norm_B1 = np.linalg.norm(vector_BH, axis=1, keepdims=True)
    return np.asarray(vector_BH / np.maximum(norm_B1, 1e-12))


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
