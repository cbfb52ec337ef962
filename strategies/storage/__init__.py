"""The run directory: what a run leaves behind, what others watch, and what a resumed run needs.

`files` writes whole files or none and knows a damaged one; `model_files` keeps arrays;
`updates` holds the accepted updates of the open round; `checkpoints` all that the next round
depends on; `lock` lets one coordinator in; `run_directory` puts them together.
"""
