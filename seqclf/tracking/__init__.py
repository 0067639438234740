"""Mirrors of a run in Weights & Biases and TensorBoard, each a process of its own."""
