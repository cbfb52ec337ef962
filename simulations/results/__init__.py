"""Result files of a comparison, and tables made from them."""
