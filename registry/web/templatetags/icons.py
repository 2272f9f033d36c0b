"""The pictograms: sixteen units square, drawn with lines in the colour of the text."""

from typing import Final

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

register = template.Library()

_SHAPES: Final = {
    "search": '<circle cx="7" cy="7" r="4.5"/><path d="m10.5 10.5 3.5 3.5"/>',
    "copy": '<rect x="5.5" y="5.5" width="8" height="8" rx="1.8"/>'
    '<path d="M10.5 3.2A1.5 1.5 0 0 0 9 2.5H4A1.5 1.5 0 0 0 2.5 4v5c0 .7.4 1.2 1 1.4"/>',
    "moon": '<path d="M13.5 9.6A5.8 5.8 0 0 1 6.4 2.5a5.8 5.8 0 1 0 7.1 7.1z"/>',
    "sun": '<circle cx="8" cy="8" r="2.8"/><path d="M8 1.5v1.3M8 13.2v1.3M1.5 8h1.3M13.2 8h1.3'
    'M3.4 3.4l.9.9M11.7 11.7l.9.9M12.6 3.4l-.9.9M4.3 11.7l-.9.9"/>',
    "auto": '<circle cx="8" cy="8" r="5.7"/><path d="M8 2.3v11.4M8 4.5h4.4M8 8h5.7M8 11.5h4.4"/>',
    "bolt": '<path d="M8.8 1.8 3.5 9h4l-.8 5.2L12.5 7h-4z"/>',
    "code": '<path d="m5.5 4.5-3.5 3.5 3.5 3.5M10.5 4.5 14 8l-3.5 3.5"/>',
    "plus": '<path d="M8 3v10M3 8h10"/>',
    "close": '<path d="m4 4 8 8M12 4l-8 8"/>',
    "download": '<path d="M8 2v8m-3.2-3L8 10.2 11.2 7M2.5 13.5h11"/>',
    "upload": '<path d="M8 10.5V2.5M4.8 5.5 8 2.3l3.2 3.2M2.5 13.5h11"/>',
    "up": '<path d="M8 13V3.5m-4 4 4-4 4 4"/>',
    "down": '<path d="M8 3v9.5m-4-4 4 4 4-4"/>',
    "check": '<path d="m3 8.5 3.2 3.2L13 4.8"/>',
    "alert": '<path d="M8 2 14.3 13H1.7z"/><path d="M8 6.3v3.2M8 11.3v.1"/>',
    "info": '<circle cx="8" cy="8" r="5.8"/><path d="M8 7.4v3.4M8 5.1v.1"/>',
    "key": '<circle cx="5" cy="11" r="2.5"/><path d="m6.8 9.2 6-6M10.5 5.5l2 2"/>',
    "lock": '<rect x="3.5" y="7" width="9" height="6.5" rx="1.5"/>'
    '<path d="M5.5 7V5a2.5 2.5 0 0 1 5 0v2"/>',
    "people": '<circle cx="6" cy="5.5" r="2.5"/><path d="M1.8 13.5c0-2.5 1.9-4 4.2-4s4.2 1.5 4.2 4'
    'M10.5 3.4a2.3 2.3 0 0 1 0 4.2M12 9.9c1.4.6 2.2 1.9 2.2 3.6"/>',
    "edit": '<path d="M3 13h2.3l7.4-7.4a1.6 1.6 0 0 0-2.3-2.3L3 10.7z"/>',
    "signout": '<path d="M6.5 2.5h-3v11h3M10 5l3 3-3 3M13 8H6.5"/>',
    "cube": '<path d="M8 1.8 13.5 5v6L8 14.2 2.5 11V5z"/>'
    '<path d="M2.7 5.1 8 8.2l5.3-3.1M8 8.2v5.8"/>',
    "table": '<rect x="2.5" y="3" width="11" height="10" rx="1.5"/>'
    '<path d="M2.5 6.5h11M2.5 9.8h11M6.5 6.5V13"/>',
    "chart": '<path d="M2.5 2.5v11h11M5 10.5l2.6-3.2 2.2 1.8 3.4-4.4"/>',
    "play": '<path d="M5 3v10l8-5z"/>',
    "pause": '<path d="M5.5 3v10M10.5 3v10"/>',
    "retry": '<path d="M13 8a5 5 0 1 1-1.6-3.7M13 2.5v3h-3"/>',
    "folder": '<path d="M1.8 12.8V3.7h4.4l1.6 1.8h6.4v7.3z"/>',
    "keyboard": '<rect x="1.8" y="4" width="12.4" height="8" rx="1.5"/>'
    '<path d="M4.5 6.7h.1M7 6.7h.1M9.5 6.7h.1M11.8 6.7h.1M5.5 9.4h5"/>',
    "menu": '<path d="M2.5 4.5h11M2.5 8h11M2.5 11.5h11"/>',
}


@register.simple_tag
def icon(name: str, size: int = 16) -> SafeString:
    return format_html(
        '<svg width="{0}" height="{0}" viewBox="0 0 16 16" fill="none" stroke="currentColor" '
        'stroke-width="1.5" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">'
        "{1}</svg>",
        size,
        mark_safe(_SHAPES[name]),  # noqa: S308 - from the table above
    )
