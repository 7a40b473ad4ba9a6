"""All analyses of one model in a single pass over the images."""

import inspect
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis import plugins
from kamim_analysis.attention import patch_attention
from kamim_analysis.encoders import evaluating, pool
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.recorder import Kind, record
from kamim_analysis.results import Row

from ._analysis import Analysis, Batch, Site, Subject

log = logging.getLogger(__name__)
PACKAGE = "kamim_analysis.analyses"
_RECORDED: dict[Site, Kind] = {
    "patch_attention": "attention",
    "tokens": "tokens",
    "attention_input": "attention_input",
    "attention_output": "attention_output",
}


def analysis_class(module: ModuleType) -> type[Analysis]:
    """The one analysis that a plug-in defines."""
    (found,) = (
        value
        for _name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Analysis) and value.__module__ == module.__name__
    )
    return found


@dataclass
class Outcome:
    """What the analyses of one model found, and which did not run, with the reason."""

    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Suite:
    """The chosen analyses of one model: `update` for each batch, then `outcome`."""

    def __init__(self, encoder: Any, subject: Subject, names: Sequence[str] | None = None) -> None:
        self.encoder, self.subject = encoder, subject
        self.skipped: dict[str, str] = {}
        self.analyses: dict[str, Analysis] = {}
        for name in names or plugins.names(PACKAGE):
            cls = analysis_class(plugins.load(PACKAGE, name, "analysis"))
            reason = cls.unavailable(subject)
            if reason:
                self.skipped[name] = reason
                log.info("%s: %s skipped: %s", subject.label, name, reason)
            else:
                self.analyses[name] = cls(subject)
        # which analyses each site's layer goes to
        self._listeners: dict[tuple[Site, int], list[Analysis]] = {}
        for analysis in self.analyses.values():
            for site in analysis.SITES:
                for layer in analysis.layers_wanted(site):
                    self._listeners.setdefault((site, layer), []).append(analysis)

    @property
    def wants_bank(self) -> bool:
        """Whether an analysis needs features of the training pictures."""
        return any(analysis.WANTS_BANK for analysis in self.analyses.values())

    def update(self, images: ImageBatch) -> None:
        """One forward pass with hooks, then close the batch."""
        with evaluating(self.encoder):
            with record(self.encoder, **self._layers(), sink=self._dispatch):
                tokens = self.encoder.forward_features(images.images)
            features = pool(tokens, self.subject.anatomy, self.subject.pooling)
            batch = Batch(images=images.images, labels=images.labels, indices=images.indices, features=features)
            for analysis in self.analyses.values():
                analysis.update(batch)

    def update_bank(self, batches: Iterable[ImageBatch]) -> None:
        """Features of training pictures, without hooks."""
        with evaluating(self.encoder):
            for batch in batches:
                tokens = self.encoder.forward_features(batch.images)
                features = pool(tokens, self.subject.anatomy, self.subject.pooling)
                for analysis in self.analyses.values():
                    analysis.update_bank(features, batch.labels)

    def outcome(self) -> Outcome:
        """Compute every analysis."""
        outcome = Outcome(skipped=self.skipped)
        for analysis in self.analyses.values():
            findings = analysis.compute()
            outcome.rows += findings.rows
            outcome.arrays.setdefault(analysis.FILE, {}).update(findings.arrays)
        return outcome

    def _layers(self) -> dict[Kind, list[int]]:
        wanted: dict[Kind, list[int]] = {kind: [] for kind in _RECORDED.values()}
        for site, layer in self._listeners:
            wanted[_RECORDED[site]].append(layer)
        return wanted

    def _dispatch(self, kind: Kind, layer: int, values: Tensor) -> None:
        """From a hook to the analyses that want this site of this layer."""
        site: Site = "patch_attention" if kind == "attention" else kind
        if site == "patch_attention":
            values = patch_attention(values, self.subject.block(layer).prefix_tokens)
        for analysis in self._listeners[site, layer]:
            analysis.observe(site, layer, values)


def to_device(batch: ImageBatch, device: torch.device) -> ImageBatch:
    """The images on a device; labels and indices stay where they are."""
    return ImageBatch(batch.images.to(device, non_blocking=True), batch.labels, batch.indices)
