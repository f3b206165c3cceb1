"""Training: loss, trainer, train."""
