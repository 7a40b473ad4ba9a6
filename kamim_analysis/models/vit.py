"""Vision transformers with attention over all tokens: timm's ViT, DeiT, DINOv2, DINOv3, EVA, BEiT and kin."""

from typing import Any

from torch import nn

from ..errors import UserError
from ..shapes import Grid, Size
from ._anatomy import Anatomy, Block

#: our words for a size on the left, timm's on the right
_ARGUMENTS = {"width": "embed_dim", "depth": "depth", "heads": "num_heads", "patch_size": "patch_size"}
#: timm's blocks that add attention(norm1(x)) and then mlp(norm2(x))
_TWO_STEPS = ("Block", "EvaBlock", "RelPosBlock")


def arguments(image_size: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Arguments of timm's constructor for an image size and changed sizes (width, depth, heads, patch_size)."""
    return {"img_size": image_size} | {_ARGUMENTS[name]: value for name, value in sizes.items()}


def matches(model: nn.Module) -> bool:
    """Whether the model is a plain stack `blocks`, each with `attn`, on one grid of patches."""
    blocks = getattr(model, "blocks", None)
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    # SAM's encoder has neither: windows, heads in the batch; CaiT and ConViT count their prefix from timm 1.0.31 on
    if grid is None or not (hasattr(model, "num_prefix_tokens") or hasattr(model, "cls_token")):
        return False
    return isinstance(blocks, nn.Sequential | nn.ModuleList) and hasattr(blocks[0], "attn")


def describe(model: Any) -> Anatomy:
    """The anatomy of a timm vision transformer."""
    grid = Grid(*model.patch_embed.grid_size)
    image = Size(*model.patch_embed.img_size)
    if image.height % grid.height or image.width % grid.width:
        raise UserError(
            f"image size {image.height}x{image.width} is not tiled by this encoder's {grid.height}x{grid.width} "
            "patches; choose a multiple of the patch size"
        )
    # of the picture, also where a convolutional stem comes before the patches
    patch = Size(image.height // grid.height, image.width // grid.width)
    prefix = int(getattr(model, "num_prefix_tokens", 1))
    return Anatomy(
        family="vit",
        image_size=image,
        patch_embed="patch_embed",
        mask_patch=patch.height,
        stride=patch.height,
        width=int(model.embed_dim),
        prefix_tokens=prefix,
        has_cls=getattr(model, "cls_token", None) is not None,
        blocks=tuple(
            Block(
                layer=i + 1,
                path=f"blocks.{i}",
                attention=f"blocks.{i}.attn",
                heads=int(block.attn.num_heads),
                grid=grid,
                patch_size=patch,
                prefix_tokens=0 if _sees_patches_only(model, block) else prefix,
                mlp_norm=f"blocks.{i}.norm2" if type(block).__name__ in _TWO_STEPS else None,
            )
            for i, block in enumerate(model.blocks)
        ),
    )


def _sees_patches_only(model: Any, block: Any) -> bool:
    """Whether the cls token joins behind this block, as in ConViT's local blocks and all of CaiT's."""
    return getattr(block, "use_gpsa", False) or hasattr(model, "blocks_token_only")
