"""Probes of all layers, poolings and learning rates of frozen encoders, for `kamim fast_probe`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kamim_analysis import processes
from kamim_analysis.bootstrap import crossed_interval
from kamim_analysis.comparison import write_and_compare
from kamim_analysis.errors import some
from kamim_analysis.extraction import Key, Loading, Wanted, default_poolings, resolve_layers
from kamim_analysis.frozen_features import frozen_features
from kamim_analysis.manifest import manifest, model_entry
from kamim_analysis.model_spec import ModelSpec
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.protocol import protocol
from kamim_analysis.results import Row, Samples, rows_of
from kamim_analysis.sampling import ChosenPictures

from .fast_probe_choice import (
    FastProbeSettings,
    Parts,
    Trial,
    best_of,
    held_out_split,
    outer_split,
    parts_of,
    trials_of,
)
from .fast_probe_table import fast_probe_table
from .feature_protocol import feature_items

log = logging.getLogger(__name__)
ANALYSIS = "fast_probe"


def run_fast_probe(
    models: Sequence[ModelSpec],
    data: ChosenPictures,
    settings: FastProbeSettings,
    loading: Loading,
    out: Path | None,
) -> str:
    """Take features, train, choose, judge, write the results into `out` (None: not this process); returns a table.

    Raises UserError for models and features as `frozen_features` does, and for classes with too few pictures.
    """
    _check_counts(data, settings)
    rows: dict[str, list[Row]] = {}
    samples: dict[str, Samples] = {}
    entries = []
    for spec in models:
        opened = open_model(spec, settings.image_size, seed=settings.seed)
        poolings = settings.poolings or tuple(default_poolings(opened.encoder))
        wanted = Wanted(layers=resolve_layers(settings.layers, opened.encoder), poolings=poolings, norm=settings.norm)
        features = frozen_features(opened, data, wanted, loading, settings.stores)
        if out is None:
            continue
        parts = parts_of(features, settings, (data.bank or data.test).classes)
        _warn_of_unknown(parts, data, spec.label)
        trials = trials_of(parts, settings.recipe, settings.seed, spec.label)
        rows[spec.label], samples[spec.label] = _findings(opened, wanted, parts, trials, settings)
        entries.append(model_entry(opened, {}))
        warn_of_ends(trials, settings.recipe.learning_rates, spec.label)
    data.unreadable.names |= processes.united(data.unreadable.names)
    if out is None:
        return ""
    write_and_compare(out, _manifest(data, entries, settings), rows, {}, samples)
    return fast_probe_table(rows)


def _check_counts(data: ChosenPictures, settings: FastProbeSettings) -> None:
    """Say before features are extracted, which takes long, that a class has too few pictures."""
    pictures, indices = (data.bank, data.bank_indices) if data.bank else (data.test, data.test_indices)
    if pictures.labels is not None:
        labels = torch.from_numpy(np.asarray(pictures.labels)[indices]).long()
        known, _ = outer_split(labels, settings, pictures.classes, single=data.bank is None)
        held_out_split(labels[known], settings, settings.seed, pictures.classes)


def _manifest(data: ChosenPictures, entries: list[dict[str, Any]], settings: FastProbeSettings) -> dict[str, Any]:
    asked = asdict(settings.recipe) | {
        "norm": settings.norm,
        "seeds": settings.seeds,
        "held_out_share": settings.held_out_share,
        "test_share": settings.test_share if data.bank is None else None,
    }
    poolings = ",".join(settings.poolings) or "those the encoder offers"
    return manifest(data, entries, seed=settings.seed, pooling=poolings, fast_probe=asked)


def _findings(
    opened: OpenedModel, wanted: Wanted, parts: Parts, trials: Mapping[Key, Trial], settings: FastProbeSettings
) -> tuple[list[Row], Samples]:
    """Rows of each layer and pooling, then `top1_best`; test pictures' values, mean over seeds.

    `top1_<pooling>`: accuracy on test pictures in [0, 1] with the rate chosen on held-out ones, its interval over test
    pictures, and seeds where there are several. `held_out_top1_<pooling>`: accuracy there, without interval: as the
    highest of several it flatters. `learning_rate_<pooling>`: the rate chosen. `top1_best`: `top1_<pooling>` of the
    layer and pooling chosen on the held-out pictures, the number to report; its sample has no layer, so that models are
    compared each at its own. `majority`: accuracy of always naming the commonest class of the training pictures.
    """
    of_majority = parts.majority_right.numpy()[:, None]
    rows = rows_of(ANALYSIS, "majority", of_majority, layers=[None], protocol=protocol(evaluation="majority"))
    samples: Samples = {}
    best = best_of(trials)
    last = resolve_layers([-1], opened.encoder)[0]
    _, held_out, test = parts.counts
    for key, trial in trials.items():
        layer, pooling = key
        told = _protocol(opened, key, trial, parts, settings, final_norm=wanted.normed(layer, last))
        right = trial.test_right[:, trial.chosen].numpy()
        mean, low, high = (float(number) for number in crossed_interval(right))
        rate = settings.recipe.learning_rates[trial.chosen]
        none = float("nan")
        rows += [
            Row(ANALYSIS, layer, None, f"top1_{pooling}", mean, low, high, test, told),
            Row(ANALYSIS, layer, None, f"held_out_top1_{pooling}", trial.merit[0], none, none, held_out, told),
            Row(ANALYSIS, layer, None, f"learning_rate_{pooling}", rate, none, none, held_out, told),
        ]
        samples[ANALYSIS, f"top1_{pooling}", layer] = right.mean(0).astype(np.float32)
        if key == best:
            chosen = Row(ANALYSIS, layer, None, "top1_best", mean, low, high, test, told)
    samples[ANALYSIS, "top1_best", None] = samples[ANALYSIS, f"top1_{best[1]}", best[0]]
    return [*rows, chosen], samples


def _protocol(
    opened: OpenedModel, key: Key, trial: Trial, parts: Parts, settings: FastProbeSettings, *, final_norm: bool
) -> str:
    recipe = settings.recipe
    train, held_out, test = parts.counts
    return protocol(
        evaluation=ANALYSIS,
        **feature_items(opened.encoder, key[1], final_norm=final_norm),
        train=train,
        test=test,
        seeds=settings.seeds,
        held_out=held_out,
        split=f"test pictures drawn from one split, seed {settings.seed}" if parts.judged is parts.known else None,
        features=f"standardised per {recipe.standardise}" if recipe.standardise != "none" else "as they are",
        learning_rate=f"{recipe.learning_rates[trial.chosen]:g} of {len(recipe.learning_rates)}",
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        weight_decay=recipe.weight_decay,
        augmentation="none",
    )


def _warn_of_unknown(parts: Parts, data: ChosenPictures, label: str) -> None:
    judged = parts.judged.labels[parts.test]
    unknown = judged[~torch.isin(judged, parts.known.labels)]
    if len(unknown):
        names = [data.test.classes[i] if data.test.classes else str(i) for i in unknown.unique().tolist()]
        log.warning(
            "%s: %d test pictures are of classes that no training picture has and count as wrong: %s",
            label, len(unknown), some(names),
        )  # fmt: skip


def warn_of_ends(trials: Mapping[Key, Trial], rates: Sequence[float], label: str) -> None:
    """Warn where a rate at the end of the grid beat the one beside it: beyond it there may be a better one."""
    for end, extreme, direction in ((0, "lowest", "lower"), (len(rates) - 1, "highest", "higher")):
        at_end = [key for key, trial in trials.items() if trial.chosen == end and trial.beats_neighbours]
        if at_end:
            reported = ", the one to report among them" if best_of(trials) in at_end else ""
            log.warning(
                "%s: the learning rate chosen is the grid's %s, %g, for %s%s; try %s ones with --learning_rates",
                label, extreme, rates[end], some([f"layer {layer} {name}" for layer, name in at_end], 4), reported,
                direction,
            )  # fmt: skip
