"""Tests on a GPU: `make gpu` runs them, where there is one."""

import pytest
import torch

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA"),
]
"""Marks of such a test."""

CUDA = torch.device("cuda")

DEVICES = [
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(CUDA, id="cuda", marks=NEEDS_GPU),
]
"""Values of a parameter ``device``, for what must hold on both."""
