"""AttMask: iBOT's distillation with masks that follow the teacher's attention (arXiv 2203.12719)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kamim_analysis.errors import UserError
from kamim_analysis.train.objectives._masked import Weighted

if TYPE_CHECKING:
    from kamim_analysis.train.distillation import Distillation
    from kamim_analysis.train.recipe import Recipe
    from kamim_analysis.train.start import Start
    from kamim_analysis.train.views import Augmentation, View

_POSITIVE = ("local_size", "head_width", "head_bottleneck", "student_temperature")
_TEMPERATURES = ("cls_temperature", "patch_temperature")


@dataclass(frozen=True, kw_only=True)
class AttMask(Weighted):
    """Student and teacher see two global crops, masked for the student, and the student some local ones besides.

    Defaults are those of AttMask-Hint with ViT-S/16. With masking `random` or `block` this is iBOT (arXiv 2111.07832),
    which masks by blocks. Global crops are cut as `data` says (iBOT: crop_scale 0.25 to 1, bicubic, antialiased, no
    vertical flip). The teacher is what is evaluated and exported; RUN@student opens the student.

    Departures from the public code: the ratio is drawn for each crop, not for each batch, and the hint's reveals follow
    that same ratio, where the code draws another; local crops interpolate positions with antialiasing (timm's way).
    """

    masking: str = "attmask_hint"
    """random or block (iBOT), attmask_high, attmask_low or attmask_hint by the teacher's attention from cls to patches
    in its last block, mean over heads; keypoint_high, keypoint_low, keypoint_hint by keypoint density; random_blocks
    (SimMIM's square units)."""
    mask_ratio: float = 0.3
    """Mean share of a crop's patches that are hidden."""
    mask_ratio_variation: float = 0.2
    """The share is drawn for each crop from mask_ratio less to mask_ratio plus this; not random_blocks."""
    mask_probability: float = 0.5
    """Chance that a crop is masked at all; not random_blocks."""
    local_crops: int = 10
    """Local crops of a picture, 0 for none."""
    local_size: int = 96
    """Side of a local crop in pixels, a multiple of the patch size."""
    local_scale: tuple[float, float] = (0.05, 0.25)
    """Area of a local crop, as a share of the picture's."""
    head_width: int = 2048
    """Channels of the head's two hidden layers."""
    head_bottleneck: int = 256
    """Channels of the unit vectors that are compared with prototypes."""
    head_outputs: int = 8192
    """Prototypes, shared by cls and patches."""
    norm_last_layer: bool = False
    """Whether prototypes keep unit length; false for ViT-S, true for larger encoders."""
    freeze_last_layer: int = 1
    """Epochs at the start in which the prototypes do not change."""
    momentum: float = 0.996
    """Share of itself that the teacher keeps in the first step; it grows to 1 by half a cosine over the run."""
    centre_momentum: float = 0.9
    """Share of itself that a centre keeps in a step."""
    student_temperature: float = 0.1
    """Of the student's distributions."""
    cls_temperature: tuple[float, float] = (0.04, 0.07)
    """Of the teacher's distributions of cls, in the first epoch and from the end of `temperature_epochs` on."""
    patch_temperature: tuple[float, float] = (0.04, 0.07)
    """The same of patches."""
    temperature_epochs: int = 30
    """Epochs over which the teacher's temperatures rise."""
    cls_loss_weight: float = 1.0
    """What the loss of cls counts (lambda_1)."""
    patch_loss_weight: float = 1.0
    """What the loss of hidden patches counts (lambda_2)."""
    keypoint_weights: bool = False
    """Multiply each hidden patch's loss by KAMIM's weight of it (mean over its weight patches)."""

    def check(self, recipe: "Recipe") -> None:
        """Sizes and shares that can be."""
        super().check(recipe)
        rules = [
            *((name, "greater than 0", lambda value: value > 0) for name in _POSITIVE),
            *((name, "two numbers greater than 0", lambda value: min(value) > 0) for name in _TEMPERATURES),
            *((name, "between 0 and 1", lambda value: 0 <= value <= 1) for name in ("momentum", "centre_momentum")),
            ("local_crops", "at least 0", lambda value: value >= 0),
            ("head_outputs", "at least 2", lambda value: value >= 2),
            ("local_scale", "two shares of the area, the lesser first", lambda value: 0 < value[0] <= value[1]),
        ]
        for name, wanted, fits in rules:
            if not fits(getattr(self, name)):
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must be {wanted}")
        if str(recipe.encoder.name).startswith("swin"):
            raise UserError(f"encoder.name {recipe.encoder.name} has no cls token; AttMask needs a ViT, as vit_small")

    def start(self, recipe: "Recipe") -> "Start":
        """An encoder that takes crops of several sizes."""
        from kamim_analysis.train.start import from_random_weights

        try:
            return from_random_weights(recipe, dynamic_img_size=True)
        except UserError as error:
            if "unexpected keyword argument 'dynamic_img_size'" not in str(error):
                raise
            raise UserError(
                f"timm cannot show encoder.name {recipe.encoder.name} crops of two sizes (dynamic_img_size); AttMask "
                "needs a ViT with absolute positions and cls, as vit_small"
            ) from error

    def workers_work(self) -> str:
        """The changes of colour, drawn and made picture by picture."""
        return "AttMask's colour jitter, blur and solarisation"

    def view(self, augmentation: "Augmentation", encoder: Any) -> "View":
        """Global and local crops, and what the global ones' masks need."""
        from kamim_analysis.train.multi_crop import MultiCropView

        return MultiCropView(self, augmentation, encoder)

    def build(self, start: "Start") -> "Distillation":
        """Student, teacher, and a head for each."""
        from kamim_analysis.train.distillation import Distillation

        return Distillation(start.encoder, self)
