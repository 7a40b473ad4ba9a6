"""Weighted k-NN against DINO's vote counted in float64 loops, and against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode

from kamim_analysis.analyses import knn
from kamim_analysis.analyses.knn import knn_correct, neighbours
from kamim_analysis.errors import UserError

KS = [1, 2, 5, 20]


@pytest.fixture(params=["faiss", "torch"])
def search(request, monkeypatch):
    """Both ways to search."""
    if request.param == "torch":
        monkeypatch.setattr(knn, "_faiss", lambda: None)
    elif knn._faiss() is None:
        pytest.skip("faiss is not installed")


def clusters(count: int, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    features = draw.normal(size=(count, 6)) + 0.8 * np.random.default_rng(99).normal(size=(classes, 6))[labels]
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def vote_by_loop(query, bank, bank_labels, k, temperature, own=None) -> int:
    """DINO's classifier for one query: the k most similar vote with exp(cosine / temperature)."""
    cosines = []
    for i, other in enumerate(bank):
        if i != own:
            cosine = sum(a * b for a, b in zip(query, other, strict=True))
            cosines.append((cosine / math.hypot(*query) / math.hypot(*other), i))
    votes: dict[int, float] = {}
    for cosine, i in sorted(cosines, reverse=True)[:k]:
        votes[int(bank_labels[i])] = votes.get(int(bank_labels[i]), 0.0) + math.exp(cosine / temperature)
    return max(sorted(votes), key=lambda label: votes[label])


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_by_loop(search, temperature):
    (queries, query_labels), (bank, bank_labels) = clusters(25, seed=1), clusters(60, seed=2)
    found = knn_correct(queries, query_labels, bank, bank_labels, KS, temperature)
    assert list(found) == KS
    for k in KS:
        expected = [
            vote_by_loop(q, bank.tolist(), bank_labels, k, temperature) == int(label)
            for q, label in zip(queries.tolist(), query_labels, strict=True)
        ]
        assert found[k].tolist() == expected
        assert 0 < sum(expected) < 25


def test_leave_one_out_by_loop(search):
    features, labels = clusters(40, seed=3)
    found = knn_correct(features, labels, None, None, KS)
    for k in KS:
        expected = [
            vote_by_loop(q, features.tolist(), labels, k, 0.07, own=i) == int(labels[i])
            for i, q in enumerate(features.tolist())
        ]
        assert found[k].tolist() == expected


def test_scikit_learn_agrees(search):
    (queries, query_labels), (bank, bank_labels) = clusters(200, seed=4), clusters(300, seed=5)
    found = knn_correct(queries, query_labels, bank, bank_labels, KS)
    for k in KS:
        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        )
        predicted = model.fit(bank.double().numpy(), bank_labels.numpy()).predict(queries.double().numpy())
        np.testing.assert_array_equal(found[k].numpy(), predicted == query_labels.numpy())


def test_neighbours_come_nearest_first(search):
    (queries, _), (bank, _) = clusters(1030, seed=6), clusters(50, seed=7)
    similarity, found = neighbours(queries, bank, 7)
    cosine = torch.nn.functional.cosine_similarity(queries.double()[:, None], bank.double()[None], dim=-1).numpy()
    np.testing.assert_array_equal(found.numpy(), np.argsort(-cosine, 1)[:, :7])
    np.testing.assert_allclose(similarity.numpy(), -np.sort(-cosine, 1)[:, :7], atol=1e-5)


def test_length_of_features_does_not_matter(search):
    (queries, query_labels), (bank, bank_labels) = clusters(50, seed=8), clusters(80, seed=9)
    plain = knn_correct(queries, query_labels, bank, bank_labels, KS)
    scaled = knn_correct(7 * queries, query_labels, bank * torch.rand(80, 1).add(0.5), bank_labels, KS)
    assert all(torch.equal(plain[k], scaled[k]) for k in KS)


@pytest.mark.parametrize("copies", [2, 3, 8])
def test_a_query_never_votes_for_itself_even_among_its_duplicates(search, copies):
    features = torch.ones(copies, 4)
    found = knn_correct(features, torch.arange(copies), None, None, [1])
    assert not found[1].any()


def test_duplicates_of_one_class_vote_for_it(search):
    features = torch.cat([torch.ones(6, 4), -torch.ones(6, 4)])
    labels = torch.arange(12) // 6
    found = knn_correct(features, labels, None, None, [1, 5])
    assert found[1].all()
    assert found[5].all()


def test_equal_votes_go_to_the_smallest_class(search):
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    for labels in ([2, 1], [1, 2]):
        found = knn_correct(torch.tensor([[1.0, 0.0]]), torch.tensor([1]), bank, torch.tensor(labels), [2])
        assert found[2].all()


