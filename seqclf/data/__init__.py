"""Data: users' files, known data sets, sequences, and the plan of which examples make a step."""
