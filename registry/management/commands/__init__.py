"""One module to a command of `manage.py`."""
