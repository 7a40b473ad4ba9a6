"""ImageNet-1k (ILSVRC2012), training and validation pictures in class folders, or the latter flat with the devkit.

Classes are numbered by the order of their folders' names, as torchvision and every published classifier number them.
"""

import errno
import io
import re
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from ..data import Files, Pictures, Split
from ..errors import UserError
from ._class_folders import class_folders, image_names, open_class_folders, told_apart

NEEDS = (
    "DIR/train/n01440764/*.JPEG and DIR/val/n01440764/*.JPEG, the archives unpacked; for DIR/val/*.JPEG without class "
    "folders also DIR/ILSVRC2012_devkit_t12.tar.gz, or its folder"
)
TRAINING_PICTURES = 1_281_167
CLASSES = 1000
_DEVKIT = "ILSVRC2012_devkit_t12"
_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_LARGEST_FILE = 16_000_000
_VALIDATION_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def open_set(source: str, root: Path, split: Split) -> Pictures:
    """The pictures of a split; neither devkit nor torchvision's meta.bin is needed where class folders tell classes."""
    folders = class_folders(root / split)
    if split == "val" and not folders:
        return _open_flat(source, root)
    return open_class_folders(source, root, split, _classes(root), _described)


def _open_flat(source: str, root: Path) -> Pictures:
    """Validation pictures as their archive holds them: the number in a file's name tells its line of the ground truth.

    Not its place among the files, by which one missing picture would shift the labels of all that follow.
    """
    truth, classes = _validation_truth(root), _classes(root)
    number = {name: i for i, name in enumerate(classes)}
    files = image_names(root / "val")
    if not files:
        raise FileNotFoundError(errno.ENOENT, "no images", str(root / "val" / "*.JPEG"))
    labels = np.array([number[_truth_of(source, file, truth)] for file in files])
    names = told_apart(classes, map(_described, classes))
    return Files(root, [f"val/{file}" for file in files], labels).pictures(source, names)


def _truth_of(source: str, file: str, truth: list[str]) -> str:
    """The synset of a validation picture."""
    match = _VALIDATION_FILE.fullmatch(file)
    if match is None or not 1 <= int(match[1]) <= len(truth):
        raise UserError(
            f"{source!r}: 'val/{file}' lies in no class folder and is none of ILSVRC2012_val_00000001.JPEG to "
            f"ILSVRC2012_val_{len(truth):08}.JPEG, of which {_TRUTH} tells the class"
        )
    return truth[int(match[1]) - 1]


def _classes(root: Path) -> list[str]:
    """Synsets of both splits together, so that a class has one number in both."""
    found = set(class_folders(root / "train")) if (root / "train").is_dir() else set()
    if (root / "val").is_dir():
        found |= set(class_folders(root / "val") or (_validation_truth(root) if _has_devkit(root) else ()))
    return sorted(found)


def _has_devkit(root: Path) -> bool:
    return (root / _DEVKIT).is_dir() or (root / f"{_DEVKIT}.tar.gz").is_file()


def _validation_truth(root: Path) -> list[str]:
    """The synset of each validation picture, in the order of their numbers, from the devkit."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(_devkit_file(root, _META)), squeeze_me=True)["synsets"])
        synset = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        return [synset[int(line)] for line in _devkit_file(root, _TRUTH).split()]
    except OSError:
        raise
    except Exception as error:  # scipy's reader, zlib and tarfile meet damage in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the devkit in {str(root)!r} is damaged ({_META} or {_TRUTH}): {reason}") from error


def _devkit_file(root: Path, name: str) -> bytes:
    """A file of the devkit's folder, or of its archive, which is not unpacked for it."""
    if (root / _DEVKIT).is_dir():
        with (root / _DEVKIT / "data" / name).open("rb") as file:
            return _bounded(file.read)
    path = root / f"{_DEVKIT}.tar.gz"
    with tarfile.open(path) as archive:
        try:
            member = archive.extractfile(f"{_DEVKIT}/data/{name}")
        except KeyError:
            member = None
        if member is None:
            raise FileNotFoundError(errno.ENOENT, "not in the archive", f"{path}/{name}")
        return _bounded(member.read)


def _bounded(read: Callable[[int], bytes]) -> bytes:
    """A small file's bytes. Raises ValueError for one of more than 16 MB: the devkit's have less than 1 MB."""
    content = read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise ValueError(f"a file of more than {_LARGEST_FILE:,} bytes")
    return content


def _described(synset: str) -> str:
    """The first of a synset's words; the folder's name where it is no synset of ImageNet-1k."""
    return _words().get(synset, synset).split(",")[0]


@cache
def _words() -> dict[str, str]:
    """WordNet's words for each synset, by timm's table: the devkit is not needed for them."""
    from timm.data import ImageNetInfo

    words: dict[str, str] = ImageNetInfo().label_descriptions(as_dict=True)
    return words
