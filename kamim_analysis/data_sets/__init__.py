"""Data sets by name, one file each, in the layout in which their authors and torchvision lay them out.

Each exports `NEEDS`, what must lie where in a line, and `open_set(source, root, split)`, the pictures of a split.
Nothing is downloaded, unpacked or written. A FileNotFoundError that `open_set` lets through becomes the user's line.
"""
