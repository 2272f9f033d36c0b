"""The web UI: pages for people; each view parses, calls one service or QuerySet, renders."""
