"""Places365-Standard: pictures in folders, their classes in lists.

Read from the lists' text directly: torchvision's reader refuses every list but the complete one (by check sum) and
numbers class names by alphabet, whatever the category file says.
"""

import errno
from pathlib import Path

import numpy as np

from ..data import Files, Pictures, Split
from ..errors import UserError

NEEDS = (
    "DIR/categories_places365.txt, DIR/places365_train_standard.txt with DIR/data_large_standard/a/airfield/*.jpg and "
    "DIR/places365_val.txt with DIR/val_large/*.jpg, or data_256_standard and val_256 for the small pictures"
)
TRAINING_PICTURES = 1_803_460
CLASSES = 365
_LISTS: dict[Split, str] = {"train": "places365_train_standard.txt", "val": "places365_val.txt"}
# torchvision's name of the folder, then that in the archive; the pictures, large or small, are put in for {}
_FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("data_{}_standard", "data_{}"), "val": ("val_{}",)}
_SIZES = ("large", "256")


def open_set(source: str, root: Path, split: Split) -> Pictures:
    """The pictures of a split: the large ones, as timm reads, where both splits have them, else those that are there.

    Whether a listed file exists shows when it is read: there are 1.8 million.
    """
    classes = _labelled(source, root / "categories_places365.txt")
    place = {number: name for name, number in classes}
    folder, files = _folder(root, split), _labelled(source, root / _LISTS[split])
    labels = np.array([label for _, label in files])
    unknown = sorted(set(labels.tolist()) - set(range(len(classes))))
    if unknown or set(place) != set(range(len(classes))):
        raise UserError(f"{source!r}: {_LISTS[split]!r} and 'categories_places365.txt' do not number the same classes")
    # /b/bazaar/indoor: the letter is a folder, no part of the name
    names = tuple(place[i].removeprefix("/").partition("/")[2] for i in range(len(classes)))
    return Files(root, [f"{folder}/{name.lstrip('/')}" for name, _ in files], labels).pictures(source, names)


def _labelled(source: str, path: Path) -> list[tuple[str, int]]:
    """The lines `NAME NUMBER` of a list. Raises FileNotFoundError, and UserError for a line of another form."""
    found = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, _, number = line.strip().rpartition(" ")
        if not (name and number.isdecimal()):
            raise UserError(f"{source!r}: line {i} of {str(path)!r} is not a name and the number of a class: {line!r}")
        found.append((name, int(number)))
    return found


def _folder(root: Path, split: Split) -> str:
    """The folder of a split's pictures, of a size that both splits have if there is one."""
    here, other = _by_size(root, split), _by_size(root, "val" if split == "train" else "train")
    for size in sorted(here, key=lambda size: size not in other):
        return here[size]
    raise FileNotFoundError(errno.ENOENT, "no such folder", str(root / _FOLDERS[split][0].format(_SIZES[0])))


def _by_size(root: Path, split: Split) -> dict[str, str]:
    """The folders of a split's pictures that are there, the large ones first."""
    found: dict[str, str] = {}
    for size in _SIZES:
        for name in (form.format(size) for form in _FOLDERS[split]):
            if (root / name).is_dir():
                found.setdefault(size, name)
    return found
