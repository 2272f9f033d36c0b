"""PostgreSQL as the registry uses it: Django's backend, with cheaper checks and kept plans."""
