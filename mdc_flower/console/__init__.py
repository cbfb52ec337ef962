"""Terminal output: the live view of a run, checks, and log files that are followed."""
