"""Shared helpers: configuration files, ``module:function`` references, cores, seeds."""
