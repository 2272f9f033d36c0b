"""Running a version: one loaded model, and batches of rows through it."""
