"""What a training starts from: the pictures it learns from, and an encoder."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import timm.data

from kamim_analysis import encoders
from kamim_analysis.data import Pictures, open_pictures
from kamim_analysis.encoders import anatomy
from kamim_analysis.model_spec import ModelSpec
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.reconstruction import MEAN, STD

from .labelled import Labelled, first_of_each_class, open_labelled

if TYPE_CHECKING:
    from .recipe import Recipe


@dataclass(frozen=True)
class Start:
    """Pictures and encoder."""

    pictures: Pictures
    encoder: Any
    """The timm model; its `pretrained_cfg` says what it must be shown."""


@dataclass(frozen=True)
class LabelledStart(Start):
    """Pictures of several classes, others to judge by, and an encoder that was trained before."""

    data: Labelled
    opened: OpenedModel


def from_random_weights(recipe: "Recipe", **options: Any) -> Start:
    """The training split's pictures, and the recipe's architecture with random weights; `options` go to timm."""
    pictures = _chosen(open_pictures(recipe.data.source, "train", root=recipe.data.root, seed=recipe.seed), recipe)
    settings, size = recipe.encoder, recipe.encoder.image_size
    assert settings.name is not None  # as Objective.check has seen to
    assert size is not None
    options["drop_path_rate"] = settings.drop_path
    encoder: Any = encoders.create(settings.name, size, sizes=settings.sizes(), **options)
    # what the trained encoder must be shown later: the whole picture, normalised as in training
    encoder.pretrained_cfg.update(
        mean=MEAN, std=STD, input_size=(3, size, size), crop_pct=1.0, interpolation="bilinear"
    )
    return Start(pictures, encoder)


def from_model(recipe: "Recipe", spec: ModelSpec, held_out: float) -> LabelledStart:
    """Labelled pictures and the encoder of a SPEC, at the recipe's image size or its own."""
    data = open_labelled(recipe.data.source, recipe.data.root, held_out, recipe.seed)
    opened = open_model(spec, recipe.encoder.image_size, seed=recipe.seed)
    encoder: Any = opened.encoder
    encoder.pretrained_cfg.update(opened.provenance["transform"])
    data = replace(data, train=_chosen(data.train, recipe))
    return LabelledStart(data.train, encoder, data, opened)


def _chosen(pictures: Pictures, recipe: "Recipe") -> Pictures:
    """All pictures, or as many of each class as the recipe says."""
    count = recipe.data.per_class
    return pictures if count is None else first_of_each_class(pictures, count)


def evaluation_transform(encoder: Any, *, normalize: bool) -> Any:
    """timm's evaluation transform at the encoder's image size: Pillow image to uint8 [3, S, S], or normalised."""
    size = anatomy(encoder).image_size
    config = timm.data.resolve_data_config({"input_size": (3, *size)}, model=encoder)
    return timm.data.create_transform(**config, is_training=False, normalize=normalize)
