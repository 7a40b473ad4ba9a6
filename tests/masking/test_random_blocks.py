"""SimMIM's random mask: exact counts, whole units, uniform draws, reproducible, and errors a user can act on."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from kamim_analysis.errors import UserError
from kamim_analysis.masking.random_blocks import random_blocks
from kamim_analysis.shapes import Size


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blocks_of(mask: torch.Tensor, side: int) -> torch.Tensor:
    """The mask cut into units, [units, side * side]."""
    return mask.unfold(0, side, side).unfold(1, side, side).reshape(-1, side * side)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    percent=st.integers(1, 100),
    patch=st.sampled_from([1, 4, 8, 16]),
    within=st.integers(1, 4),
)
def test_exactly_the_rounded_up_share_of_units_is_hidden_each_as_a_whole(rows, columns, percent, patch, within):
    unit = patch * within
    ratio = percent / 100
    mask = random_blocks(Size(rows * unit, columns * unit), unit=unit, ratio=ratio, patch_size=patch)
    assert mask.shape == (rows * within, columns * within)
    assert mask.dtype == torch.bool
    units = blocks_of(mask, within)
    assert bool((units.all(1) == units.any(1)).all())
    assert int(units.all(1).sum()) == math.ceil(Fraction(percent, 100) * rows * columns)


def test_the_papers_masks():
    for patch, cells in ((16, 2), (4, 8)):  # ViT and Swin
        mask = random_blocks(Size(192, 192), unit=32, ratio=0.6, patch_size=patch)
        assert mask.shape == (192 // patch, 192 // patch)
        assert int(mask.sum()) == 22 * cells**2


def test_swin_s_mask_is_vit_s_at_a_finer_grain():
    coarse = random_blocks(Size(192, 192), unit=32, ratio=0.6, patch_size=32, generator=generator())
    fine = random_blocks(Size(192, 192), unit=32, ratio=0.6, patch_size=4, generator=generator())
    torch.testing.assert_close(fine[::8, ::8], coarse)


@pytest.mark.parametrize("ratio", [1e-12, 1e-6, 0.001])
def test_any_positive_ratio_hides_at_least_one_unit(ratio):
    assert int(random_blocks(Size(64, 64), unit=32, ratio=ratio, patch_size=32).sum()) == 1


def test_ratio_one_hides_everything():
    assert bool(random_blocks(Size(64, 96), unit=32, ratio=1.0, patch_size=16).all())


def test_every_unit_is_equally_likely():
    draw = generator()
    draws = torch.stack(
        [random_blocks(Size(40, 48), unit=8, ratio=0.4, patch_size=8, generator=draw) for _ in range(1500)]
    )
    counts = draws.sum(0).flatten().tolist()
    assert sum(counts) == 1500 * 12
    # counts of a fixed-size draw vary less than independent ones: (1 - 0.4) of the variance; rescale to chi-square
    statistic = chisquare(counts).statistic / (1 - 0.4) * (29 / 30)
    assert 12 < statistic < 53  # chi-square with 29 degrees of freedom: 0.2% on either side


def test_pairs_of_units_are_drawn_independently_of_their_distance():
    draw = generator(3)
    draws = [random_blocks(Size(8, 24), unit=8, ratio=0.6, patch_size=8, generator=draw) for _ in range(1200)]
    kinds = [tuple(mask.flatten().tolist()) for mask in draws]
    possible = [kind for kind in itertools.product((False, True), repeat=3) if sum(kind) == 2]
    assert set(kinds) == set(possible)
    assert chisquare([kinds.count(kind) for kind in possible]).pvalue > 1e-3


def test_one_generator_state_gives_one_mask_and_moves_on():
    first, second = generator(7), generator(7)
    size = Size(192, 192)
    masks = [random_blocks(size, unit=32, ratio=0.6, patch_size=16, generator=g) for g in (first, second, first)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_a_generator_leaves_the_global_random_state_alone_and_none_uses_it():
    state = torch.get_rng_state()
    random_blocks(Size(64, 64), unit=32, ratio=0.5, patch_size=16, generator=generator())
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    first = random_blocks(Size(192, 192), unit=32, ratio=0.6, patch_size=16)
    torch.manual_seed(5)
    assert torch.equal(random_blocks(Size(192, 192), unit=32, ratio=0.6, patch_size=16), first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": 30}, "mask unit 30 does not divide 192x192; choose sizes of which one divides the other"),
        ({"unit": 32, "patch_size": 12}, "patch size 12 does not divide 32x32"),
        ({"unit": 8, "patch_size": 16}, "patch size 16 does not divide 8x8"),
        ({"unit": 0}, "mask unit 0 does not divide"),
        ({"ratio": 0.0}, r"mask ratio 0.0 is not in \(0, 1\]; SimMIM's is 0.6"),
        ({"ratio": 1.01}, r"mask ratio 1.01 is not in"),
        ({"ratio": float("nan")}, r"mask ratio nan is not in"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        random_blocks(Size(192, 192), **({"unit": 32, "ratio": 0.6, "patch_size": 16} | settings))
