"""Benchmarks of training, the coordinator and deployments."""
