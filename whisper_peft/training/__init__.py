"""Training: prepare a run, make its steps, score it, and leave the result in its folder."""
