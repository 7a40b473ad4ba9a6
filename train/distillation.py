"""iBOT's and AttMask's self-distillation as a module: crops in, a loss out, and a teacher that follows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch import distributed as dist

from kamim_analysis.density import density_weights, weights_of_patches
from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError
from kamim_analysis.reconstruction import masked_input
from kamim_analysis.recorder import Kind, record

from .ema import follow, frozen_copy
from .ibot_loss import cls_loss, entropy_share, patch_loss, teacher_distribution, teacher_temperature
from .masks import hidden_places, masks_of
from .objective_module import Loss, ObjectiveModule
from .progress import Progress, cosine
from .projection_head import ProjectionHead

if TYPE_CHECKING:
    from .objectives.attmask import AttMask

# of log K; random weights of ViT-S with 8192 prototypes start from an entropy of 0.87 to 0.97
_ONE_FOR_ALL, _UNIFORM = 0.05, 0.99


class Distilled(nn.Module):
    """Student and teacher, each with its head, and what else a step changes."""

    encoder: Any
    student: Any
    cls_centre: Tensor
    patch_centre: Tensor
    cls_mean: Tensor

    def __init__(self, encoder: nn.Module, head: ProjectionHead, width: int, outputs: int) -> None:
        super().__init__()
        self.encoder = frozen_copy(encoder)  # the teacher's, which is evaluated and exported
        self.student = encoder
        self.head = head
        self.teacher_head = frozen_copy(head)
        # of two axes, so that it decays as in iBOT's code, which leaves out what has one
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.register_buffer("cls_centre", torch.zeros(outputs))
        self.register_buffer("patch_centre", torch.zeros(outputs))
        # mean of the teacher's distributions of cls over the batch before, for the log alone
        self.register_buffer("cls_mean", torch.full((outputs,), 1 / outputs))


class Distillation(ObjectiveModule):
    """The student learns the teacher's distributions over prototypes; the teacher is a moving average of the student.

    Sources: AttMask (arXiv 2203.12719, section 3), iBOT (arXiv 2111.07832, section 3) and their public code.
    """

    model: Distilled

    def __init__(self, encoder: nn.Module, settings: "AttMask") -> None:
        body = anatomy(encoder)
        if not body.has_cls:
            raise UserError(f"{type(encoder).__name__} has no cls token; AttMask needs a ViT with one, as vit_small")
        head = ProjectionHead(
            body.width,
            hidden=settings.head_width,
            bottleneck=settings.head_bottleneck,
            outputs=settings.head_outputs,
            norm_last_layer=settings.norm_last_layer,
        )
        super().__init__(Distilled(encoder, head, body.width, settings.head_outputs))
        self.settings, self.strategy, self.anatomy = settings, settings.strategy(), body
        self._means: list[Float[Tensor, "3 outputs"]] = []
        self.begin_step(Progress(0, 1, 1))

    @property
    def trained_encoders(self) -> tuple[Any, ...]:
        """The student; the teacher gets no gradient."""
        return (self.model.student,)

    def train(self, mode: bool = True) -> "Distillation":
        """Training mode for all but the teacher, which drops nothing."""
        super().train(mode)
        self.model.encoder.eval()
        return self

    def begin_step(self, progress: Progress) -> None:
        """The teacher's temperatures of this epoch."""
        chosen = self.settings
        self.cls_temperature, self.patch_temperature = (
            teacher_temperature(ends, chosen.temperature_epochs, progress.epoch)
            for ends in (chosen.cls_temperature, chosen.patch_temperature)
        )

    def forward(self, batch: dict[str, Tensor]) -> Loss:
        """The loss of samples as `MultiCropView` makes them."""
        # the crops of a picture side by side along the batch; labels have no second axis
        crops = {name: values.flatten(0, 1) for name, values in batch.items() if values.ndim > 1}
        images = self.normalised(crops["image"])
        tokens, attention = self._teacher_tokens(images)
        mask = masks_of(self.strategy, crops, attention)
        hidden = mask.flatten(1)
        places = hidden_places(hidden, batch["hidden_slots"])
        teacher_cls, teacher_patches = self._targets(tokens, places, len(batch["image"]))
        student_cls, student_patches = self._predictions(images, mask, places, batch.get("local"))
        weight = self._weight(crops["density"]) if self.settings.keypoint_weights else None
        temperature = self.settings.student_temperature
        cls = cls_loss(student_cls, teacher_cls, temperature)
        patch = patch_loss(student_patches, teacher_patches, hidden, places, temperature, weight)
        parts = {
            "cls_loss": cls.detach(),
            "patch_loss": patch.detach(),
            "masked_share": hidden.float().mean(),
            "teacher_entropy": entropy_share(teacher_cls).mean(),
            "teacher_diversity": entropy_share(self.model.cls_mean),
        }
        if weight is not None:
            parts["mean_weight"] = weight.mean()
        return Loss(self.settings.cls_loss_weight * cls + self.settings.patch_loss_weight * patch, parts)

    @torch.no_grad()
    def _teacher_tokens(
        self, images: Float[Tensor, "b 3 y x"]
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n"] | None]:
        """The teacher's tokens, and what its cls gives each patch in the last block, where masks need that."""
        teacher = self.model.encoder
        if self.strategy.scores != "attention":
            return teacher.forward_features(images), None
        seen: list[Tensor] = []

        def keep(_kind: Kind, _layer: int, attention: Tensor) -> None:
            seen.append(attention[:, :, 0, self.anatomy.prefix_tokens :].mean(1))

        with record(teacher, attention=(-1,), tokens=(), sink=keep, check_rows="once"):
            tokens = teacher.forward_features(images)
        return tokens, seen[0]

    @torch.no_grad()
    def _targets(
        self, tokens: Float[Tensor, "crops t d"], places: Int[Tensor, " hidden"], pictures: int
    ) -> tuple[Float[Tensor, "b globals outputs"], Float[Tensor, "hidden outputs"]]:
        """The teacher's distributions of each picture's crops, and of hidden patches.

        The patches' centre is a mean over all patches. The last layer is linear, so their mean unit vector scores the
        mean of their scores, and only hidden patches need scores of their own.
        """
        head = self.model.teacher_head
        embedded = head.embed(tokens)
        patches = embedded[:, self.anatomy.prefix_tokens :]
        chosen = patches.flatten(0, 1).index_select(0, places)
        scores = head.score(torch.cat([embedded[:, 0], patches.mean((0, 1))[None], chosen]))
        cls_scores, patch_mean, patch_scores = scores.tensor_split([len(tokens), len(tokens) + 1])
        cls = teacher_distribution(cls_scores, self.model.cls_centre, self.cls_temperature)
        self._means.append(torch.stack([cls_scores.mean(0), patch_mean[0], cls.mean(0)]))
        hidden_patches = teacher_distribution(patch_scores, self.model.patch_centre, self.patch_temperature)
        return cls.unflatten(0, (pictures, -1)), hidden_patches

    def _predictions(
        self,
        images: Float[Tensor, "crops 3 y x"],
        mask: Bool[Tensor, "crops gy gx"],
        places: Int[Tensor, " hidden"],
        local: UInt8[Tensor, "b locals 3 ly lx"] | None,
    ) -> tuple[Float[Tensor, "b views outputs"], Float[Tensor, "hidden outputs"]]:
        """The student's scores of each picture's crops, and of hidden patches."""
        model, student = self.model, self.model.student
        with masked_input(student.get_submodule(self.anatomy.patch_embed), mask, model.mask_token[0]):
            tokens = student.forward_features(images)
        cls = [tokens[:, 0].unflatten(0, (-1, 2))]
        if local is not None:
            small = student.forward_features(self.normalised(local.flatten(0, 1)))
            cls.append(small[:, 0].unflatten(0, (-1, local.shape[1])))
        views = torch.cat(cls, dim=1)
        patches = tokens[:, self.anatomy.prefix_tokens :].flatten(0, 1).index_select(0, places)
        scores = model.head(torch.cat([views.flatten(0, 1), patches]))
        cls_scores, patch_scores = scores.tensor_split([views.shape[0] * views.shape[1]])
        return cls_scores.unflatten(0, views.shape[:2]), patch_scores

    def _weight(self, density: Float[Tensor, "crops wy wx"]) -> Float[Tensor, "crops n"]:
        weights = density_weights(density, self.settings.weight_temperature)
        return weights_of_patches(weights, self.settings.weight_patch, self.anatomy.mask_patch).flatten(1)

    def adjust_gradients(self, progress: Progress) -> None:
        """Prototypes rest in the first epochs."""
        if progress.epoch < self.settings.freeze_last_layer:
            for weight in self.model.head.last_layer.parameters():
                weight.grad = None

    @torch.no_grad()
    def end_step(self, progress: Progress) -> None:
        """Centres and teacher move on."""
        model = self.model
        means = torch.stack(self._means).mean(0)
        self._means = []
        if dist.is_initialized():
            dist.all_reduce(means)
            means /= dist.get_world_size()
        cls, patch, cls_mean = means
        share = 1 - self.settings.centre_momentum
        moved = torch.stack([model.cls_centre.lerp(cls, share), model.patch_centre.lerp(patch, share), cls_mean])
        # a step whose gradients are not finite leaves them, like the weights, as they were
        finite = means.isfinite().all()
        for buffer, value in zip((model.cls_centre, model.patch_centre, model.cls_mean), moved, strict=True):
            buffer.copy_(torch.where(finite, value, buffer))
        momentum = cosine(self.settings.momentum, 1.0, progress.share)
        follow(model.encoder, model.student, momentum)
        follow(model.teacher_head, model.head, momentum)

    def diagnosis(self, numbers: Mapping[str, float]) -> str:
        """The two ways in which distillation collapses (DINO, arXiv 2104.14294, section 5.3)."""
        if numbers["teacher_diversity"] < _ONE_FOR_ALL:
            return "collapsed: one prototype for all pictures"
        if numbers["teacher_entropy"] > _UNIFORM:
            return "collapsed: uniform over prototypes"
        return ""

    def describe(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """The recipe, and which encoder is whose."""
        return {
            "training": recipe,
            "head": None,
            "beside": ["head.", "teacher_head.", "mask_token", "cls_centre", "patch_centre", "cls_mean"],
            "branches": {"teacher": "encoder.", "student": "student."},
        }
