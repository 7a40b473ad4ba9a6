"""The description of an encoder that hooks and analyses work from."""

from dataclasses import dataclass

from ..shapes import Grid, Size


@dataclass(frozen=True)
class Window:
    """Attention within windows of `size` tokens, the image rolled by `shift` tokens first."""

    size: tuple[int, int]
    shift: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One transformer block: where it sits in the model and on what grid its tokens lie."""

    layer: int
    """1 for the first block; layer i is this block's output."""
    path: str
    attention: str
    """Path of the attention module: its input comes after the first norm, its output before the residual sum."""
    heads: int
    grid: Grid
    patch_size: Size
    """Pixels between the centres of neighbouring tokens."""
    prefix_tokens: int
    window: Window | None = None
    mlp_norm: str | None = None
    """Path of the norm before the MLP, whose input is the residual stream after attention; None in blocks that are not
    of two steps with norms before them (post-norm, attention and MLP in parallel)."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """What hooks need to know of an encoder."""

    family: str
    image_size: Size
    patch_embed: str
    """Path of the module whose output the mask token replaces."""
    mask_patch: int
    """Pixels of a side of one token of `patch_embed`."""
    stride: int
    """Pixels of a side of one token of the last layer: what the linear head predicts."""
    width: int
    """Channels of the last layer."""
    prefix_tokens: int
    has_cls: bool
    """Whether the first prefix token is a cls token."""
    blocks: tuple[Block, ...]
