"""A federation of two sites, for the commands for real sites."""

from tests.mdc_flower.deployment.conftest import federation

__all__ = ["federation"]
