"""What a run looks like afterwards, or so far: its picture, and a page to read and print.

Everything here reads plain files of a run directory; nothing imports PyTorch.
"""
