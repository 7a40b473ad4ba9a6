"""From models and data to the results of `kamim aggregate`."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from kamim_analysis import processes
from kamim_analysis.comparison import write_and_compare
from kamim_analysis.encoders import anatomy
from kamim_analysis.extraction import CLS_WEIGHTS, PATCHES, Features, Loading, Norm, Wanted, resolve_layers
from kamim_analysis.feature_writing import Extraction, write_store
from kamim_analysis.frozen_features import SplitFeatures, frozen_features
from kamim_analysis.manifest import manifest, model_entry
from kamim_analysis.model_spec import ModelSpec
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.poolings.attentive import Attentive
from kamim_analysis.protocol import protocol
from kamim_analysis.results import Row, Samples
from kamim_analysis.runtime import best_device
from kamim_analysis.sampling import ChosenPictures
from kamim_analysis.splits import stratified

from .aggregation import BASELINES, Part, aggregate, difference, outcome_rows
from .aggregation_training import Outcome, Recipe
from .feature_protocol import feature_items

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `kamim aggregate` was asked for."""

    models: Sequence[ModelSpec]
    layers: Sequence[int] | Literal["all"] = (-1,)
    norm: Norm = "last"
    image_size: int | None = None
    queries: int | None = None
    """Of attentive pooling; None: 8, or the most below that divide the channels."""
    seeds: int = 3
    seed: int = 0
    """The first one; of data with a single split, it draws the test pictures too."""
    test_share: float = 0.5
    """Of data with a single split, the share of each class that is judged."""
    recipe: Recipe = field(default_factory=Recipe)
    loading: Loading = field(default_factory=Loading)
    stores: Sequence[Path] = ()
    memory_gb: float = 2.0
    """Patch tokens beyond this go to the disk while a model is worked on."""


def run_aggregation(request: Request, data: ChosenPictures, out: Path | None, aside: Path) -> str:
    """Probe every pooling of every model, write metrics, comparison and manifest into `out` (None: not this process).

    `aside`: where patch tokens may lie that do not fit into memory. Returns a table to print.
    """
    _check_counts(data, request)
    rows: dict[str, list[Row]] = {}
    samples: dict[str, Samples] = {}
    entries = []
    for spec in request.models:
        opened = open_model(spec, request.image_size, seed=request.seed)
        opened.encoder.to(best_device())
        wanted = _wanted(opened, request)
        with _tokens(opened, data, wanted, request, aside) as features:
            if out is None:
                continue
            rows[spec.label], samples[spec.label], chosen = _model(opened, features, data, wanted, request)
        entries.append(model_entry(opened, {}) | {"aggregation": chosen})
    data.unreadable.names |= processes.united(data.unreadable.names)
    if out is None:
        return ""
    settings = {"seeds": request.seeds, "test_share": None if data.bank else request.test_share}
    said = manifest(data, entries, seed=request.seed, aggregation=asdict(request.recipe) | settings)
    write_and_compare(out, said, rows, {}, samples)
    return _table(rows, entries)


def _wanted(opened: OpenedModel, request: Request) -> Wanted:
    body = anatomy(opened.encoder)
    if request.queries is not None:
        Attentive(body.width, request.queries)  # refuses queries that do not divide the channels, before the pass
    return Wanted(
        layers=resolve_layers(request.layers, opened.encoder),
        poolings=(PATCHES, *(("cls", CLS_WEIGHTS) if body.has_cls else ())),
        norm=request.norm,
    )


@contextmanager
def _tokens(
    opened: OpenedModel, data: ChosenPictures, wanted: Wanted, request: Request, aside: Path
) -> Iterator[SplitFeatures]:
    """Patch tokens in memory, of the stores that were given, or in one that is removed on leaving."""
    if request.stores:
        yield frozen_features(opened, data, wanted, request.loading, request.stores)
        return
    extraction = Extraction(opened=opened, data=data, wanted=wanted, loading=request.loading)
    gigabytes = extraction.picture_bytes * (len(data.test_indices) + len(data.bank_indices)) / 1e9
    where = "in memory" if gigabytes <= request.memory_gb else f"on disk for now (--memory_gb {request.memory_gb:g})"
    log.info("%s: %.2f GB of patch tokens, %s", opened.label, gigabytes, where)
    if gigabytes <= request.memory_gb:
        yield frozen_features(opened, data, wanted, request.loading)
        return
    try:
        write_store(extraction, aside)
        yield frozen_features(opened, data, wanted, request.loading, [aside])
    finally:
        if processes.is_first():
            shutil.rmtree(aside, ignore_errors=True)


def _model(
    opened: OpenedModel, features: SplitFeatures, data: ChosenPictures, wanted: Wanted, request: Request
) -> tuple[list[Row], Samples, dict[str, Any]]:
    """Rows and samples of all layers, and what was chosen, for the manifest."""
    rows: list[Row] = []
    samples: Samples = {}
    chosen: dict[str, Any] = {}
    blocks = anatomy(opened.encoder).blocks
    halves = _halves(features, data, request)
    for layer in wanted.layers:
        learn, test = (Part(*half, layer, blocks[max(layer - 1, 0)].grid) for half in halves)
        seeds = range(request.seed, request.seed + request.seeds)
        outcomes = aggregate(learn, test, request.recipe, seeds, request.queries)
        protocols = _protocols(opened, outcomes, learn, test, wanted.normed(layer, len(blocks)), request)
        _warn_of_ends(opened.label, layer, outcomes)
        of_layer, values = outcome_rows(outcomes, layer, protocols)
        rows, samples = rows + of_layer, samples | values
        chosen[str(layer)] = {
            name: {
                "learning_rate": one.rate,
                "held_out_top1": {f"{rate:g}": top1 for rate, top1 in one.held_out.items()},
            }
            for name, one in outcomes.items()
        }
    return rows, samples, chosen


