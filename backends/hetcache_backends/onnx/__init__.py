"""ONNX: writing a model as graphs, and running them."""
