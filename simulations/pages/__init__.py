"""Tables, pictures and pages of comparisons, drawn from their files."""
