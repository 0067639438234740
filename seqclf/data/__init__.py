"""Data: sequences in memory, named sources, and the plan that says which examples make a step."""
