"""Points out texts that ask a loader to run code that comes with them; nobody here follows that."""

from typing import Any

from registry.errors import Text
from registry.formats.facts import ReadRange

MAX_SCANNED_BYTES = 64 * 1024 * 1024
_BLOCK_BYTES = 1024 * 1024

_LAMBDA = Text("Describes a Keras layer that holds Python code (Lambda); it is never built here.")
_REBUILT = Text("JSON that rebuilds Python objects (jsonpickle); it is never rebuilt here.")
_KEYS: dict[str, Text] = {
    "auto_map": Text(
        "Names Python code of its own (auto_map), which some loaders run; nothing here does."
    ),
    "trust_remote_code": Text(
        "Asks its loader to trust code from elsewhere (trust_remote_code); nothing here does."
    ),
    "py/reduce": _REBUILT,
    "py/object": _REBUILT,
}
_SIGNS: tuple[tuple[bytes, Text], ...] = (
    *((f'"{key}"'.encode(), finding) for key, finding in _KEYS.items()),
    (b'"class_name": "Lambda"', _LAMBDA),
    (b"!!python/", Text("YAML that builds Python objects; only plain values are read here.")),
)


def find_remote_code(data: bytes) -> tuple[Text, ...]:
    """Give a finding for each kind of hidden code that `data` speaks of."""
    return tuple(dict.fromkeys(finding for sign, finding in _SIGNS if sign in data))


def asks_for_code(value: Any) -> tuple[Text, ...]:
    """Give the same for JSON that was read: escapes hide a key from a look at the bytes."""
    found: dict[Text, None] = {}
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            found.update((finding, None) for key, finding in _KEYS.items() if key in item)
            if item.get("class_name") == "Lambda":
                found[_LAMBDA] = None
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return tuple(found)


def mentions_remote_code(size: int, read: ReadRange) -> tuple[Text, ...]:
    """Look for the same through a large file, block by block."""
    overlap = max(len(sign) for sign, _ in _SIGNS)
    found: dict[Text, None] = {}
    for start in range(0, min(size, MAX_SCANNED_BYTES), _BLOCK_BYTES):
        block = read(start, min(size, start + _BLOCK_BYTES + overlap))
        found.update(dict.fromkeys(find_remote_code(block)))
    return tuple(found)
