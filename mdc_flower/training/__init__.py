"""Local training in PyTorch: the loop, batches, number formats, BatchNorm, model files."""
