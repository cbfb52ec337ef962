"""Local training in PyTorch: training loop, batches, number formats, BatchNorm, model files."""
