"""From the settings of a probe or a fine-tuning to the module that is trained."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from kamim_analysis.encoders import anatomy
from kamim_analysis.fingerprints import weights_fingerprint
from kamim_analysis.models._anatomy import Anatomy
from kamim_analysis.opening import OWN_EPS

from .classification import ClassificationObjective
from .classifier import Classifier
from .layer_rates import layer_decay_scales
from .layer_tokens import has_final_norm
from .start import LabelledStart, Start

if TYPE_CHECKING:
    from .objectives._classification import Classification, Norm

log = logging.getLogger(__name__)
# "layer 8" of the papers
_PROBED = 8


def build(settings: Classification, start: Start) -> ClassificationObjective:
    """Classifier and loss. Raises UserError for a layer, pooling or norm that the encoder does not offer."""
    assert isinstance(start, LabelledStart)
    encoder = start.encoder
    hashed = weights_fingerprint(encoder)
    model = Classifier(
        encoder,
        layer=chosen_layer(settings, anatomy(encoder)),
        pooling=settings.pooling,
        norm=_norm(settings, encoder),
        classes=start.data.classes,
        frozen=settings.FROZEN,
    )
    return ClassificationObjective(
        model,
        start,
        mixing=settings.mixing,
        label_smoothing=settings.label_smoothing,
        description=_description(settings, start, model, hashed),
        rate_scales=_rate_scales(settings, encoder),
    )


def chosen_layer(settings: Classification, body: Anatomy) -> int:
    """The layer by its number."""
    last = len(body.blocks)
    if settings.layer == "auto":
        return _PROBED if settings.FROZEN and body.family == "vit" else last
    return last if settings.layer == "last" else settings.layer


def _norm(settings: Classification, encoder: nn.Module) -> Norm:
    """Fine-tuning takes an encoder with the final norm that it has, if any; to probe behind a norm that is not there
    is a mistake.
    """
    if settings.norm == "final" and not settings.FROZEN and not has_final_norm(encoder):
        log.warning("this encoder has no final norm, so none is applied")
        return "none"
    return settings.norm


def _description(
    settings: Classification, start: LabelledStart, model: Classifier, starting_weights: str
) -> dict[str, Any]:
    described = {
        "classifier": {
            "layer": model.layer,
            "pooling": settings.pooling,
            "norm": model.norm_name,
            "classes": list(start.data.train.classes) or start.data.classes,
        },
        "started_from": {"spec": start.opened.spec, **start.opened.provenance},
        "starting_weights": starting_weights,
    }
    eps = _layer_norm_eps(start.encoder)
    return described if eps is None else described | {"layer_norm_eps": eps}


def _layer_norm_eps(encoder: nn.Module) -> float | None:
    """The LayerNorms' epsilon, which is no argument of every timm model; None where they have several."""
    found = {
        module.eps
        for path, module in encoder.named_modules()
        if isinstance(module, nn.LayerNorm) and not path.endswith(OWN_EPS)
    }
    return found.pop() if len(found) == 1 else None


def _rate_scales(settings: Classification, encoder: nn.Module) -> dict[str, float]:
    decay = cast(float, getattr(settings, "layer_decay", 1.0))
    if decay == 1:
        return {}
    return {f"model.encoder.{name}": scale for name, scale in layer_decay_scales(encoder, decay).items()}
