"""A trained model as an ONNX file, which needs neither Python nor torch."""
