"""From models and data to a results directory."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from kamim_analysis import processes, results
from kamim_analysis.comparison import write_and_compare
from kamim_analysis.data import Pictures, Unreadable
from kamim_analysis.encoders import anatomy
from kamim_analysis.errors import UserError
from kamim_analysis.evaluation_set import ImageBatch
from kamim_analysis.extraction import Loading, batches_of
from kamim_analysis.manifest import manifest, model_entry
from kamim_analysis.model_spec import ModelSpec
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.protocol import protocol
from kamim_analysis.runtime import best_device
from kamim_analysis.sampling import ChosenPictures, open_data

from ._analysis import Subject
from ._suite import Outcome, Suite, to_device
from .self_attention_tokens import SHOWN

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `kamim analyze` was asked for."""

    models: Sequence[ModelSpec]
    data: str
    data_root: str | None = None
    analyses: Sequence[str] | None = None
    images: int | None = 512
    image_size: int | None = None
    pooling: str = "mean"
    seed: int = 0
    batch_size: int = 32
    workers: int = 2
    max_unreadable: float = 0.01


def analyze(request: Request, out: Path | None) -> Unreadable:
    """Run the analyses and write metrics, arrays and manifest into `out`, which must exist; None: not this process.

    Returns the account of pictures that could not be read, for the caller to check once the results are safe.
    Raises UserError for models or data that cannot be opened.
    """
    data = open_data(
        request.data,
        request.data_root,
        request.images,
        request.seed,
        max_unreadable=request.max_unreadable,
        shown=SHOWN,
    )
    rows: dict[str, list[results.Row]] = {}
    arrays: dict[str, dict[str, dict[str, NDArray[Any]]]] = {}
    samples: dict[str, results.Samples] = {}
    entries = []
    for spec in request.models:
        opened = open_model(spec, request.image_size, seed=request.seed)
        suite = _fed(opened, data, request)
        if out is None:
            continue
        outcome = _outcome(suite)
        rows[spec.label], samples[spec.label] = _with_protocol(outcome.rows, opened), outcome.samples
        for file, named in outcome.arrays.items():
            arrays.setdefault(file, {})[spec.label] = named
        entries.append(model_entry(opened, outcome.skipped))
        del opened, suite
    data.unreadable.names |= processes.united(data.unreadable.names)
    if out is None:
        return data.unreadable
    write_and_compare(out, manifest(data, entries, seed=request.seed, pooling=request.pooling), rows, arrays, samples)
    return data.unreadable


def _fed(opened: OpenedModel, data: ChosenPictures, request: Request) -> Suite:
    """The analyses of a model, fed with all pictures, those of other processes too. Raises UserError without any."""
    device = best_device()
    opened.encoder.to(device)
    if opened.masked_model is not None:
        opened.masked_model.to(device)
    suite = Suite(opened.encoder, _subject(opened, data, request), request.analyses)
    if suite.wants_bank and data.bank is not None:
        bank = loaded(opened, data.bank, data.bank_indices, data, request, "neighbours")
        suite.update_bank(to_device(batch, device) for batch in bank)
    read = 0
    for batch in loaded(opened, data.test, data.test_indices, data, request, "images"):
        suite.update(to_device(batch, device))
        read += len(batch.labels)
    if not processes.gathered(torch.tensor([read])).any():
        raise UserError(f"none of the {len(data.test_indices)} images of {data.test.name} could be read")
    suite.merge()
    return suite


def _subject(opened: OpenedModel, data: ChosenPictures, request: Request) -> Subject:
    transform = opened.provenance["transform"]
    return Subject(
        label=opened.label,
        anatomy=anatomy(opened.encoder),
        mean=tuple(transform["mean"]),
        std=tuple(transform["std"]),
        encoder=opened.encoder,
        masked_model=opened.masked_model,
        masking=opened.masking,
        classes=data.classes,
        pooling=request.pooling,
        seed=request.seed,
    )


def _with_protocol(rows: Sequence[results.Row], opened: OpenedModel) -> list[results.Row]:
    """Rows of analyses that have no protocol of their own say how the pictures were shown, and how many."""
    return [
        row
        if row.protocol
        else row._replace(protocol=protocol(evaluation=row.analysis, **opened.shown, test=row.images))
        for row in rows
    ]


def loaded(
    opened: OpenedModel, pictures: Pictures, indices: Sequence[int], data: ChosenPictures, request: Request, what: str
) -> Iterator[ImageBatch]:
    """This process's batches of the pictures at `indices`, with a progress bar."""
    loading = Loading(request.batch_size, request.workers)
    own = processes.own(indices, request.batch_size)
    return batches_of(opened, pictures, own, data.unreadable, loading, what)


def _outcome(suite: Suite) -> Outcome:
    outcome = suite.outcome()
    shares = sorted(suite.shares().items(), key=lambda item: -item[1])
    log.info("%s: time: %s", suite.subject.label, ", ".join(f"{name} {share:.0%}" for name, share in shares))
    return outcome
