"""Data sets by name, one file each, in the layout in which their authors and torchvision lay them out.

Each exports `NEEDS`, what must lie where in a line, `open_set(source, root, split)`, the pictures of a split, and
`TRAINING_PICTURES` and `CLASSES`, their numbers as the authors give them.
Nothing is downloaded, unpacked or written. A FileNotFoundError that `open_set` lets through becomes the user's line.
"""
