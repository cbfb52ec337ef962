"""What a comparison leaves: its two files, and tables of them."""
