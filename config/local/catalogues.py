"""Compile the message catalogues, without asking the machine for gettext."""

from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from django.conf import settings


def compile_catalogues() -> None:
    """Write each `.mo` that is missing or older than its `.po`."""
    for folder in settings.LOCALE_PATHS:
        for source in sorted(folder.glob("*/LC_MESSAGES/*.po")):
            target = source.with_suffix(".mo")
            if target.exists() and target.stat().st_mtime_ns > source.stat().st_mtime_ns:
                continue
            with source.open("rb") as file:
                catalogue = read_po(file, locale=source.parts[-3])
            draft = target.with_suffix(".mo-draft")
            with draft.open("wb") as file:
                write_mo(file, catalogue)
            draft.replace(target)
