"""Where Swin's patch merging is counted: timm has it at the start of a stage, everyone else at the end of the last."""

import re

from torch import Tensor


def at_stage_end(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Swin's weights with the merging layers in the original's numbering; other weights as they are.

    timm renumbers them when it loads, up to 1.0.26 at least even those in its own numbering if there is no
    classifier: only the original's numbering loads in every version.
    """
    if any(key.startswith("layers.0.downsample.") for key in state):
        return state
    return {
        re.sub(r"^layers\.(\d+)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key): value
        for key, value in state.items()
    }
