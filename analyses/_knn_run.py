"""k-NN of chosen layers' features, for `kamim knn`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kamim_analysis import processes, results
from kamim_analysis.data import Pictures
from kamim_analysis.encoders import anatomy, evaluating, pool
from kamim_analysis.errors import UserError
from kamim_analysis.manifest import manifest, model_entry
from kamim_analysis.model_spec import ModelSpec
from kamim_analysis.opening import OpenedModel, open_model
from kamim_analysis.recorder import Kind, record
from kamim_analysis.results import Row
from kamim_analysis.runtime import best_device
from kamim_analysis.sampling import ChosenPictures

from ._run import Request, loaded
from ._suite import to_device
from .knn import KS, accuracy_rows, knn_correct


def run_knn(
    models: Sequence[ModelSpec],
    data: ChosenPictures,
    layer: int | str,
    ks: Sequence[int],
    *,
    request: Request,
    norm: bool,
    out: Path | None,
) -> str:
    """Extract, classify, write metrics and manifest into `out` (None: not this process); returns a table to print."""
    rows: dict[str, list[Row]] = {}
    entries = []
    ks = ks or [k for k in KS if k <= data.neighbours]
    for spec in models:
        opened = open_model(spec, request.image_size, seed=request.seed)
        opened.encoder.to(best_device())
        layers = _layers(layer, len(anatomy(opened.encoder).blocks))
        extract = _Extractor(opened, layers, request, norm=norm)
        test, labels = extract(data.test, data.test_indices, data)
        bank: Any = None
        bank_labels = None
        if data.bank is not None:
            bank, bank_labels = extract(data.bank, data.bank_indices, data)
        if out is None:
            continue
        rows[spec.label] = []
        for i in layers:
            correct = knn_correct(test[i], labels, bank and bank[i], bank_labels, ks)
            rows[spec.label] += accuracy_rows(correct, i)
        entries.append(model_entry(opened, {}))
    data.unreadable.names |= processes.united(data.unreadable.names)
    if out is None:
        return ""
    protocol = manifest(data, entries, seed=request.seed, pooling=request.pooling)
    protocol["knn"] = {"temperature": 0.07, "final_norm": "all layers" if norm else "last layer only"}
    results.write(out, protocol, rows, {})
    return _table(rows)


def _layers(layer: int | str, last: int) -> list[int]:
    if isinstance(layer, str):
        return list(range(last + 1))
    chosen = layer + last + 1 if layer < 0 else layer
    if not 0 <= chosen <= last:
        raise UserError(f"layer {layer} does not exist: this encoder has layers 0 (the embedding) to {last}")
    return [chosen]


class _Extractor:
    """Pooled features of chosen layers; the last layer's after the final norm, others raw unless `norm`."""

    def __init__(self, opened: OpenedModel, layers: list[int], request: Request, *, norm: bool) -> None:
        self.opened, self.layers, self.request, self.norm = opened, layers, request, norm
        self.body = anatomy(opened.encoder)
        self.last = len(self.body.blocks)
        self.kept: dict[int, list[Tensor]] = {i: [] for i in layers}

    def __call__(
        self, pictures: Pictures, indices: Sequence[int], data: ChosenPictures
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Features by layer, [images, C] each, and labels [images]."""
        self.kept = {i: [] for i in self.layers}
        labels = []
        for batch in loaded(self.opened, pictures, indices, data, self.request, "features"):
            self._extract(to_device(batch, best_device()).images)
            labels.append(batch.labels)
        features = {i: processes.gathered(torch.cat(parts)) for i, parts in self.kept.items()}
        return features, processes.gathered(torch.cat(labels))

    def _extract(self, images: Tensor) -> None:
        earlier = [i for i in self.layers if i != self.last]
        with (
            evaluating(self.opened.encoder),
            record(self.opened.encoder, attention=(), tokens=earlier, sink=self._keep),
        ):
            tokens = self.opened.encoder.forward_features(images)
        if self.last in self.kept:
            self._pool(self.last, tokens)

    def _keep(self, _kind: Kind, layer: int, tokens: Tensor) -> None:
        final = getattr(self.opened.encoder, "norm", None)
        if self.norm and final is not None:
            if tokens.shape[-1] != self.body.width:
                raise UserError(f"layer {layer} is narrower than the final norm; leave out --norm for this encoder")
            tokens = final(tokens)
        self._pool(layer, tokens)

    def _pool(self, layer: int, tokens: Tensor) -> None:
        self.kept[layer].append(pool(tokens, self.body, self.request.pooling).float().cpu())


def _table(rows: dict[str, list[Row]]) -> str:
    lines = [f"{'model':<32} {'layer':>5}  {'k':>4}  top-1 [95% interval]"]
    lines += [
        f"{label:<32} {row.layer:>5}  {row.statistic.removeprefix('top1_k'):>4}  "
        f"{row.value:.4f} [{row.ci_low:.4f}, {row.ci_high:.4f}]"
        for label, some in rows.items()
        for row in some
    ]
    return "\n".join(lines)
