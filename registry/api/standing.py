"""What answers about a version that is not at its best say in their headers."""

from datetime import datetime

from registry.models import VersionState

NOTICE = "X-Modelyard-Notice"
_LONGEST = 300


def standing_headers(
    *, state: str, state_reason: str, state_changed_at: datetime | None, **_: object
) -> dict[str, str]:
    """Say that a version is deprecated or archived, and why; nothing of any other.

    `Deprecation` is RFC 9745's, for clients that know it. The notice is a structured field (RFC
    9651): the state, and the reason as a display string, percent-encoded UTF-8.
    """
    if state not in {VersionState.DEPRECATED, VersionState.ARCHIVED}:
        return {}
    headers = {NOTICE: state}
    if state_reason:
        headers[NOTICE] += f';reason=%"{_display(state_reason)}"'
    if state == VersionState.DEPRECATED and state_changed_at is not None:
        headers["Deprecation"] = f"@{int(state_changed_at.timestamp())}"
    return headers


def _display(text: str) -> str:
    """Encode a text as the inside of a display string; a very long one is cut."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}…"
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'%"' else f"%{byte:02x}"
        for byte in text.encode()
    )