def _warn_of_ends(label: str, layer: int, outcomes: Mapping[str, Outcome]) -> None:
    """A pooling whose best rate is the highest may want a higher one, and its gain or that over it is then not told."""
    highest = [name for name, one in outcomes.items() if len(one.held_out) > 1 and one.rate == max(one.held_out)]
    if highest:
        names = ", ".join(highest)
        log.warning("%s, layer %s: %s did best with the highest --learning_rates; add higher ones", label, layer, names)


def _halves(
    features: SplitFeatures, data: ChosenPictures, request: Request
) -> list[tuple[Features, Int64[Tensor, " m"]]]:
    """Pictures to learn from and pictures to judge. Raises UserError for a class with too few for what they must do."""
    source = features.test if features.bank is None else features.bank
    learn, test = _split(source.labels, data, request)
    if features.bank is None:
        return [(features.test, learn), (features.test, test)]
    return [(features.bank, learn), (features.test, torch.arange(len(features.test)))]


def _split(
    labels: Int64[Tensor, " i"], data: ChosenPictures, request: Request
) -> tuple[Int64[Tensor, " m"], Int64[Tensor, " t"]]:
    """Positions to learn from, those held out included, and, of data with one split, positions to judge."""
    held_out, judged = request.recipe.held_out, 0.0 if data.bank else request.test_share
    shares = [(1 - judged) * (1 - held_out), (1 - judged) * held_out, *([judged] if judged else [])]
    # in one go, so that a class with too few pictures is told by what all parts together take
    fit, held, *test = stratified(labels, shares, request.seed, data.test.classes)
    return torch.cat([fit, held]).sort().values, torch.cat(test) if test else labels.new_zeros(0)


def _check_counts(data: ChosenPictures, request: Request) -> None:
    """`_split` of labels that are known before pictures are read."""
    pictures, indices = (data.test, data.test_indices) if data.bank is None else (data.bank, data.bank_indices)
    if pictures.labels is not None:
        _split(torch.from_numpy(np.asarray(pictures.labels)[indices]).long(), data, request)


def _protocols(
    opened: OpenedModel, outcomes: Mapping[str, Outcome], learn: Part, test: Part, final_norm: bool, request: Request
) -> dict[str, str]:
    """By pooling, and for gains by pair of poolings."""
    recipe = request.recipe
    names: list[tuple[str, str | None]] = [(name, None) for name in outcomes]
    names += [(name, base) for base in BASELINES if base in outcomes for name in outcomes if name != base]
    found = {}
    for name, base in names:
        pooling = name if base is None else difference(name, base)
        rates = [f"{outcomes[one].rate:g}" for one in (name, base) if one is not None]
        found[pooling] = protocol(
            evaluation="aggregation",
            **feature_items(opened.encoder, pooling, final_norm=final_norm),
            train=outcomes[name].learned_from,
            test=len(test.positions),
            seeds=request.seeds,
            learning_rate=" and ".join(rates),
            chosen_of=", ".join(f"{rate:g}" for rate in recipe.learning_rates),
            chosen_on=f"{len(learn.positions) - outcomes[name].learned_from} held out",
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            weight_decay=recipe.weight_decay,
            standardised="tokens and feature by channel",
            augmentation="none",
        )
    return found


def _table(rows: Mapping[str, Sequence[Row]], entries: Sequence[Mapping[str, Any]]) -> str:
    """Shares in percent, gains in percentage points."""
    lines = [
        f"{'model':<24} {'layer':>5}  {'pooling':<13} {'top-1 %':>7} {'[95% interval]':<15} "
        f"{'over mean':>9} {'':<15} {'over cls':>9} {'':<15} entropy"
    ]
    for entry in entries:
        label = entry["label"]
        found = {(row.layer, row.statistic): row for row in rows[label]}
        for layer, names in entry["aggregation"].items():
            for name in names:
                row = {kind: found.get((int(layer), f"{kind}_{name}")) for kind in _KINDS}
                cells = " ".join(_cell(row[kind]) for kind in _KINDS[:3])
                evenness = "" if row["entropy"] is None else f"{row['entropy'].value:7.3f}"
                lines.append(f"{label:<24} {layer:>5}  {name:<13} {cells} {evenness}")
    return "\n".join(line.rstrip() for line in lines)


_KINDS = ("top1", "gain_over_mean", "gain_over_cls", "entropy")


def _cell(row: Row | None) -> str:
    if row is None:
        return " " * 25
    sign = "" if row.statistic.startswith("top1") else "+"
    low, high = (f"{100 * bound:{sign}.1f}" for bound in (row.ci_low, row.ci_high))
    return f"{100 * row.value:{sign}9.1f} {f'[{low}, {high}]':<15}"
