"""k-NN and few-shot accuracy of chosen layers and poolings, for `kamim knn`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kamim_analysis import processes
from kamim_analysis.comparison import write_and_compare
from kamim_analysis.errors import UserError
from kamim_analysis.extraction import Features, Key, Loading, Norm, Wanted, resolve_layers
from kamim_analysis.frozen_features import SplitFeatures, frozen_features
from kamim_analysis.manifest import manifest, model_entry
from kamim_analysis.model_spec import ModelSpec
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.protocol import protocol
from kamim_analysis.results import Row, Samples
from kamim_analysis.runtime import best_device
from kamim_analysis.sampling import ChosenPictures

from .._analysis import Findings
from ..knn import TEMPERATURE, faiss_knows_gpus, knn_correct, knn_protocol
from .feature_protocol import feature_items
from .few_shot import check_labels, check_shots, few_shot_correct, few_shot_rows, fitting_ks, shots
from .knn_table import knn_table


@dataclass(frozen=True, kw_only=True)
class KnnSettings:
    """What `kamim knn` was asked for."""

    layers: Sequence[int] | Literal["all"] = (-1,)
    poolings: tuple[str, ...] = ("mean",)
    """The first one's statistics have the plain names (`top1_k20`), the others' end with theirs (`top1_k20_cls`)."""
    norm: Norm = "last"
    ks: tuple[int, ...] = ()
    """Empty: those of 1, 10, 20, 100 and 200 that the data allow."""
    temperature: float = TEMPERATURE
    few_shot: tuple[int, ...] = ()
    """Pictures of each class to learn from (v); empty: only all of them."""
    few_shot_seeds: int = 5
    image_size: int | None = None
    seed: int = 0
    stores: tuple[Path, ...] = ()


def run_knn(
    models: Sequence[ModelSpec], data: ChosenPictures, settings: KnnSettings, loading: Loading, out: Path | None
) -> str:
    """Take features, classify, write the results into `out` (None: not this process); returns tables to print.

    Raises UserError for models and features as `frozen_features` does, and for data too small for the settings.
    """
    fitting_ks(settings.ks, data.neighbours)
    check_shots(data, settings.few_shot, settings.ks)
    rows: dict[str, list[Row]] = {}
    samples: dict[str, Samples] = {}
    entries = []
    for spec in models:
        opened = open_model(spec, settings.image_size, seed=settings.seed)
        layers = resolve_layers(settings.layers, opened.encoder)
        wanted = Wanted(layers=layers, poolings=settings.poolings, norm=settings.norm)
        features = frozen_features(opened, data, wanted, loading, settings.stores)
        if out is None:
            continue
        rows[spec.label], samples[spec.label] = _Judged(opened, features, wanted, settings).findings(data)
        entries.append(model_entry(opened, {}))
    data.unreadable.names |= processes.united(data.unreadable.names)
    if out is None:
        return ""
    write_and_compare(out, _manifest(data, entries, settings), rows, {}, samples)
    return knn_table(rows)


def _manifest(data: ChosenPictures, entries: list[dict[str, Any]], settings: KnnSettings) -> dict[str, Any]:
    asked: dict[str, Any] = {"temperature": settings.temperature, "norm": settings.norm}
    if settings.few_shot:
        asked |= {"few_shot": list(settings.few_shot), "few_shot_seeds": settings.few_shot_seeds}
    return manifest(data, entries, seed=settings.seed, pooling=",".join(settings.poolings), knn=asked)


class _Judged:
    """Rows and samples of one model's features, layer by layer and pooling by pooling."""

    def __init__(self, opened: OpenedModel, features: SplitFeatures, wanted: Wanted, settings: KnnSettings) -> None:
        self.encoder, self.features, self.wanted, self.settings = opened.encoder, features, wanted, settings
        self.last = resolve_layers([-1], opened.encoder)[0]
        self.rows: list[Row] = []
        self.samples: Samples = {}

    def findings(self, data: ChosenPictures) -> tuple[list[Row], Samples]:
        """k-NN of every layer and pooling, then few-shot. Raises UserError where reading left too few pictures."""
        bank = self.features.bank or self.features.test
        names = (data.bank or data.test).classes
        if len(bank.labels.unique()) < 2:
            raise UserError(f"the pictures of {data.source!r} have a single class; k-NN needs at least two")
        keys = list(bank.by_key)
        for key in keys:
            self._add_knn(key)
        if self.settings.few_shot:
            single = self.features.bank is None
            check_labels(bank.labels, names, self.settings.few_shot, self.settings.ks, left=single)
            for key in keys:
                self._add_few_shot(key)
        return self.rows, self.samples

    def _add_knn(self, key: Key) -> None:
        queries, bank = self._placed(key)
        judged, train = len(queries[0]), None if bank is None else len(bank[0])
        ks = fitting_ks(self.settings.ks, train or judged - 1)
        temperature = self.settings.temperature
        told = knn_protocol(self._taken(key), test=judged, train=train, temperature=temperature)
        found = Findings("knn", protocol=told)
        neighbours, labels = bank or (None, None)
        for k, right in knn_correct(*queries, neighbours, labels, ks, temperature).items():
            found.add(self._name(f"top1_k{k}", key), right.cpu().numpy()[:, None], [key[0]])
        self.rows += found.rows
        self.samples |= found.samples

    def _add_few_shot(self, key: Key) -> None:
        queries, bank = self._placed(key)
        settings = self.settings
        labels = (bank or queries)[1].cpu()
        drawn = [shots(labels, max(settings.few_shot), settings.seed + i) for i in range(settings.few_shot_seeds)]
        for v in sorted(settings.few_shot):
            train = v * len(drawn[0])
            ks = fitting_ks(settings.ks, train)
            right = np.stack([few_shot_correct(*queries, bank, one[:, :v], ks, settings.temperature) for one in drawn])
            test = len(queries[0]) - (train if bank is None else 0)
            told = protocol(evaluation="few_shot", **self._taken(key), train=train, test=test, seeds=len(drawn),
                            temperature=settings.temperature, per_class=v)  # fmt: skip
            names = [self._name(f"v{v}_k{k}", key) for k in ks]
            rows, samples = few_shot_rows(right, names, key[0], told)
            self.rows += rows
            self.samples |= {("few_shot", name, key[0]): values.astype(np.float32) for name, values in samples.items()}

    def _placed(self, key: Key) -> tuple["_Labelled", "_Bank | None"]:
        """Queries and bank where the search is fastest."""
        device = torch.device("cpu") if faiss_knows_gpus() else best_device()

        def of(features: Features) -> _Labelled:
            return features.by_key[key].to(device), features.labels.to(device)

        return of(self.features.test), None if self.features.bank is None else of(self.features.bank)

    def _taken(self, key: Key) -> dict[str, object]:
        return feature_items(self.encoder, key[1], final_norm=self.wanted.normed(key[0], self.last))

    def _name(self, statistic: str, key: Key) -> str:
        return statistic if key[1] == self.settings.poolings[0] else f"{statistic}_{key[1]}"


_Labelled = tuple[Float[Tensor, "i d"], Int64[Tensor, " i"]]
_Bank = tuple[Float[Tensor, "m d"], Int64[Tensor, " m"]]
