"""What the coordinator does beside the rounds: admission, evaluation, resume, event files."""
