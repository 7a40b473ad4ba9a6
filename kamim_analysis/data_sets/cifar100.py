"""CIFAR-100, the Python version, with its hundred fine classes."""

from pathlib import Path

from ..data import Pictures, Split
from ._cifar import open_batches

NEEDS = "DIR/cifar-100-python/train, test and meta, the unpacked cifar-100-python.tar.gz"
TRAINING_PICTURES = 50_000
CLASSES = 100
_FILES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("test",)}


def open_set(source: str, root: Path, split: Split) -> Pictures:
    """50,000 training pictures; the 10,000 test pictures serve as validation pictures."""
    return open_batches(source, root / "cifar-100-python", _FILES[split], "fine_labels", ("meta", "fine_label_names"))
