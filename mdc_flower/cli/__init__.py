"""The `mdc` command."""
