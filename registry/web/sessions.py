"""What an open session is called: the browser and the system of its last request."""

import re

from allauth.core import context
from django.utils.translation import gettext as _

_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("Firefox", "Firefox"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
    ("curl", "curl"),
)
_SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


def device_of(user_agent: str) -> str:
    """Name a browser and its system; one that nobody knows goes by its own first word."""
    browser = next((name for mark, name in _BROWSERS if f"{mark}/" in user_agent), "")
    system = next((name for mark, name in _SYSTEMS if mark in user_agent), "")
    if browser and system:
        return _("%(browser)s on %(system)s") % {"browser": browser, "system": system}
    first = re.match(r"[A-Za-z0-9._-]{1,40}", user_agent)
    return browser or system or (first.group() if first else _("Unknown device"))


def name_for_passkey() -> str:
    """Suggest a name for a passkey that is made in the present browser."""
    request = context.request
    return device_of(request.headers.get("User-Agent", "") if request else "")
