"""Tables, pictures and HTML pages of comparisons, made from their result files."""
