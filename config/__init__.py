"""The composition root: settings, URLs and entry points; nothing imports it."""
