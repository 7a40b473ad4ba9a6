"""manifest.json: what ran, on what, with what."""

import hashlib
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch

from . import processes
from .encoders import anatomy
from .opening import OpenedModel
from .sampling import ChosenPictures
from .version import __version__


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
    """Enough to tell whether two results may be compared; `settings` are the command's own, such as the pooling."""
    names = [data.test.identity(i) for i in data.test_indices]
    return {
        "kamim_analysis": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "versions": {name: version(name) for name in ("torch", "timm", "torchmetrics", "numpy", "scikit-learn")},
        "python": platform.python_version(),
        "processes": processes.count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seed": seed,
        **settings,
        "data": {
            "source": data.source,
            "classes": list(data.test.classes),
            "images": len(names),
            "neighbours": len(data.bank_indices) if data.bank else "leave one out",
            # of the names and order of the pictures that were analysed
            "fingerprint": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
            "unreadable": sorted(data.unreadable.names),
        },
        "models": models,
    }
