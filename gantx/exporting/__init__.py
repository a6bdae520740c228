"""Generators for other programs: ONNX, torch.export, Hugging Face, a page for the browser."""
