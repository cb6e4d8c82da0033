"""Exact and quantising passes over ONNX graphs; none of them knows torch."""
