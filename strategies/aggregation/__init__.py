"""Combine the updates of several sites into one model."""
