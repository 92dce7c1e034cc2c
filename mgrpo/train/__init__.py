"""Training loops: one readable file per loop, sharing only pure functions and the run folder."""
