"""The parts of the benchmark of serving: models, contenders, callers and the proofs under load."""
