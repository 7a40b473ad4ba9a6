"""DINO, iBOT and AttMask: full checkpoints, teacher or student with backbone and heads."""

from dataclasses import replace

from . import timm_vit
from ._layout import Hints, Recognised, Rules, State, head_count, shape_of

BRANCHES = (("", "backbone."),)
REQUIRED = timm_vit.REQUIRED
RULES: Rules = timm_vit.RULES


def convert(state: State, hints: Hints) -> Recognised:
    """As timm's ViT, with the heads of the papers' ViT-T, S, B and L."""
    heads, guess = head_count(shape_of(state, "pos_embed", 3)[-1], hints, timm_vit.HEADS)
    return replace(timm_vit.convert(state, Hints(heads=heads)), announcements=guess)
