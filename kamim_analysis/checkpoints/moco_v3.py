"""MoCo v3 (facebookresearch/moco-v3): base and momentum encoder in timm's names, with fixed sin-cos positions."""

from dataclasses import replace

from . import timm_vit
from ._layout import SET_ASIDE, Hints, Recognised, Rules, State, head_count, shape_of

# its linear evaluation takes the base encoder
BRANCHES = (("base_encoder", "base_encoder."), ("momentum_encoder", "momentum_encoder."))
REQUIRED = timm_vit.REQUIRED
RULES: Rules = (*timm_vit.RULES, (r"predictor\..+", SET_ASIDE))
# its ViT-S has 12 heads of 32 channels, unlike everyone else's
_HEADS = {384: 12, 768: 12, 1024: 16, 1280: 16}


def convert(state: State, hints: Hints) -> Recognised:
    """As timm's ViT, with MoCo v3's own head counts."""
    heads, guess = head_count(shape_of(state, "pos_embed", 3)[-1], hints, _HEADS)
    return replace(timm_vit.convert(state, Hints(heads=heads)), announcements=guess)
