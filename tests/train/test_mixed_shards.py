"""data.mixed_shards: an epoch takes a few shards at a time."""

from itertools import islice

import numpy as np
import pytest

from kamim_analysis.errors import UserError
from kamim_analysis.train.samples import Order

# eleven shards of unlike sizes, their pictures anywhere in the collection, as first_of_each_class may leave them
SHARDS = np.random.default_rng(1).permutation(np.repeat(np.arange(11) * 3, [5, 9, 1, 7, 7, 2, 8, 6, 4, 7, 4]))


def order(**changes: object) -> Order:
    return Order(**{"length": 60, "batch_size": 6, "seed": 3, "shards": SHARDS, "mixed_shards": 3} | changes)


def epoch(number: int, **changes: object) -> list[int]:
    batches = islice(order(**changes), 10 * number, 10 * (number + 1))
    return [index for batch in batches for _epoch, index in batch]


def test_without_it_shards_change_nothing() -> None:
    plain = Order(length=60, batch_size=6, seed=3)
    assert list(islice(order(mixed_shards=None), 25)) == list(islice(plain, 25))


def test_an_epoch_has_each_picture_once_and_takes_whole_groups_of_shards() -> None:
    groups = []
    for number in range(4):
        found = epoch(number)
        assert sorted(found) == list(range(60))
        left, taken = found, []
        while left:
            # the shards up to the point where three of them are exhausted
            first = list(dict.fromkeys(SHARDS[left]))[:3]
            size = int(np.isin(SHARDS, first).sum())
            assert set(SHARDS[left[:size]]) == set(first)
            taken.append(frozenset(first))
            left = left[size:]
        assert [len(group) for group in taken] == [3, 3, 3, 2]
        groups.append(tuple(taken))
    assert len(set(groups)) == 4


def test_every_order_of_a_group_is_as_likely() -> None:
    """Two shards of two pictures in one group: 24 orders; the statistic is chi-squared with 23 degrees of freedom."""
    few = {"length": 4, "batch_size": 4, "shards": np.array([0, 1, 1, 0]), "mixed_shards": 2}
    seen = [tuple(index for _epoch, index in batch) for batch in islice(order(**few), 2400)]
    counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 49.7  # its 99.9th percentile


def test_every_order_of_shards_is_as_likely() -> None:
    """Three shards one at a time: 6 orders; chi-squared with 5 degrees of freedom."""
    few = {"length": 3, "batch_size": 3, "shards": np.array([7, 5, 0]), "mixed_shards": 1}
    seen = [tuple(index for _epoch, index in batch) for batch in islice(order(**few), 1200)]
    counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 200) ** 2 / 200).sum() < 20.5


@pytest.mark.parametrize("step", [1, 7, 10, 23])
def test_starting_at_a_step_continues_the_sequence(step: int) -> None:
    assert list(islice(order(), step, step + 15)) == list(islice(order(first_step=step), 15))


def test_more_at_a_time_than_there_are_mixes_all() -> None:
    found = epoch(0, mixed_shards=100)
    assert sorted(found) == list(range(60))
    assert len(set(SHARDS[found[:20]])) > 6


@pytest.mark.parametrize("changes", [{"shards": None}, {"mixed_shards": 0}])
def test_refused_without_shards(changes: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"data\.mixed_shards \d is for packed shards \(kamim pack writes them\)"):
        order(**changes)
