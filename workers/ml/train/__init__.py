"""Training: one loop that can be stopped anywhere and goes on as if nothing had happened."""
