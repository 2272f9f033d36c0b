"""Making a version smaller."""
