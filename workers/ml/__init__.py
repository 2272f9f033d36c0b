"""A pure PyTorch library: training, compression and inference over plain files.

It knows no Django, no broker, no database and no network; `python -m workers.ml job.json` is its
only door.
"""
