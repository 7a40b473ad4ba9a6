"""Swin transformers: attention within shifted windows, on a grid that halves from stage to stage."""

from typing import Any

from torch import nn

from ..errors import UserError
from ..shapes import Grid, Size
from ._anatomy import Anatomy, Block, Window

_ARGUMENTS = {"width": "embed_dim", "patch_size": "patch_size"}


def arguments(image_size: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Arguments of timm's constructor. The window is the last stage's grid, as in the papers: 6 at 192 px, 7 at 224."""
    for name in sizes:
        if name not in _ARGUMENTS:
            raise UserError(f"encoder.{name} cannot be set for a Swin, whose stages differ; leave it out")
    if image_size % 32:
        raise UserError(f"image size {image_size} does not suit a Swin; choose a multiple of 32")
    changed = {_ARGUMENTS[name]: value for name, value in sizes.items()}
    return {"img_size": image_size, "window_size": image_size // 32} | changed


def matches(model: nn.Module) -> bool:
    """Whether the model has stages `layers` of blocks that attend within windows."""
    stages = getattr(model, "layers", None)
    if not isinstance(stages, nn.Sequential | nn.ModuleList) or not hasattr(stages[0], "blocks"):
        return False
    block = stages[0].blocks[0]  # type: ignore[index]
    # Swin V2's attention has the same hooks; its blocks differ only inside
    return all(hasattr(block, name) for name in ("attn", "window_size", "shift_size", "input_resolution"))


def describe(model: Any) -> Anatomy:
    """The anatomy of a timm Swin transformer."""
    patch = Size(*model.patch_embed.patch_size)
    grid = Grid(*model.patch_embed.grid_size)
    image = Size(grid.height * patch.height, grid.width * patch.width)
    blocks: list[Block] = []
    for s, stage in enumerate(model.layers):
        for i, block in enumerate(stage.blocks):
            here = Grid(*block.input_resolution)
            path = f"layers.{s}.blocks.{i}"
            blocks.append(
                Block(
                    layer=len(blocks) + 1,
                    path=path,
                    attention=f"{path}.attn",
                    heads=int(block.attn.num_heads),
                    grid=here,
                    patch_size=Size(image.height // here.height, image.width // here.width),
                    prefix_tokens=0,
                    window=Window(tuple(block.window_size), tuple(block.shift_size)),
                    # Swin V2 normalises behind attention and MLP
                    mlp_norm=f"{path}.norm2" if type(block).__name__ == "SwinTransformerBlock" else None,
                )
            )
    return Anatomy(
        family="swin",
        image_size=image,
        patch_embed="patch_embed",
        mask_patch=patch.height,
        stride=blocks[-1].patch_size.height,
        width=int(model.num_features),
        prefix_tokens=0,
        has_cls=False,
        blocks=tuple(blocks),
    )
