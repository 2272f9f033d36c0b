"""What others publish of the forms that exports are written in, and what holds a file against it.

`classes.json` is a slice of the model classes of the Python packages kserve 0.21.0 and kubernetes
33.1.0 (both Apache-2.0, as their wheels on PyPI say): the names and types of what an
InferenceService may have. `python -m tests.registry.published.slice WHEELS` makes it anew.
"""
