"""The training jobs that mdc-flower ships."""
