"""Every strategy found: shapes, counts, chances, and the picture's own random state as the only source of chance."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, kstest
from torch import Tensor

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.masking._masking import Amount, Masking
from kamim_analysis.masking._share import draw_share, whole
from kamim_analysis.shapes import Grid

PACKAGE = "kamim_analysis.masking"
RANKED = [f"{scores}_{which}" for scores in ("attmask", "keypoint") for which in ("high", "hint", "low")]
NAMES = sorted([*RANKED, "block", "random", "random_blocks"])
Draws = Callable[..., dict[str, Tensor]]


def strategy(name: str) -> Masking:
    masking: Masking = plugins.load(PACKAGE, name, "masking strategy").MASKING
    return masking


def counts(name: str, drawn: dict[str, Tensor]) -> Tensor:
    """Hidden patches of each picture, by scores that are all different."""
    pictures, grid = len(drawn["mask"]) if "mask" in drawn else len(drawn["mask_ties"]), 196
    scores = torch.rand(pictures, grid, generator=torch.Generator().manual_seed(2))
    return strategy(name).mask(drawn, scores).flatten(1).sum(1)


def test_these_are_all() -> None:
    assert plugins.names(PACKAGE) == NAMES
    assert {name: strategy(name).scores for name in NAMES} == {
        name: {"a": "attention", "k": "keypoints"}.get(name[0], "none") for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_depends_on_the_random_state_alone(name: str) -> None:
    masking, grid, amount = strategy(name), Grid(6, 8), Amount(ratio=0.5, variation=0.0, unit=32)
    torch.manual_seed(4)
    first = [masking.draw(grid, 16, amount) for _ in range(3)]
    torch.manual_seed(4)
    again = [masking.draw(grid, 16, amount) for _ in range(3)]
    for one, other in zip(first, again, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(not torch.equal(first[0][key], first[1][key]) for key in first[0])
    batch: dict[str, Any] = {key: torch.stack([one[key] for one in first]) for key in first[0]}
    mask = masking.mask(batch | {"image": torch.zeros(3)}, torch.rand(3, 48))
    assert mask.shape == (3, 6, 8)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random_blocks"])
def test_the_share_of_masked_pictures_is_the_probability(name: str, draws: Draws) -> None:
    masked = int((counts(name, draws(name, Amount(ratio=0.3, variation=0.2, probability=0.5))) > 0).sum())
    assert binomtest(masked, 2000, 0.5).pvalue > 1e-3


@pytest.mark.parametrize("name", ["random", "attmask_high", "attmask_low", "keypoint_high", "keypoint_low"])
def test_a_fixed_share_hides_exactly_its_floor(name: str, draws: Draws) -> None:
    for percent in (1, 29, 30, 60, 75, 100):
        expected = int(Fraction(percent, 100) * 196)
        assert set(counts(name, draws(name, Amount(ratio=percent / 100), pictures=20)).tolist()) == {expected}


@pytest.mark.parametrize("name", ["random", "attmask_high", "keypoint_low"])
def test_a_varying_share_is_even_over_its_range(name: str, draws: Draws) -> None:
    hidden = counts(name, draws(name, Amount(ratio=0.3, variation=0.2)))
    # floor(196 r), r even over 0.1 to 0.5; the floor made continuous again
    shares = (hidden + torch.rand(2000, generator=torch.Generator().manual_seed(3))) / 196
    assert int(hidden.min()) >= 19
    assert int(hidden.max()) <= 98
    assert kstest(shares.numpy(), "uniform", args=(0.1, 0.4)).pvalue > 1e-3


def test_shares_are_drawn_from_the_global_state_two_numbers_each() -> None:
    torch.manual_seed(9)
    numbers = torch.rand(2, 2, dtype=torch.float64)
    torch.manual_seed(9)
    for chance, place in numbers.tolist():
        share = draw_share(Amount(ratio=0.3, variation=0.2, probability=0.5), 196)
        assert share == (0.0 if chance >= 0.5 else 0.3 + 0.2 * (2 * place - 1))


@pytest.mark.parametrize("patches", [16, 100, 144, 196, 49])
def test_whole_is_the_floor_of_the_decimal_share(patches: int) -> None:
    for percent in range(101):
        assert whole(percent / 100, patches) == int(Fraction(percent, 100) * patches)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random_blocks"])
def test_an_amount_that_hides_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"a mask ratio of at most 0.05 hides none of 16 patches"):
        strategy(name).draw(Grid(4, 4), 16, Amount(ratio=0.03, variation=0.02))


def test_every_patch_and_every_pair_is_equally_likely_under_random(draws: Draws) -> None:
    mask = draws("random", Amount(ratio=0.5), Grid(3, 4), pictures=4000)["mask"].flatten(1).double()
    together = mask.T @ mask / 4000
    expected = torch.full((12, 12), 6 / 12 * 5 / 11, dtype=torch.float64).fill_diagonal_(6 / 12)
    # five standard errors of a share of 4000
    assert float((together - expected).abs().max()) < 5 * 0.5 / 4000**0.5
