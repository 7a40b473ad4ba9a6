"""CAPI (facebookresearch/capi): recognised, and refused with the reason."""

from ..errors import UserError
from ._layout import Hints, Recognised, Rules, State

BRANCHES = (("", "backbone."), ("", ""))
REQUIRED = ("encoder.blocks.0.residual1.fn.q_proj.weight", "registers")
RULES: Rules = ((r"(.+)", r"\1"),)


def convert(state: State, hints: Hints) -> Recognised:
    """Raise UserError: CAPI rotates its registers by positions on the image's edge, which no timm model does."""
    del state, hints
    raise UserError(
        "these are CAPI's weights, which no unmodified timm model can hold: its registers carry rotary positions on "
        "the edge of the image and its final norm has no weights; use CAPI's own code for them"
    )
