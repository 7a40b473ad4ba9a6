"""The loss of a linear probe and of fine-tuning: a batch of labelled pictures in, a cross-entropy out."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from .classifier import Classifier
from .objective_module import Loss, ObjectiveModule
from .objectives._classification import Mixing
from .start import LabelledStart


class ClassificationObjective(ObjectiveModule):
    """Cross-entropy of a classifier's logits, batches mixed while it trains."""

    model: Classifier

    def __init__(
        self,
        model: Classifier,
        start: LabelledStart,
        *,
        mixing: Mixing,
        label_smoothing: float,
        description: Mapping[str, Any],
        rate_scales: Mapping[str, float],
    ) -> None:
        shown = start.opened.provenance["transform"]
        super().__init__(model, shown["mean"], shown["std"])
        self.mix = mixer(mixing, start.data.classes)
        self.label_smoothing, self.description, self.rate_scales = label_smoothing, description, rate_scales

    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The frozen encoder's own training, and the probe's recipe; the fine-tuned one's training is the recipe."""
        before = self.description.get("started_from", {}).get("training")
        if self.model.frozen:
            return {"training": before, "evaluation_recipe": recipe, **self.description}
        return {"training": recipe, "pretraining": before, **self.description}

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of samples `image` (uint8 [B, 3, H, W]) and `label` (int64 [B])."""
        images, targets = self.normalised(batch["image"]), batch["label"]
        if self.training and self.mix is not None:
            images, targets = self.mix(images, targets)
        logits = self.model(images).float()
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return Loss(loss, {"train_top1": agreement(logits, targets)})


def mixer(mixing: Mixing, classes: int) -> Any:
    """torchvision's CutMix or MixUp with its default, lambda uniform in [0, 1]; both: either with equal chance.

    (images [B, 3, H, W], labels [B]) -> (mixed images, class probabilities [B, K] that sum to one). They pair each
    picture of the batch with the one before it, and draw from torch's global random state.
    """
    kinds = {"none": [], "cutmix": [v2.CutMix], "mixup": [v2.MixUp], "both": [v2.MixUp, v2.CutMix]}[mixing]
    made = [kind(num_classes=classes) for kind in kinds]
    return v2.RandomChoice(made) if made else None


def agreement(
    logits: Float[Tensor, "b classes"], targets: Int64[Tensor, " b"] | Float[Tensor, "b classes"]
) -> Float[Tensor, ""]:
    """Share of the batch whose most likely class is the target, of mixed pictures the larger part's."""
    wanted = targets if targets.ndim == 1 else targets.argmax(1)
    return (logits.detach().argmax(1) == wanted).float().mean()
