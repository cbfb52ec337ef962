"""What a person sees in a terminal: the live view, checks, followed logs."""
