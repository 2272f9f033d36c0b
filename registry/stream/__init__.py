"""Moves bytes and events outside Django's request cycle, once a door has said who is asking."""
