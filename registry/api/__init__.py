"""Doors for machines: each protocol parses, calls a service, renders."""
