"""Latent MIM: predict the latents of hidden patches from those of visible ones (arXiv 2407.15837)."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kamim_analysis.errors import UserError
from kamim_analysis.train.objectives._masked import EQUALLY_MANY, Weighted

if TYPE_CHECKING:
    from kamim_analysis.masking._masking import Amount
    from kamim_analysis.shapes import Grid
    from kamim_analysis.train.latent_objective import LatentObjective
    from kamim_analysis.train.recipe import Recipe
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, View

_AT_LEAST = {
    "visible": 1,
    "gap": 0,
    "projector_layers": 0,
    "projector_width": 1,
    "decoder_width": 1,
    "decoder_depth": 1,
    "decoder_heads": 1,
    "similarity_weight": 0,
}


@dataclass(frozen=True, kw_only=True)
class LatentMIM(Weighted):
    """Patch discrimination between latents, against a momentum target; defaults are the paper's.

    The encoder must be a plain ViT; its positions are fixed sines and cosines and its linear layers start Xavier-
    uniform (timm's `jax`). Its pictures are evaluated without gap. Positions are MAE's, whole numbers of patches; the
    public code spreads them over 0 to 14 instead of 0 to 13.
    """

    masking: str = "random"
    """random, or keypoint_high, keypoint_low, keypoint_hint: they hide equally many patches of every picture, before
    the encoder sees it."""
    visible: int = 20
    """Patches that the online encoder sees, in place of mask_ratio (keypoint_hint: and the hints beside)."""
    gap: int = 4
    """Pixels between the cells of the crop's patches: each patch lies 0 to gap - 1 pixels off its cell's corner, in
    either direction at random; 0: patches touch, as the encoder is evaluated."""
    target: Literal["momentum", "stop_gradient", "joint"] = "momentum"
    """What encodes the target patches: a copy that follows the online encoder slowly, the online encoder without
    gradient, or with gradient, the joint optimisation that collapses."""
    target_sees: Literal["hidden", "all"] = "hidden"
    """Whether it sees the target patches alone or the whole picture."""
    momentum: float = 0.99
    """The copy's momentum at the start; it goes to 1 by half a cosine."""
    loss: Literal["patch_discrimination", "l1", "l2", "smooth_l1", "cosine"] = "patch_discrimination"
    """Telling the patches of an image apart, or one of the direct reconstructions that find trivial solutions."""
    score_temperature: float = 0.2
    """patch_discrimination: cosines are divided by it (tau)."""
    similarity_weight: float = 0.1
    """Weight of (mean cosine among an image's patches - its target)^2, of predictions and of visible latents."""
    similarity_start: float = 0.75
    """That target at the start."""
    similarity_end: float = 0.25
    """That target at the end, by half a cosine."""
    keypoint_weights: bool = False
    """Whether each hidden patch's loss is multiplied by KAMIM's weight of the patch."""
    projector_layers: int = 3
    """Linear layers between encoder and decoder, and between target encoder and loss; 0: none."""
    projector_width: int = 4096
    """Channels between them."""
    decoder_width: int = 512
    """Channels of the decoder."""
    decoder_depth: int = 3
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of a decoder's block."""
    decoder_self_attention: bool = True
    """Whether the hidden patches' queries attend to each other before they attend to the visible latents."""
    visual_cue: bool = True
    """Whether a query holds the mean of the visible latents, weighted by nearness."""

    def check(self, recipe: "Recipe") -> None:
        """Refuse masks that differ in number between pictures, and numbers out of their ranges."""
        super().check(recipe)
        if self.masking not in EQUALLY_MANY:
            raise UserError(
                f"objective.masking {self.masking} does not suit Latent MIM, whose encoder needs equally many visible "
                f"patches in every picture before it has seen any; choose one of {', '.join(EQUALLY_MANY)}"
            )
        own, inherited = vars(self), LatentMIM()
        for name in ("mask_ratio", "mask_ratio_variation", "mask_probability"):
            if own[name] != getattr(inherited, name):
                raise UserError(
                    f"objective.{name} has no part in Latent MIM; set objective.visible, a number of patches"
                )
        for name, least in _AT_LEAST.items():
            if own[name] < least:
                raise UserError(f"objective.{name} is {own[name]}; it must be at least {least}")
        if not self.score_temperature > 0:
            raise UserError(f"objective.score_temperature is {self.score_temperature}; it must be greater than 0")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"objective.momentum is {self.momentum}; it must be between 0 and 1")

    def amount_of(self, grid: "Grid") -> "Amount":
        """How much of this grid is hidden: all but `visible` patches."""
        if self.visible >= grid.area:
            raise UserError(
                f"objective.visible {self.visible} leaves none of {grid.height} x {grid.width} patches to predict"
            )
        if self.loss == "patch_discrimination" and grid.area - self.visible < 2:
            raise UserError(
                f"objective.visible {self.visible} hides one of {grid.height} x {grid.width} patches, which "
                "patch_discrimination cannot tell from others; leave fewer visible, or choose another objective.loss"
            )
        return replace(self.amount(), ratio=1 - self.visible / grid.area)

    def start(self, recipe: "Recipe") -> "Start":
        """The public code's first weights."""
        from kamim_analysis.train.start import from_random_weights

        return from_random_weights(recipe, weight_init="jax")

    def view(self, augmentation: "Augmentation", encoder: Any) -> "View":
        """The patches of an augmented crop, and what hides some of them."""
        from kamim_analysis.encoders import anatomy
        from kamim_analysis.train.spaced_grid import SpacedView

        body = anatomy(encoder)
        return SpacedView(self, augmentation, body.blocks[0].grid, body.mask_patch)

    def build(self, start: "Start") -> "LatentObjective":
        """Online encoder with fixed positions, target, projectors, decoder."""
        from kamim_analysis.masked_autoencoder import fix_sincos_positions
        from kamim_analysis.train.latent_objective import LatentObjective

        fix_sincos_positions(start.encoder)
        return LatentObjective(start.encoder, self)
