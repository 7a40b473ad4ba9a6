"""manifest.json: what ran, on what, with what."""

import hashlib
import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from . import invocation, processes
from .encoders import anatomy
from .opening import OpenedModel
from .sampling import ChosenPictures
from .version import __version__

#: what numbers may depend on, of those that are installed
_LIBRARIES = (
    "torch torchvision timm torchmetrics numpy scipy scikit-learn scikit-image captum pillow "
    "opencv-contrib-python-headless faiss-cpu faiss-gpu"
).split()


def model_entry(opened: OpenedModel, skipped: dict[str, str]) -> dict[str, Any]:
    """What the manifest says of a model."""
    body = anatomy(opened.encoder)
    last = body.blocks[-1]
    return {
        "label": opened.label,
        "spec": opened.spec,
        **opened.provenance,
        "layers": len(body.blocks),
        "heads": [block.heads for block in body.blocks],
        "grid": list(last.grid),
        "patch_size": list(last.patch_size),
        "image_size": list(body.image_size),
        "skipped": skipped,
    }


def manifest(data: ChosenPictures, models: list[dict[str, Any]], *, seed: int, **settings: Any) -> dict[str, Any]:
    """Enough to tell whether two results may be compared, and to run the command again (`kamim rerun`).

    `settings` are the command's own, such as the pooling. `rerun` is None where no command wrote it that can be.
    """
    running = invocation.current()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "rerun": None if running is None else asdict(running),
        **surroundings(),
        "processes": processes.count(),
        "seed": seed,
        **settings,
        "data": {
            "source": data.source,
            "classes": list(data.test.classes),
            "neighbours": len(data.bank_indices) if data.bank else "leave one out",
            "images": len(data.test_indices),
            "fingerprint": names_digest(data),
            # a training has looked at its pictures long before, and is not run again from here
            "marks": None if running is None else marks_digest(data),
            "unreadable": sorted(data.unreadable.names),
            # while the command ran: each number may be of the picture before or after
            "changed": data.changed(),
        },
        "models": models,
    }


def surroundings() -> dict[str, Any]:
    """What numbers may depend on besides the command, its models and its data: mostly in their last digits."""
    return {
        "kamim_analysis": __version__,
        "versions": {name: found for name in _LIBRARIES if (found := _version(name))},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        # sums are split among threads, and take as many numbers at a time as the processor's registers hold
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def names_digest(data: ChosenPictures) -> str:
    """SHA-256 of the names and the order of the pictures that are analysed."""
    return _digest(data.test.identity(i) for i in data.test_indices)


def marks_digest(data: ChosenPictures) -> str:
    """SHA-256 of what marks each picture, those that serve as neighbours too; nothing is decoded.

    That is its name with the size of a file, or the check sum of what is packed (`Pictures.stamp`).
    """
    chosen = [(data.test, data.test_indices), *([(data.bank, data.bank_indices)] if data.bank else [])]
    return _digest(pictures.stamp(i) for pictures, indices in chosen for i in indices)


def _digest(names: Iterable[str]) -> str:
    return hashlib.sha256(json.dumps([*names]).encode()).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
