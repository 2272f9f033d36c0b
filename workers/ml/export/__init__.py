"""Conversion to formats that other programs run."""
