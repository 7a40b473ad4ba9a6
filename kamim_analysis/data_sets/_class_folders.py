"""Data sets with a folder for each class in a folder for each split."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from ..data import IMAGE_SUFFIXES, Files, Pictures
from ..errors import UserError


def open_class_folders(
    source: str, root: Path, folder: str, classes: Sequence[str], described: Callable[[str], str]
) -> Pictures:
    """The pictures in `root`/`folder`/CLASS/ for each of `classes`, which are numbered in their order.

    Faster than a walk of any directory, which looks at every file of both splits: ImageNet has 1.3 million. `described`
    makes a class's name from its folder's.
    """
    here = set(class_folders(root / folder))
    names, labels = [], []
    for number, name in enumerate(classes):
        files = image_names(root / folder / name) if name in here else []
        names += [f"{folder}/{name}/{file}" for file in files]
        labels += [number] * len(files)
    if not names:
        raise UserError(f"{source!r}: {str(root / folder)!r} holds no images in class folders")
    return Files(root, names, np.array(labels)).pictures(source, told_apart(classes, map(described, classes)))


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted, hidden ones left out. Raises FileNotFoundError."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())


def image_names(folder: Path) -> list[str]:
    """Names of the picture files in `folder`, sorted, hidden ones left out."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries)
        return sorted(name for name in names if name[0] != "." and Path(name).suffix.lower() in IMAGE_SUFFIXES)


def told_apart(identifiers: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    """The names, those that several classes share followed by their identifier: ImageNet has two cranes.

    >>> told_apart(["n1", "n2", "n3"], ["crane", "crane", "tench"])
    ('crane (n1)', 'crane (n2)', 'tench')
    """
    names = list(names)
    count = Counter(names)
    pairs = zip(names, identifiers, strict=True)
    return tuple(name if count[name] == 1 else f"{name} ({identifier})" for name, identifier in pairs)
