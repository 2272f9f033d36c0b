"""The views of the native API, one module for each family of addresses."""
