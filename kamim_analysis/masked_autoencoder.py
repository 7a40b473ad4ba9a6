"""Masked autoencoder around an unmodified encoder: visible patches in, pixels of all patches out of MAE's decoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .encoders import anatomy
from .errors import UserError
from .shapes import Grid


@contextmanager
def visible_only(patch_drop: nn.Module, visible: Int[Tensor, "b v"], prefix_tokens: int) -> Iterator[None]:
    """Inside `with`, of all that enters `patch_drop` only the prefix and each image's visible patches leave it.

    `visible` are their indices. timm's ViT calls `patch_drop` after adding positions, so that what is left keeps its
    place.
    """

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        prefix, patches = output[:, :prefix_tokens], output[:, prefix_tokens:]
        return torch.cat([prefix, patches.take_along_dim(visible[:, :, None], dim=1)], dim=1)

    handle = patch_drop.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def visible_and_hidden(mask: Bool[Tensor, "b n"], hidden: int) -> tuple[Int[Tensor, "b v"], Int[Tensor, "b m"]]:
    """Indices of the patches of each kind, in row-major order, where every image hides `hidden` of them.

    >>> visible_and_hidden(torch.tensor([[True, False, True]]), 2)
    (tensor([[1]]), tensor([[0, 2]]))
    """
    order = mask.byte().argsort(dim=1, stable=True)
    return order[:, : mask.shape[1] - hidden], order[:, mask.shape[1] - hidden :]


class MaskedAutoencoder(nn.Module):
    """An encoder that sees visible patches only, and MAE's transformer that predicts the pixels of all.

    Source: arXiv 2111.06377, section 3. Parameters have the names of MAE's public checkpoints. With
    `normalised_patches` the decoder speaks of patches less their mean, divided by their standard deviation (the
    paper's "normalized pixels", `norm_pix_loss` in its code). The paper's encoder has a cls token; other prefix tokens,
    such as registers, go through the decoder as that does.
    """

    decoder_pos_embed: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        *,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
        decoder_mlp_ratio: float = 4.0,
        normalised_patches: bool = False,
    ) -> None:
        from timm.models.vision_transformer import Block

        super().__init__()
        _check(encoder, decoder_width, decoder_heads)
        body = anatomy(encoder)
        self.anatomy = body
        self.encoder = encoder
        self.normalised_patches = normalised_patches
        norm = partial(nn.LayerNorm, eps=1e-6)
        block = partial(Block, mlp_ratio=decoder_mlp_ratio, qkv_bias=True, norm_layer=norm)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_embed = nn.Linear(body.width, decoder_width)
        positions = mae_sincos_positions(decoder_width, body.blocks[-1].grid, body.prefix_tokens)
        self.register_buffer("decoder_pos_embed", positions)
        self.decoder_blocks = nn.Sequential(*(block(decoder_width, decoder_heads) for _ in range(decoder_depth)))
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, body.stride**2 * 3)
        self._initialise()

    def _initialise(self) -> None:
        """The decoder's first weights, as in the paper's appendix A.1 and its code; the encoder's are left alone."""
        nn.init.normal_(self.mask_token, std=0.02)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            for module in part.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "b 3 y x"], mask: Bool[Tensor, "b gy gx"]) -> Float[Tensor, "b 3 y x"]:
        """Predicted pixels, in the normalised units of `images`, of every patch, hidden (mask True) or not.

        With `normalised_patches` each prediction gets the mean and standard deviation of the true patch, hidden ones
        included, as in any picture of such a model: those two numbers a patch are then not predicted.

        Raises UserError unless all images hide the same number of patches.
        """
        patches = self.predict_patches(images, mask)
        if self.normalised_patches:
            mean, std = patch_mean_and_std(patchify(images, self.anatomy.stride))
            patches = patches * std + mean
        return unpatchify(patches, self.anatomy.blocks[-1].grid, self.anatomy.stride)

    def predict_patches(
        self, images: Float[Tensor, "b 3 y x"], mask: Bool[Tensor, "b gy gx"], hidden: int | None = None
    ) -> Float[Tensor, "b n values"]:
        """The decoder's own output, in the order of `patchify`: normalised patches where it was trained on those.

        `hidden`: how many patches every mask hides, of a caller who knows; else the masks are asked and checked, for
        which a GPU is waited for.
        """
        visible, _ = visible_and_hidden(mask.flatten(1), _hidden_in_each(mask) if hidden is None else hidden)
        prefix_tokens = self.anatomy.prefix_tokens
        with visible_only(self.encoder.get_submodule("patch_drop"), visible, prefix_tokens):
            tokens = cast(Any, self.encoder).forward_features(images)
        embedded = self.decoder_embed(tokens)
        seen = embedded[:, prefix_tokens:]
        blank = self.mask_token.to(embedded.dtype).expand(len(mask), mask[0].numel(), -1)
        patches = blank.scatter(1, visible[:, :, None].expand_as(seen), seen)
        everything = torch.cat([embedded[:, :prefix_tokens], patches], dim=1) + self.decoder_pos_embed
        decoded = self.decoder_norm(self.decoder_blocks(everything))
        return cast(Tensor, self.decoder_pred(decoded[:, prefix_tokens:]))


