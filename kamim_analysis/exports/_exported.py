"""What an export is made of, before it is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..encoders import anatomy
from ..opening import OpenedModel
from ..version import __version__
from ..weights_file import OURS

#: stands for the exported directory in what is said of how to load it, always within double quotes
FOLDER = "FOLDER"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A model in another library's form, and how that library loads it."""

    library: str
    """The library's name on the hub, which is also the package to install."""
    tensors: Mapping[str, Tensor]
    configs: Mapping[str, Mapping[str, Any]]
    """JSON files by name."""
    loading: str
    """A Python expression that loads the model from the directory FOLDER."""
    from_hub: str
    """The same from the hub."""
    usage: str
    """A short program, from a picture to features."""
    notes: tuple[str, ...] = ()
    """What the form does not hold, a line each."""

    def loaded_from(self, folder: str | Path) -> str:
        """The expression that loads it from `folder`."""
        return _in_place(self.loading, folder)

    def used_from(self, folder: str | Path) -> str:
        """The program that loads it from `folder` and uses it."""
        return _in_place(self.usage, folder)


def _in_place(program: str, folder: str | Path) -> str:
    return program.replace(FOLDER, json.dumps(str(folder))[1:-1])


def ours(opened: OpenedModel, **noted: Any) -> dict[str, Any]:
    """An entry for the form's config of what it has no words for: other libraries pass it over, we read it again."""
    trained = {key: opened.provenance[key] for key in ("step", "version") if key in opened.provenance}
    noted = {key: value for key, value in noted.items() if value is not None}
    return {OURS: {"exported_by": f"kamim-analysis {__version__}"} | trained | noted}


def token_order(opened: OpenedModel) -> str:
    """A remark on the tokens that the last layer gives."""
    prefix = anatomy(opened.encoder).prefix_tokens
    before = f"{prefix} prefix token{'s' if prefix > 1 else ''}, then " if prefix else ""
    return f"{before}patches row by row"


def evaluation(opened: OpenedModel) -> dict[str, Any]:
    """How pictures are prepared, in timm's words: input_size, interpolation, mean, std, crop_pct, crop_mode."""
    import timm.data

    size = opened.provenance["transform"]["input_size"]
    config: dict[str, Any] = timm.data.resolve_data_config({"input_size": size}, model=opened.encoder)
    return config
