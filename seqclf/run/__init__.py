"""A run directory: its files, checkpoints and weights, and how a run goes on."""
