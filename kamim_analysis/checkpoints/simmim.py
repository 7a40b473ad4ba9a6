"""SimMIM (microsoft/SimMIM), ViT and Swin, and `MaskedImageModel.state_dict()`.

An `encoder.`, a head, a mask token. SimMIM's ViT is BEiT's, its final norm dropped where it was built for mean pooling.
"""

from dataclasses import replace

from ..errors import UserError
from . import beit, timm_swin, timm_vit
from ._layout import Hints, Recognised, Rules, State, lacking, split_head

BRANCHES = (("", "encoder."),)
REQUIRED = ("patch_embed.proj.weight", "mask_token")
RULES: Rules = (
    (r"(mask_token|decoder\.0\.(?:weight|bias))", r"\1"),
    *timm_swin.RULES,
    *beit.RULES,
    *timm_vit.RULES,
)
_ENCODERS = (timm_swin, beit, timm_vit)


def convert(state: State, hints: Hints) -> Recognised:
    """The encoder by whichever of the three kinds it is, with head and mask token."""
    encoder, head = split_head(state)
    missing = {kind: lacking(encoder, kind.REQUIRED) for kind in _ENCODERS}
    kind = next((kind for kind in _ENCODERS if not missing[kind]), None)
    if kind is None:
        reasons = "; ".join(f"{one.__name__.rpartition('.')[2]} lacks {', '.join(missing[one])}" for one in _ENCODERS)
        raise UserError(f"these weights have SimMIM's mask token, but their encoder is none of those known: {reasons}")
    recognised: Recognised = kind.convert(encoder, hints)
    if "decoder.0.weight" not in head:
        note = f"left out, since there is no whole head: {', '.join(head)}"
        return replace(recognised, announcements=(*recognised.announcements, note))
    return replace(recognised, decoder=head | {"mask_token": head["mask_token"].flatten()})
