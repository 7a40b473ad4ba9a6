"""Stratified parts: every picture once, every class in its share, one of each class at least."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kamim_analysis.errors import UserError
from kamim_analysis.splits import stratified


def test_shares_of_every_class():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 20)[torch.randperm(80)]
    parts = stratified(labels, (0.5, 0.4, 0.1), seed=3)
    counts = [[int((labels[part] == label).sum()) for label in range(3)] for part in parts]
    assert counts == [[25, 5, 10], [20, 4, 8], [5, 1, 2]]


@given(st.lists(st.integers(2, 9), min_size=2, max_size=5), st.floats(0.01, 0.99), st.integers(0, 5))
def test_each_picture_once_and_no_part_without_a_class(counts, share, seed):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    first, second = stratified(labels, (share, 1 - share), seed)
    assert sorted(first.tolist() + second.tolist()) == list(range(len(labels)))
    assert set(labels[first].tolist()) == set(labels[second].tolist()) == set(range(len(counts)))
    for label, count in enumerate(counts):
        expected = min(max(share * count, 1), count - 1)
        assert abs(int((labels[first] == label).sum()) - expected) < 1


def test_seeds_draw_other_pictures_and_repeat():
    labels = torch.arange(40) % 2
    once, again, other = (stratified(labels, (0.5, 0.5), seed)[0].tolist() for seed in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.mark.parametrize(("names", "name"), [(("cat", "owl"), "'owl'"), ((), "1")])
def test_too_few_of_a_class(names, name):
    with pytest.raises(UserError, match=rf"class {name} has 2 pictures, and a split into 3 parts"):
        stratified(torch.tensor([0, 0, 0, 1, 1]), (0.5, 0.3, 0.2), 0, names)


def test_a_single_class():
    with pytest.raises(UserError, match="single class"):
        stratified(torch.zeros(9, dtype=torch.long), (0.5, 0.5), 0)
