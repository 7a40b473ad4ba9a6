"""CIFAR-10, the Python version."""

from pathlib import Path

from ..data import Pictures, Split
from ._cifar import open_batches

NEEDS = (
    "DIR/cifar-10-batches-py/data_batch_1 to data_batch_5, test_batch and batches.meta, the unpacked "
    "cifar-10-python.tar.gz"
)
TRAINING_PICTURES = 50_000
CLASSES = 10
_FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{i}" for i in range(1, 6)),
    "val": ("test_batch",),
}


def open_set(source: str, root: Path, split: Split) -> Pictures:
    """50,000 training pictures; the 10,000 test pictures serve as validation pictures."""
    return open_batches(source, root / "cifar-10-batches-py", _FILES[split], "labels", ("batches.meta", "label_names"))
