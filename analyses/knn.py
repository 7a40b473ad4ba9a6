"""k-NN classification of frozen features, the way DINO does it (Caron et al., arXiv 2104.14294, appendix)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kamim_analysis.errors import UserError
from kamim_analysis.protocol import protocol

from ._analysis import Analysis, Batch, Findings, Subject
from ._directions import unit
from .evaluation.feature_protocol import feature_items

QUESTION = "Do images of one class lie together?"
HOW_TO_READ = "Share of pictures whose nearest neighbours in feature space vote for their own class."
SOURCE = "Caron et al., arXiv 2104.14294; AttMask, table 1"
COST = "one feature a picture, and one pass over the training split where there is one"
BY_DEFAULT = True
KS = (1, 10, 20, 100, 200)
TEMPERATURE = 0.07
# rows of the matrix of similarities that torch holds at a time, and its columns: 128 MB in float32
_QUERIES_AT_ONCE, _BANK_AT_ONCE = 1024, 32768
# queries times classes counted at a time: 64 MB in float64
_VOTES_AT_ONCE = 2**23
# faiss finds no more neighbours on a GPU
_MOST_ON_GPU = 2048


def neighbours(
    queries: Float[Tensor, "q d"], bank: Float[Tensor, "m d"], k: int
) -> tuple[Float[Tensor, "q k"], Int64[Tensor, "q k"]]:
    """Cosine similarity and index of each query's k most similar bank features, the nearest first.

    Exact search in float32: through faiss (flat inner product), on all GPUs that it knows; where faiss is absent, or
    the features lie on a GPU that it does not know, by matrix product in torch. Of neighbours that are found equally
    similar the one with the smaller index comes first; which of them are found, where not all fit into k, is the
    search's choice. The cosine with a feature of zeros is taken for 0.

    Raises UserError for features that are not finite, whose neighbours would be anybody.
    """
    same = queries is bank
    for features, name in ((bank, "neighbours"),) if same else ((bank, "neighbours"), (queries, "pictures")):
        wrong = ~features.isfinite().all(1)
        if wrong.any():
            raise UserError(f"features of {int(wrong.sum())} of {len(wrong)} {name} hold NaN or infinity; no k-NN")
    bank = unit(bank.float())
    queries = bank if same else unit(queries.float())
    faiss = _faiss()
    if faiss is None or (bank.is_cuda and not faiss_knows_gpus()):
        return _in_order(*_search_torch(queries, bank, k))
    return _in_order(*_search_faiss(faiss, queries.cpu(), bank.cpu(), k))


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def faiss_knows_gpus() -> bool:
    """Whether faiss searches on GPUs: it is built for them, and there are some."""
    faiss = _faiss()
    return faiss is not None and faiss.get_num_gpus() > 0


def _search_faiss(faiss: Any, queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """faiss takes the tensors' own memory; on the CPU without an index, which would be a copy of the bank."""
    features = bank.contiguous().numpy()
    if faiss_knows_gpus() and k <= _MOST_ON_GPU:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True  # each GPU a part of the bank, not a copy of it
        index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(features.shape[1]), options)
        index.add(features)
        similarity, found = index.search(queries.contiguous().numpy(), k)
    else:
        similarity, found = faiss.knn(queries.contiguous().numpy(), features, k, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(similarity), torch.from_numpy(found)


def _search_torch(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A part of the queries against a part of the bank at a time: memory grows with neither."""
    chunks = []
    for part in queries.split(_QUERIES_AT_ONCE):
        best = part.new_zeros(len(part), 0), torch.zeros(len(part), 0, dtype=torch.int64, device=part.device)
        for start in range(0, len(bank), _BANK_AT_ONCE):
            others = bank[start : start + _BANK_AT_ONCE]
            with torch.autocast(part.device.type, enabled=False):  # which would take products in half precision
                cosines = part @ others.T
            found = cosines.topk(min(k, len(others)), dim=1)
            similarity = torch.cat([best[0], found.values], dim=1)
            index = torch.cat([best[1], found.indices + start], dim=1)
            values, order = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best = values, index.gather(1, order)
        chunks.append(best)
    return torch.cat([values for values, _ in chunks]), torch.cat([index for _, index in chunks])


def _in_order(similarity: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Equally similar neighbours by index; few rows have any."""
    tied = (similarity[:, 1:] == similarity[:, :-1]).any(1).nonzero()[:, 0]
    if len(tied):
        by_index, order = found[tied].sort(dim=1)
        values, then = similarity[tied].gather(1, order).sort(dim=1, descending=True, stable=True)
        similarity[tied], found[tied] = values, by_index.gather(1, then)
    return similarity, found


def knn_correct(
    queries: Float[Tensor, "q d"],
    query_labels: Int64[Tensor, " q"],
    bank: Float[Tensor, "m d"] | None,
    bank_labels: Int64[Tensor, " m"] | None,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
) -> dict[int, Bool[Tensor, " q"]]:
    """Whether weighted k-NN classifies each query rightly, by k: {k: [Q]}. One search serves all k.

    Neighbours vote for their class with weight exp(cosine similarity / temperature); features are L2-normalised.
    Without a bank the queries themselves are it, each leaving itself out. Ties go to the smallest class number.

    Raises UserError for a k larger than the bank.

    Source: Caron et al., arXiv 2104.14294, appendix; Wu et al., arXiv 1805.01978, section 3.4.

    >>> features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> knn_correct(features, torch.tensor([0, 0, 1, 0]), None, None, ks=[1])
    {1: tensor([ True,  True, False, False])}
    """
    leave_one_out = bank is None or bank_labels is None
    if bank is None or bank_labels is None:
        bank, bank_labels = queries, query_labels
    predicted = knn_predicted(queries, bank, bank_labels, ks, temperature, leave_one_out=leave_one_out)
    return {k: classes == query_labels for k, classes in predicted.items()}


def knn_predicted(
    queries: Float[Tensor, "q d"],
    bank: Float[Tensor, "m d"],
    bank_labels: Int64[Tensor, " m"],
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    *,
    leave_one_out: bool = False,
) -> dict[int, Int64[Tensor, " q"]]:
    """The class that weighted k-NN gives each query, as `knn_correct` does, by k: {k: [Q]}.

    With `leave_one_out` query i is the bank's image i, or a version of it, and that image does not vote.

    Raises UserError for a k larger than the bank.
    """
    available = len(bank) - leave_one_out
    if max(ks) > available:
        raise UserError(f"k = {max(ks)} exceeds the {available} images that can be neighbours; choose a smaller k")
    similarity, found = neighbours(queries, bank, max(ks) + leave_one_out)
    if leave_one_out:
        similarity, found = _without_self(similarity, found)
    classes = int(bank_labels.max()) + 1
    at_once = max(_VOTES_AT_ONCE // classes, 1)
    parts = [
        _elected(near, bank_labels[indices], sorted(ks), temperature, classes)
        for near, indices in zip(similarity.split(at_once), found.split(at_once), strict=True)
    ]
    return {k: torch.cat([part[k] for part in parts]) for k in sorted(ks)}


def _elected(
    similarity: Float[Tensor, "q k"], voted: Int64[Tensor, "q k"], ks: Sequence[int], temperature: float, classes: int
) -> dict[int, Int64[Tensor, " q"]]:
    """The class with most votes of the first k neighbours, by k, in one count."""
    # weights relative to the nearest neighbour's, which elect the same and cannot overflow at any temperature
    weights = ((similarity.double() - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(voted), classes)
    predicted, counted = {}, 0
    for k in ks:
        votes.scatter_add_(1, voted[:, counted:k], weights[:, counted:k])
        predicted[k] = votes.argmax(1)
        counted = k
    return predicted


def _without_self(similarity: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
    """Drop each query from its own neighbours; where duplicates crowd it out, the last neighbour goes instead."""
    own = found == torch.arange(len(found), device=found.device)[:, None]
    own[:, -1] |= ~own.any(1)
    return similarity[~own].view(len(found), -1), found[~own].view(len(found), -1)


class KNN(Analysis):
    """Top-1 accuracy of the image-level features."""

    WANTS_BANK: ClassVar[bool] = True

    def __init__(self, subject: Subject, ks: Sequence[int] | None = None) -> None:
        super().__init__(subject)
        self.ks = ks
        self.add_lists("features", "labels", "bank_features", "bank_labels")

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """k-NN needs two classes."""
        return "the data have a single class" if subject.classes == 1 else None

    def update(self, batch: Batch) -> None:
        """Keep one vector for each image."""
        self.append("features", batch.features)
        self.append("labels", batch.labels)

    def update_bank(self, features: Float[Tensor, "b d"], labels: Int64[Tensor, " b"]) -> None:
        """Keep one vector for each training image."""
        self.append("bank_features", features)
        self.append("bank_labels", labels)

    def compute(self) -> Findings:
        """Rows `top1_k{k}`, accuracy in [0, 1], for each k that the data allow."""
        features, labels = self.collected("features"), self.collected("labels")
        bank = self.collected("bank_features") if self.count("bank_features") else None
        bank_labels = None if bank is None else self.collected("bank_labels")
        available = len(features) - 1 if bank is None else len(bank)
        ks = self.ks or [k for k in KS if k <= available]
        train = None if bank is None else len(bank)
        findings = Findings("knn", protocol=subject_protocol(self.subject, test=len(features), train=train))
        if not ks:
            findings.absent = "there is no other picture to be a neighbour"
        elif len((labels if bank_labels is None else bank_labels).unique()) < 2:
            findings.absent = "all pictures that can be neighbours are of one class"
        else:
            for k, right in knn_correct(features, labels, bank, bank_labels, ks).items():
                findings.add(f"top1_k{k}", right.numpy()[:, None], [self.subject.layers])
        return findings


def subject_protocol(subject: Subject, *, test: int, train: int | None) -> str:
    """`knn_protocol` of the image-level features that analyses are given."""
    features: dict[str, object] = {"pooling": subject.pooling, "resolution": subject.anatomy.image_size[0]}
    if subject.encoder is not None:
        features = feature_items(subject.encoder, subject.pooling, final_norm=True)
    return knn_protocol(features, test=test, train=train, temperature=TEMPERATURE)


def knn_protocol(features: Mapping[str, object], *, test: int, train: int | None, temperature: float) -> str:
    """What a reader must know of k-NN accuracies; `features`: how those were taken (`feature_items`)."""
    neighbours = "leave one out" if train is None else train
    return protocol(evaluation="knn", **features, train=neighbours, test=test, temperature=temperature)
