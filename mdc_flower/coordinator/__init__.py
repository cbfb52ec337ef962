"""The coordinator's work outside the rounds: admission, evaluation, resume, trackers."""
