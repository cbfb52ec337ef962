"""The engines that simulate a run: in this process, or on Ray through a private SuperLink.

Both run the same ServerApp and ClientApp, and the same config gives the same bits on both. This
file imports neither, because they import PyTorch, which other modules of the package do not need.
"""
