"""All analyses of one model in a single pass over the images."""

import inspect
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis import plugins
from kamim_analysis.attention import patch_attention
from kamim_analysis.encoders import evaluating, pool
from kamim_analysis.errors import UserError
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.recorder import Kind, record
from kamim_analysis.results import Row, Samples

from ._analysis import Analysis, Batch, Site, Subject

log = logging.getLogger(__name__)
PACKAGE = "kamim_analysis.analyses"
_FORWARD = "forward pass"
_RECORDED: dict[Site, Kind] = {
    "attention": "attention",
    "patch_attention": "attention",
    "tokens": "tokens",
    "attention_input": "attention_input",
    "attention_output": "attention_output",
    "after_attention": "after_attention",
}


def analysis_class(module: ModuleType) -> type[Analysis]:
    """The one analysis that a plug-in defines."""
    (found,) = (
        value
        for _name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Analysis) and value.__module__ == module.__name__
    )
    return found


def usual() -> list[str]:
    """Names of the analyses that run unless others are asked for: those that cost little."""
    return [name for name, about in plugins.constants(PACKAGE).items() if about["BY_DEFAULT"]]


@dataclass
class Outcome:
    """What the analyses of one model found, and which did not run, with the reason."""

    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


class Suite:
    """The chosen analyses of one model: `update` for each batch, then `outcome`."""

    def __init__(self, encoder: Any, subject: Subject, names: Sequence[str] | None = None) -> None:
        self.encoder, self.subject = encoder, subject
        self.skipped: dict[str, str] = {}
        self.analyses: dict[str, Analysis] = {}
        for name in names or usual():
            cls = analysis_class(plugins.load(PACKAGE, name, "analysis"))
            reason = cls.unavailable(subject)
            if reason:
                self.skipped[name] = reason
                log.info("%s: %s skipped: %s", subject.label, name, reason)
            else:
                self.analyses[name] = cls(subject)
        # names of the analyses that each site's layer goes to
        self._listeners: dict[tuple[Site, int], list[str]] = {}
        for name, analysis in self.analyses.items():
            for site in analysis.SITES:
                for layer in analysis.layers_wanted(site):
                    self._listeners.setdefault((site, layer), []).append(name)
        self._seconds = dict.fromkeys([_FORWARD, *self.analyses], 0.0)
        self._seen = 0

    @property
    def wants_bank(self) -> bool:
        """Whether an analysis needs features of the training pictures."""
        return any(analysis.WANTS_BANK for analysis in self.analyses.values())

    def update(self, images: ImageBatch) -> None:
        """One forward pass with hooks, then close the batch."""
        start, elsewhere = time.perf_counter(), sum(self._seconds.values())
        with evaluating(self.encoder):
            with record(self.encoder, **self._layers(), sink=self._dispatch, check_rows="always"):
                tokens = self.encoder.forward_features(images.images)
            features = self._pooled(tokens)
            batch = Batch(images=images.images, labels=images.labels, indices=images.indices, features=features)
            for name, analysis in self.analyses.items():
                if self._wants(name):
                    with self._clock(name):
                        analysis.update(batch)
        self._seen += len(images.images)
        inside = sum(self._seconds.values()) - elsewhere
        self._seconds[_FORWARD] += time.perf_counter() - start - inside

    def update_bank(self, batches: Iterable[ImageBatch]) -> None:
        """Features of training pictures, without hooks."""
        with evaluating(self.encoder):
            for batch in batches:
                tokens = self.encoder.forward_features(batch.images)
                features = self._pooled(tokens)
                for analysis in self.analyses.values():
                    analysis.update_bank(features, batch.labels)

    def _pooled(self, tokens: Tensor) -> Tensor:
        features = pool(tokens, self.subject.anatomy, self.subject.pooling)
        self._check_finite("the image-level features", features)
        return features

    def _check_finite(self, what: str, values: Tensor) -> None:
        """One number that is none spoils most analyses, each in its own way: better none of them, and a reason."""
        if values.sum().isfinite():  # no number but finite ones can add up to one, which takes a fiftieth of the time
            return
        wrong = ~values.flatten(1).isfinite().all(1)
        if wrong.any():
            raise UserError(
                f"{self.subject.label}: {what} hold NaN or infinity in {int(wrong.sum())} of {len(wrong)} pictures, so "
                "the model cannot be analysed; look for weights that are not finite, or numbers too large for half "
                "precision"
            )

    def merge(self) -> None:
        """Take in what other processes saw, if there are any; all must call it, and only one needs the outcome."""
        for analysis in self.analyses.values():
            analysis.sync()

    def outcome(self) -> Outcome:
        """Compute every analysis."""
        outcome = Outcome(skipped=dict(self.skipped))
        for name, analysis in self.analyses.items():
            with self._clock(name):
                findings = analysis.compute()
            if findings.absent:
                outcome.skipped[name] = findings.absent
                log.info("%s: %s skipped: %s", self.subject.label, name, findings.absent)
            outcome.rows += findings.rows
            outcome.samples |= findings.samples
            outcome.arrays.setdefault(analysis.FILE, {}).update(findings.arrays)
        return outcome

    def shares(self) -> dict[str, float]:
        """Each analysis's share of the time so far, and that of the forward passes; of the host's time on a GPU."""
        whole = sum(self._seconds.values())
        return {name: seconds / whole for name, seconds in self._seconds.items()} if whole else {}

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def _wants(self, name: str) -> bool:
        """Whether an analysis has not seen its fill."""
        most = self.analyses[name].MOST
        return most is None or self._seen < most

    def _layers(self) -> dict[Kind, list[int]]:
        wanted: dict[Kind, set[int]] = {kind: set() for kind in _RECORDED.values()}
        for site, layer in self._listeners:
            wanted[_RECORDED[site]].add(layer)
        return {kind: sorted(layers) for kind, layers in wanted.items()}

    def _dispatch(self, kind: Kind, layer: int, values: Tensor) -> None:
        """From a hook to the analyses that want this site of this layer."""
        for site, recorded in _RECORDED.items():
            listeners = list(filter(self._wants, self._listeners.get((site, layer), []))) if recorded == kind else []
            if not listeners:
                continue
            with self._clock(_FORWARD):  # shared by all that want it
                seen = values
                if kind != "attention":  # whose rows the recorder looks at
                    self._check_finite(f"{kind.replace('_', ' ')} of layer {layer}", values)
                if site == "patch_attention":
                    seen = patch_attention(values, self.subject.block(layer).prefix_tokens)
            for name in listeners:
                with self._clock(name):
                    self.analyses[name].observe(site, layer, seen)


def to_device(batch: ImageBatch, device: torch.device) -> ImageBatch:
    """The images on a device; labels and indices stay where they are."""
    return ImageBatch(batch.images.to(device, non_blocking=True), batch.labels, batch.indices)
