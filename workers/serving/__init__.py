"""The online data plane: calls in the protocols of the field, answered by models in processes."""