def test_a_class_without_training_pictures_is_never_right(search):
    bank, bank_labels = clusters(30, classes=2)
    assert not knn_correct(bank, torch.full((30,), 5), bank, bank_labels, [1])[1].any()


@pytest.mark.parametrize(("bank_size", "k", "available"), [(10, 11, 10), (None, 12, 11)])
def test_a_k_that_exceeds_the_bank_is_refused(bank_size, k, available):
    queries, labels = clusters(12)
    bank, bank_labels = (None, None) if bank_size is None else clusters(bank_size)
    with pytest.raises(UserError, match=f"k = {k} exceeds the {available} images that can be neighbours"):
        knn_correct(queries, labels, bank, bank_labels, [1, k])


def test_the_largest_k_is_the_whole_bank(search):
    queries, labels = clusters(12)
    knn_correct(queries, labels, *clusters(10), [10])
    knn_correct(queries, labels, None, None, [11])


def test_half_precision_features():
    (queries, labels), (bank, bank_labels) = clusters(50, seed=1), clusters(80, seed=2)
    half = knn_correct(queries.half(), labels, bank.half(), bank_labels, [5])[5]
    assert (half == knn_correct(queries, labels, bank, bank_labels, [5])[5]).float().mean() > 0.9


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any torch operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_memory_does_not_grow_with_queries_times_k_times_classes(search):
    # 50,000 queries, k = 200 and 1000 classes, ImageNet's validation set, would be 40 GB in float32
    count, k, classes = 4000, 100, 50
    queries, labels = clusters(count, classes)
    bank, bank_labels = clusters(400, classes)
    with _Largest() as largest:
        knn_correct(queries, labels, bank, bank_labels, [1, k])
    assert largest.elements < count * k * classes / 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_features_on_a_gpu():
    features, labels = clusters(40, seed=3)
    expected = knn_correct(features, labels, None, None, KS)
    found = knn_correct(features.cuda(), labels.cuda(), None, None, KS)
    assert all(torch.equal(found[k].cpu(), expected[k]) for k in KS)


def test_parts_of_queries_and_of_the_bank_find_what_the_whole_finds(monkeypatch):
    (queries, _), (bank, _) = clusters(40, seed=1), clusters(90, seed=2)
    monkeypatch.setattr(knn, "_faiss", lambda: None)
    whole = neighbours(queries, bank, 30)
    monkeypatch.setattr(knn, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(knn, "_BANK_AT_ONCE", 20)
    parts = neighbours(queries, bank, 30)
    torch.testing.assert_close(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_torch_finds_what_faiss_finds(monkeypatch):
    if knn._faiss() is None:
        pytest.skip("faiss is not installed")
    (queries, _), (bank, _) = clusters(60, seed=1), clusters(300, seed=2)
    by_faiss = neighbours(queries, bank, 120)
    monkeypatch.setattr(knn, "_faiss", lambda: None)
    by_torch = neighbours(queries, bank, 120)
    torch.testing.assert_close(by_torch[0], by_faiss[0], rtol=0, atol=1e-6)
    assert (by_torch[1] == by_faiss[1]).float().mean() > 0.999


def test_equally_similar_neighbours_come_by_index(search):
    bank = torch.tensor([[1.0, 0], [0, 1], [2, 0], [1, 1], [0, 5], [3, 0]])
    _, found = neighbours(torch.tensor([[1.0, 0], [0, 1]]), bank, 6)
    assert found.tolist() == [[0, 2, 5, 3, 1, 4], [1, 4, 3, 0, 2, 5]]


def test_neither_parts_of_the_votes_nor_a_low_temperature_change_who_is_elected(monkeypatch):
    (queries, labels), (bank, bank_labels) = clusters(50, seed=1), clusters(80, seed=2)
    whole = knn_correct(queries, labels, bank, bank_labels, KS)
    monkeypatch.setattr(knn, "_VOTES_AT_ONCE", 30)
    parts = knn_correct(queries, labels, bank, bank_labels, KS)
    assert all(torch.equal(parts[k], whole[k]) for k in KS)
    # exp(1 / 0.0001) is beyond any float; the nearest outweighs all others then
    cold = knn_correct(queries, labels, bank, bank_labels, KS, 1e-4)
    assert all(torch.equal(cold[k], cold[1]) for k in KS)


def test_torch_s_search_is_bounded_in_memory(monkeypatch):
    monkeypatch.setattr(knn, "_faiss", lambda: None)
    monkeypatch.setattr(knn, "_BANK_AT_ONCE", 500)
    (queries, labels), (bank, bank_labels) = clusters(1500), clusters(4000)
    with _Largest() as largest:
        knn_correct(queries, labels, bank, bank_labels, [1, 10])
    assert largest.elements <= 1024 * 600, "not the 6 million similarities"
