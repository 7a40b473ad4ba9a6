"""What a linear probe and fine-tuning share: settings. Imports no torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.model_spec import ModelSpec, Reading, parse
from kamim_analysis.train.objectives._objective import Objective

if TYPE_CHECKING:
    from kamim_analysis.train.classification import ClassificationObjective
    from kamim_analysis.train.recipe import Recipe
    from kamim_analysis.train.start import LabelledStart, Start
    from kamim_analysis.train.views import Augmentation, View

Norm = Literal["none", "final", "trained"]
Mixing = Literal["none", "cutmix", "mixup", "both"]


@dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """A linear layer that tells classes by the pooled tokens of one layer of a trained encoder."""

    ANALYSIS: ClassVar[str]
    FROZEN: ClassVar[bool]

    model: str = ""
    """The encoder: a SPEC of the command line (run directory, weights file, timm:NAME, hf:OWNER/NAME, random:NAME)."""
    heads: int | None = None
    """Head count of a weights file that does not tell it."""
    format: str | None = None
    """Layout of a weights file that fits several."""
    layer: int | Literal["auto", "last"] = "auto"
    """Layer by number, 0 the embedding; `auto`: 8 for a ViT and the last for a Swin (section 4.1), where the encoder is
    frozen; the last where it is fine-tuned."""
    pooling: str = "mean"
    """`mean` of patch tokens (section 4.1), or another of kamim_analysis/poolings."""
    norm: Norm = "none"
    """What normalises before the linear layer. `none` as in Table 1; `final`: the encoder's own final norm, on tokens,
    its weights frozen with the encoder or tuned with it; `trained`: a LayerNorm of the classifier's own, on the pooled
    feature. Which of the two Table 5 means by "with LayerNorm" neither the paper nor its code tells."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    augmentation: Literal["paper", "crop", "none"] = "paper"
    """`paper`: squeezed to a square without antialiasing, TrivialAugmentWide, RandomErasing; `crop`: random resized
    crop and flips by the settings of `data`, antialiased; `none`: the evaluation transform."""
    erasing: float = 0.5
    """`paper`: probability that a rectangle is blacked out."""
    erasing_scale: tuple[float, float] = (0.02, 0.33)
    """Its area as a share of the picture's."""
    erasing_ratio: tuple[float, float] = (0.3, 3.3)
    """Its height over width."""
    mixing: Mixing = "both"
    """`cutmix`, `mixup`, or `both`: each batch by one of them with equal chance."""
    held_out: float = 0.2
    """Share of each class that is tested on and not learned from, of data with a single split."""

    def check(self, recipe: "Recipe") -> None:
        """A model that is there, and settings in their ranges."""
        if self.model:
            self.spec()
        plugins.check(self.pooling, plugins.names("kamim_analysis.poolings"), "pooling")
        encoder = recipe.encoder
        given = [*(["name"] if encoder.name is not None else []), *encoder.sizes()]
        if given:
            raise UserError(f"encoder.{given[0]} is that of objective.model; set it to null")
        if self.FROZEN and encoder.drop_path:
            raise UserError("encoder.drop_path has no effect on a frozen encoder; set it to 0")
        for name, high in self.shares().items():
            if not 0 <= getattr(self, name) <= high:
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must be between 0 and {high:g}")
        if not 0 < self.held_out < 1:
            raise UserError(f"objective.held_out is {self.held_out}; it must lie between 0 and 1")

    def shares(self) -> dict[str, float]:
        """The greatest value of settings that begin at 0."""
        return {"label_smoothing": 1.0, "erasing": 1.0}

    def spec(self) -> ModelSpec:
        """The model, parsed. Raises UserError for one that does not exist."""
        if not self.model:
            raise UserError("objective.model is missing; give --objective.model MODEL")
        if self.format is not None:
            plugins.check(self.format, plugins.names("kamim_analysis.checkpoints"), "format")
        return parse(self.model, Reading(heads=self.heads, layout=self.format))

    def start(self, recipe: "Recipe") -> "LabelledStart":
        """Labelled pictures and the model's encoder."""
        from kamim_analysis.train.start import from_model

        return from_model(recipe, self.spec(), self.held_out)

    def workers_work(self) -> str:
        """All but crops and flips."""
        return "" if self.augmentation == "crop" else f"objective.augmentation {self.augmentation} (crop is not)"

    def view(self, augmentation: "Augmentation", encoder: Any) -> "View":
        """The augmented picture."""
        from kamim_analysis.train.views import LabelledView

        return LabelledView(self, augmentation, encoder)

    def build(self, start: "Start") -> "ClassificationObjective":
        """The classifier with its loss."""
        from kamim_analysis.train.build_classifier import build

        return build(self, start)
