"""The exported directory: what stands in it, and whether one may be replaced. Imports no torch before it writes."""

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..plain_data import json_of
from ..weights_file import OURS

if TYPE_CHECKING:
    from ._exported import Exported

CARD, WEIGHTS = "README.md", "model.safetensors"
_CONFIG = "config.json"
_FILES = {CARD, WEIGHTS, _CONFIG, "preprocessor_config.json"}


def holds_export(folder: Path) -> bool:
    """Whether all in `folder` was written by an earlier export: nobody's download, no clone with its history."""
    if not {_CONFIG} <= {path.name for path in folder.iterdir()} <= _FILES:
        return False
    try:
        config = json_of((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and OURS in config


def write(exported: "Exported", card: str, folder: Path) -> None:
    """Write weights, configs and model card."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in exported.tensors.items()}
    # transformers refuses a file that does not say of which framework its tensors are
    try:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # which a full disk is, too
        raise OSError(errno.EIO, str(error), str(folder / WEIGHTS)) from error
    for name, config in exported.configs.items():
        (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    # safetensors makes files that nobody else may read; these are meant for others
    (folder / WEIGHTS).chmod((folder / CARD).stat().st_mode)
