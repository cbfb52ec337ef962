"""The whole `mdc` command: the app's commands, and those for experiments."""

from mdc_flower.cli import app

__all__ = ["app"]
