"""iNaturalist 2021: ten thousand species, their pictures in class folders named 00000_KINGDOM_..._GENUS_SPECIES.

The class is the species (torchvision's target type `full`); where only the mini training set lies there, it is read.
"""

import errno
import logging
from pathlib import Path

from ..data import Pictures, Split
from ._class_folders import class_folders, open_class_folders

NEEDS = (
    "DIR/2021_train/00000_Animalia_Annelida_..._terrestris/*.jpg, or the same in DIR/2021_train_mini, and "
    "DIR/2021_valid/00000_Animalia_Annelida_..._terrestris/*.jpg (the archives call them train, train_mini and val, "
    "which will do)"
)
TRAINING_PICTURES = 2_686_843
CLASSES = 10_000
# torchvision's names of the folders, then those in the archives
_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("2021_train", "train", "2021_train_mini", "train_mini"),
    "val": ("2021_valid", "val"),
}

log = logging.getLogger(__name__)


def open_set(source: str, root: Path, split: Split) -> Pictures:
    """The pictures of a split; classes are numbered by their folders, those of both splits together."""
    here = {one: _folder(root, one) for one in _FOLDERS}
    folder = here[split]
    if folder is None:
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(root / _FOLDERS[split][0]))
    if "mini" in folder:
        log.info("%s: %s holds the mini training set only", source, root)
    classes = sorted({name for one in here.values() if one is not None for name in class_folders(root / one)})
    return open_class_folders(source, root, folder, classes, _species)


def _folder(root: Path, split: Split) -> str | None:
    return next((name for name in _FOLDERS[split] if (root / name).is_dir()), None)


def _species(folder: str) -> str:
    """The two words of a species.

    >>> _species("00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris")
    'Lumbricus terrestris'
    """
    return " ".join(folder.split("_")[-2:])
