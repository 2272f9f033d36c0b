"""Compile the message catalogues, without asking the machine for gettext."""

from pathlib import Path

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LOCALE = Path(__file__).resolve().parents[2] / "locale"


def compile_catalogues() -> None:
    """Write each `.mo` that is missing or older than its `.po`."""
    for source in sorted(LOCALE.glob("*/LC_MESSAGES/*.po")):
        target = source.with_suffix(".mo")
        if target.exists() and target.stat().st_mtime_ns > source.stat().st_mtime_ns:
            continue
        with source.open("rb") as file:
            catalogue = read_po(file, locale=source.parts[-3])
        draft = target.with_suffix(".mo-draft")
        with draft.open("wb") as file:
            write_mo(file, catalogue)
        draft.replace(target)


if __name__ == "__main__":
    compile_catalogues()
