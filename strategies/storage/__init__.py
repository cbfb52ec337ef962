"""The run directory: results of a run, files for live views, and everything needed to resume.

- `model_files` stores arrays.
- `updates` stores the accepted updates of the open round.
- `checkpoints` stores everything that the next round depends on.
- `lock` admits one coordinator at a time.
- `run_directory` combines them.
"""
