"""Names of the protocol between a site and its command; standard library only."""

PROTOCOL = 3
"""Version of the protocol, ``protocol`` in the plan."""

FIRST_ROUND = "MDC_ROUND"
"""Environment variable of the command: the folder of the first round that it gets."""

PLAN, MODEL = "plan.json", "model.safetensors"
"""What the site writes into a round's folder."""

TRAINED, RESULT, PROGRESS = "trained.safetensors", "result.json", "progress.jsonl"
"""What the command writes into a round's folder; the result comes last."""

TRAIN, EVALUATE = "train", "evaluate"
"""Kinds of rounds."""

SEEDS = 2**31
"""Seeds are below this number, because some libraries take no larger ones."""
