"""Whether machines are fit to train: before any ssh, and on every rank."""
