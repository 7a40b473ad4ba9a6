"""The non-contiguous grid: where patches lie, that their pixels are the right ones, and what keypoints say of them."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from kamim_analysis.decode import read_rgb
from kamim_analysis.encoders import create
from kamim_analysis.keypoint_maps import find_detector, keypoint_map
from kamim_analysis.photographs import paths
from kamim_analysis.shapes import Grid
from kamim_analysis.train.objectives.latent_mim import LatentMIM
from kamim_analysis.train.spaced_grid import SpacedView, assemble, draw_offsets, patch_pixels
from kamim_analysis.train.views import Augmentation

WHOLE = Augmentation((1.0, 1.0), (1.0, 1.0), 0.0, 0.0)  # the whole of a square picture, only resized


@pytest.fixture
def astronaut() -> Any:
    """A square photograph, uint8 [H, W, 3]."""
    return next(read_rgb(path) for path in paths() if path.stem == "astronaut")


def view(augmentation: Augmentation = WHOLE, **settings: Any) -> SpacedView:
    return SpacedView(LatentMIM(visible=4, **settings), augmentation, Grid(4, 4), 8)


def test_offsets_are_even_over_the_gap_and_independent() -> None:
    draws = torch.stack([draw_offsets(Grid(4, 5), 4) for _ in range(1000)])
    assert draws.shape == (1000, 2, 4, 5)
    assert (draws.min(), draws.max()) == (0, 3)
    for one in draws.flatten(1).T:  # each cell and axis
        assert chisquare(torch.bincount(one, minlength=4).numpy()).pvalue > 1e-4
    pairs = {
        "row and column of a cell": (draws[:, 0], draws[:, 1]),
        "neighbours": (draws[:, :, :, :-1], draws[:, :, :, 1:]),
        "two pictures": (draws[:-1], draws[1:]),
    }
    for name, (left, right) in pairs.items():
        counts = torch.bincount((4 * left + right).flatten(), minlength=16)
        # each cell takes part in two of the pairs of neighbours, so their counts spread a little more than a chi-square
        assert chisquare(counts.numpy()).pvalue > 1e-4, name


def test_without_gap_nothing_moves_and_the_crop_is_the_picture() -> None:
    assert not draw_offsets(Grid(3, 3), 0).any()
    pixels = patch_pixels(draw_offsets(Grid(3, 2), 0), 4, 0)
    crop = torch.randint(0, 256, (3, 12, 8), dtype=torch.uint8)
    assert torch.equal(assemble(crop, pixels, Grid(3, 2), 4), crop)


def test_each_patch_is_cut_at_its_offset_within_its_cell() -> None:
    grid, patch, gap = Grid(3, 2), 4, 3
    crop = torch.randint(0, 256, (3, 21, 14), dtype=torch.uint8)
    offsets = draw_offsets(grid, gap)
    assembled = assemble(crop, patch_pixels(offsets, patch, gap), grid, patch)
    assert assembled.shape == (3, 12, 8)
    for row in range(3):
        for column in range(2):
            top = row * (patch + gap) + int(offsets[0, row, column])
            left = column * (patch + gap) + int(offsets[1, row, column])
            theirs = crop[:, top : top + patch, left : left + patch]
            ours = assembled[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            assert torch.equal(ours, theirs)


def test_patches_of_the_grid_never_touch() -> None:
    grid, patch, gap = Grid(6, 6), 4, 2
    for _ in range(50):
        pixels = patch_pixels(draw_offsets(grid, gap), patch, gap)
        owner = torch.full((36 * 36,), -1)
        whose = torch.arange(36).reshape(6, 6).repeat_interleave(4, 0).repeat_interleave(4, 1).flatten()
        owner[pixels] = whose
        owner = owner.reshape(36, 36)
        for beside, other in ((owner[:, :-1], owner[:, 1:]), (owner[:-1], owner[1:])):
            assert not ((beside != other) & (beside >= 0) & (other >= 0)).any()


def test_the_view_shows_patches_of_the_larger_crop(astronaut: Any) -> None:
    torch.manual_seed(3)
    sample = view(gap=2)(astronaut)
    torch.manual_seed(3)
    crop = WHOLE.build(40)(torch.from_numpy(astronaut).permute(2, 0, 1))
    offsets = draw_offsets(Grid(4, 4), 2)
    assert sample["image"].shape == (3, 32, 32)
    assert sample["image"].dtype == torch.uint8
    top, left = 10 * 2 + int(offsets[0, 2, 1]), 10 * 1 + int(offsets[1, 2, 1])
    assert torch.equal(sample["image"][:, 16:24, 8:16], crop[:, top : top + 8, left : left + 8])


@pytest.mark.parametrize("masking", ["random", "keypoint_high"])
def test_keypoints_are_those_of_the_crop_before_it_is_cut(masking: str, astronaut: Any) -> None:
    cutter = view(gap=2, masking=masking, keypoint_weights=True, weight_patch=4)
    torch.manual_seed(5)
    sample = cutter(astronaut)
    torch.manual_seed(5)
    crop = WHOLE.build(40)(torch.from_numpy(astronaut).permute(2, 0, 1))
    offsets = draw_offsets(Grid(4, 4), 2)
    found = keypoint_map(crop.permute(1, 2, 0).contiguous().numpy())
    expected = torch.zeros(4, 4)
    for row in range(4):
        for column in range(4):
            top, left = 10 * row + int(offsets[0, row, column]), 10 * column + int(offsets[1, row, column])
            expected[row, column] = float(found[top : top + 8, left : left + 8].mean())
    assert expected.std() > 0.02
    torch.testing.assert_close(sample["density"].unflatten(0, (4, 2)).unflatten(2, (4, 2)).mean((1, 3)), expected)
    if masking == "keypoint_high":
        torch.testing.assert_close(sample["mask_scores"], expected.flatten())
    else:
        assert "mask_scores" not in sample


def test_a_control_that_marks_no_pixels_is_of_the_patches_own_pixels(astronaut: Any) -> None:
    control = find_detector("variance")
    sample = view(gap=2, keypoint_weights=True, detector=control)(astronaut)
    density = torch.from_numpy(control.density(sample["image"].permute(1, 2, 0).contiguous().numpy(), "drawn", 8))
    assert density.std() > 0
    assert torch.equal(sample["density"], density)


def test_a_sample_holds_no_keypoints_that_nothing_asks_for(astronaut: Any) -> None:
    names = set(view(gap=1)(astronaut))
    assert not names & {"density", "mask_scores"}


def test_the_objective_hands_its_gap_to_the_view() -> None:
    encoder = create("vit_tiny", 32, sizes={"patch_size": 8, "width": 16, "depth": 1, "heads": 2})
    made: Any = LatentMIM(visible=4, gap=3).view(WHOLE, encoder)
    assert made.grid == Grid(4, 4)
    assert made.crop.augment.transforms[0].size == (44, 44)
