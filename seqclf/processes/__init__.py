"""What a run stands on: its processes, their device and memory, and the signals they get."""
