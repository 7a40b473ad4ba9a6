"""MAE: encode the visible patches, predict the pixels of the hidden ones with a transformer (arXiv 2111.06377)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kamim_analysis.errors import UserError
from kamim_analysis.train.objectives._masked import EQUALLY_MANY, Weighted

if TYPE_CHECKING:
    from kamim_analysis.train.mae_objective import MAEObjective
    from kamim_analysis.train.recipe import Recipe
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, View


_EQUAL = (*EQUALLY_MANY, "random_blocks")


@dataclass(frozen=True, kw_only=True)
class MAE(Weighted):
    """Mean squared error over the hidden patches' pixels; defaults are the paper's.

    The encoder must be a plain ViT; its positions are fixed sines and cosines and its linear layers start Xavier-
    uniform, as in the paper's appendix A.1 ("following ViT's official code", which timm calls `jax`).
    """

    masking: str = "random"
    """random, random_blocks, keypoint_high, keypoint_low or keypoint_hint: equally many patches of every picture."""
    mask_unit: int = 16
    """Side in pixels of the squares that random_blocks hides, and that are hidden in the monitor's reconstructions."""
    mask_ratio: float = 0.75
    """Share of the patches (random_blocks: of the units, their number rounded up) that are hidden."""
    normalised_patches: bool = True
    """Whether the target is each patch less its mean, divided by its standard deviation (the paper's best)."""
    keypoint_weights: bool = False
    """Whether each hidden patch's error is multiplied by KAMIM's weight of the patch."""
    decoder_width: int = 512
    """Channels of the decoder."""
    decoder_depth: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Attention heads of a decoder's block."""

    def check(self, recipe: "Recipe") -> None:
        """Refuse masks that differ in number between pictures, or that wait for a network's attention."""
        super().check(recipe)
        if self.masking not in _EQUAL:
            reason = "whose encoder sees the visible patches alone, equally many of every picture"
            raise UserError(f"objective.masking {self.masking} does not suit MAE, {reason}; choose {', '.join(_EQUAL)}")
        if self.mask_ratio_variation or self.mask_probability < 1:
            fixed = "objective.mask_ratio_variation at 0 and objective.mask_probability at 1"
            raise UserError(f"MAE hides equally many patches of every picture; leave {fixed}")

    def start(self, recipe: "Recipe") -> "Start":
        """Fixed positions, and the paper's first weights."""
        from kamim_analysis.masked_autoencoder import fix_sincos_positions
        from kamim_analysis.train.start import from_random_weights

        start = from_random_weights(recipe, weight_init="jax")
        fix_sincos_positions(start.encoder)
        return start

    def view(self, augmentation: "Augmentation", encoder: Any) -> "View":
        """The augmented crop, what masks it and, when weighted, its keypoint density."""
        from kamim_analysis.encoders import anatomy
        from kamim_analysis.train.masks import draws_for
        from kamim_analysis.train.views import KeypointView, MaskedView

        body = anatomy(encoder)
        view = MaskedView(augmentation, body.image_size.height, draws_for(self, body))
        return KeypointView(view, self.detector, self.map_style, self.weight_patch) if self.keypoint_weights else view

    def build(self, start: "Start") -> "MAEObjective":
        """Encoder and decoder."""
        from kamim_analysis.train.mae_objective import MAEObjective

        return MAEObjective(start.encoder, self)
