"""Rounds for the user's own training loop, which a site runs as a command.

``docs/own-loop.md`` describes the protocol: a folder for each round, with a plan and a model. The
site's side is in `answers`, `asking`, `command`, `request` and `result`. The side of the user's
script is in `site`, `round`, `learning_rate` and `ranks`, and in callbacks for Lightning and for
Hugging Face's Trainer.
"""