def check_drops_patches(encoder: nn.Module) -> None:
    """Raises UserError for an encoder that cannot be shown some of the patches alone (`visible_only`)."""
    if not isinstance(getattr(encoder, "patch_drop", None), nn.Identity):
        raise UserError(
            f"{type(encoder).__name__} cannot be shown the visible patches alone; that takes timm's VisionTransformer "
            "without patch dropout"
        )


def _check(encoder: nn.Module, width: int, heads: int) -> None:
    check_drops_patches(encoder)
    if width % 4 or width % heads:
        raise UserError(f"decoder width {width} must be a multiple of 4 and of the number of heads, {heads}")


def _hidden_in_each(mask: Bool[Tensor, "b gy gx"]) -> int:
    hidden = sorted(set(mask.flatten(1).sum(1).tolist()))
    if len(hidden) > 1:
        raise UserError(
            f"images of one batch hide {', '.join(map(str, hidden))} patches; a masked autoencoder needs the same "
            "number in every image"
        )
    return int(hidden[0])


def mae_sincos_positions(width: int, grid: Grid, prefix_tokens: int = 1) -> Float[Tensor, "1 t d"]:
    """MAE's fixed positions: sine and cosine of column and row at `width` / 4 wavelengths; zeros for the prefix.

    Channels are, a quarter each, sin(column w_i), cos(column w_i), sin(row w_i), cos(row w_i), with
    w_i = 10000^(-i / (width / 4)). The column comes first because MAE's public code, which its checkpoints follow,
    hands `meshgrid` the columns first; its variable names have it the other way round.

    >>> positions = mae_sincos_positions(16, Grid(2, 3))
    >>> positions.shape, positions[0, 1 + 2, [0, 8]]          # the third patch: column 2, row 0
    (torch.Size([1, 7, 16]), tensor([0.9093, 0.0000]))
    """
    quarter = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    angles = [cells.flatten().outer(10_000**-quarter) for cells in (x, y)]
    patches = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([torch.zeros(prefix_tokens, width), patches.float()])[None]


def fix_sincos_positions(encoder: nn.Module) -> None:
    """Put `mae_sincos_positions` in place of a timm ViT's learned positions; they get no gradient any more.

    Raises UserError for an encoder that adds no position to its patches, such as Swin or one of relative positions.
    """
    body = anatomy(encoder)
    table = getattr(encoder, "pos_embed", None)
    if not isinstance(table, nn.Parameter) or table.ndim != 3 or body.width % 4:
        raise UserError(
            f"{type(encoder).__name__} of width {body.width} cannot have sin-cos positions; they need timm's "
            "VisionTransformer with absolute positions and a width that is a multiple of 4"
        )
    grid = body.blocks[0].grid
    # timm's `no_embed_class` models have positions of patches alone
    table.detach().copy_(mae_sincos_positions(body.width, grid, table.shape[1] - grid.area))
    table.requires_grad_(False)


def patchify(images: Float[Tensor, "b 3 y x"], patch_size: int) -> Float[Tensor, "b n values"]:
    """Pixels of each patch, in MAE's order (row, column, colour); patches in row-major order."""
    cells: Tensor = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Float[Tensor, "b n values"], grid: Grid, patch_size: int) -> Float[Tensor, "b 3 y x"]:
    """The pictures of which `patchify` made patches."""
    cells: Tensor = patches.unflatten(2, (patch_size, patch_size, 3)).unflatten(1, grid)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def patch_mean_and_std(
    patches: Float[Tensor, "b n values"],
) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Mean over a patch's pixels and colours, and sqrt(unbiased variance + 1e-6), as MAE's code normalises targets."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return mean, (variance + 1e-6).sqrt()
