"""The model of job.py, for the coordinator."""

from torch import nn


def network(shape, classes):
    """Return a linear model of the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
