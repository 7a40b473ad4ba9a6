"""Weights with their config from the Hugging Face hub, or from its cache when offline."""

from pathlib import Path

from .errors import UserError
from .weights_file import INDEX

CONFIGS = ("config.json", "preprocessor_config.json")
#: file names under which the hub's models keep their weights, the first there is taken
WEIGHTS = ("model.safetensors", f"model{INDEX}", "pytorch_model.bin")


def fetch(name: str) -> Path:
    """The folder of `OWNER/NAME`, downloaded if it is not in the cache. Raises UserError when it cannot be had.

    HF_HUB_OFFLINE and HF_HUB_CACHE are the hub client's own settings and are respected.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*CONFIGS, "model*.safetensors", f"model{INDEX}"]))
        if find_weights(folder) is None:
            folder = Path(snapshot_download(name, allow_patterns=[*CONFIGS, "pytorch_model.bin"]))
    except Exception as error:  # the client raises its own errors and its transport's
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"hf:{name} is neither cached nor reachable ({reason}); download it where there is a network, "
            "or give a directory that holds its config.json and weights"
        ) from error
    if find_weights(folder) is None:
        raise UserError(f"hf:{name} holds none of {', '.join(WEIGHTS)}")
    return folder


def find_weights(folder: Path) -> Path | None:
    """The weights file in a folder of the hub's layout."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
