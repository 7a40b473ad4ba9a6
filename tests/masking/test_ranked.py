"""Masks by rank: against slow loops, ties without a favourite, hints where they belong."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from kamim_analysis.masking import attmask_high
from kamim_analysis.masking._masking import Amount
from kamim_analysis.masking._ranked import hide_ranks, highest, hinted, lowest
from kamim_analysis.shapes import Grid


def hidden_by_loop(scores: list[float], ties: list[int], hidden_ranks: list[bool]) -> list[bool]:
    """Patches sorted by falling score, then by their place in the order of ties."""
    order = sorted(range(len(scores)), key=lambda patch: (-scores[patch], ties[patch]))
    mask = [False] * len(scores)
    for rank, patch in enumerate(order):
        mask[patch] = hidden_ranks[rank]
    return mask


@settings(max_examples=80, deadline=None, derandomize=True)
@given(rows=st.integers(1, 5), columns=st.integers(1, 5), values=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_ranks_by_loop(rows: int, columns: int, values: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    patches = rows * columns
    scores = torch.randint(values, (3, patches), generator=draw) / 7  # few values: many ties
    hidden_ranks = torch.rand(3, patches, generator=draw) < 0.5
    ties = torch.stack([torch.randperm(patches, generator=draw).reshape(rows, columns) for _ in range(3)])
    mask = hide_ranks(scores, hidden_ranks, ties)
    for image in range(3):
        expected = hidden_by_loop(scores[image].tolist(), ties[image].flatten().tolist(), hidden_ranks[image].tolist())
        assert mask[image].flatten().tolist() == expected


def test_high_hides_the_highest_and_low_the_lowest() -> None:
    scores = torch.rand(5, 100, generator=torch.Generator().manual_seed(0))
    ties = torch.randperm(100).reshape(1, 10, 10).expand(5, 10, 10)
    for ranks, descending in ((highest(0.29, 100), True), (lowest(0.29, 100), False)):
        mask = hide_ranks(scores, ranks.expand(5, 100), ties).flatten(1)
        chosen = scores.argsort(dim=1, descending=descending)[:, :29]
        assert torch.equal(mask, torch.zeros(5, 100, dtype=torch.bool).scatter(1, chosen, True))


def test_the_mask_is_the_same_whatever_else_is_in_the_batch() -> None:
    scores, ranks = torch.rand(4, 16).round(decimals=1), highest(0.5, 16).expand(4, 16)
    ties = torch.stack([torch.randperm(16).reshape(4, 4) for _ in range(4)])
    whole = hide_ranks(scores, ranks, ties)
    parts = [hide_ranks(scores[i : i + 1], ranks[i : i + 1], ties[i : i + 1]) for i in range(4)]
    assert torch.equal(whole, torch.cat(parts))


def test_equal_scores_have_no_favourite(draws: Callable[..., dict[str, Tensor]]) -> None:
    for name in ("attmask_high", "attmask_low"):
        drawn = draws(name, Amount(ratio=0.25), Grid(4, 5), pictures=4000)
        mask = hide_ranks(torch.zeros(4000, 20), drawn["mask_ranks"], drawn["mask_ties"])
        assert set(mask.flatten(1).sum(1).tolist()) == {5}
        # a fixed number is drawn without replacement: (1 - 0.25) of independent draws' variance
        statistic = chisquare(mask.sum(0).flatten().numpy()).statistic / 0.75 * (19 / 20)
        assert 5.4 < statistic < 43.8  # chi-square with 19 degrees of freedom: 0.1% on either side


def test_a_patch_of_higher_score_is_never_visible_beside_a_hidden_lower_one() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0]])
    for _ in range(50):
        mask = hide_ranks(scores, highest(1 / 3, 9)[None], torch.randperm(9).reshape(1, 3, 3)).flatten()
        assert bool(mask[[2, 4]].all())
        assert int(mask.sum()) == 3


@pytest.mark.parametrize(("share", "hidden", "hints"), [(0.5, 98, 9), (0.3, 58, 5), (0.1, 19, 1), (0.05, 9, 0)])
def test_hints_are_counted_as_the_paper_says(share: float, hidden: int, hints: int) -> None:
    """Of 196 patches with show_max 0.1: int(196 r) hidden, int(19.6 r) of the 19 highest revealed."""
    for _ in range(20):
        ranks = hinted(share, 196, 0.1)
        assert int(ranks.sum()) == hidden - hints
        assert not bool(ranks[hidden:].any())
        assert bool(ranks[19:hidden].all())


def test_hints_are_even_over_the_highest_in_number_and_in_kind() -> None:
    torch.manual_seed(12)
    revealed = torch.stack([~hinted(0.5, 40, 0.1)[:20] for _ in range(3000)])  # 2 of the 4 highest
    assert not bool(revealed[:, 4:].any())
    pairs = Counter(tuple(row.nonzero().flatten().tolist()) for row in revealed)
    assert len(pairs) == 6
    assert chisquare(list(pairs.values())).pvalue > 1e-3


def test_more_hints_than_are_hidden_cannot_be() -> None:
    for show_max in (0.0, 0.5, 1.0):
        for share in (0.0, 0.1, 0.9, 1.0):
            hidden = hinted(share, 10, show_max)
            expected = int(share * 10) - min(int(round(share * show_max * 10, 9)), int(share * 10))
            assert int(hidden.sum()) == expected


def test_without_scores_there_is_an_error_and_no_mask() -> None:
    drawn = attmask_high.MASKING.draw(Grid(2, 2), 16, Amount())
    with pytest.raises(ValueError, match="AttMaskHigh needs a score of each patch"):
        attmask_high.MASKING.mask({key: value[None] for key, value in drawn.items()})
