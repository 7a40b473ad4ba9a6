"""The view of several crops: what a sample holds, and how crops are changed."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from kamim_analysis.decode import read_rgb
from kamim_analysis.errors import UserError
from kamim_analysis.photographs import paths
from kamim_analysis.train.multi_crop import GaussianBlur, MultiCropView
from kamim_analysis.train.objectives.attmask import AttMask
from kamim_analysis.train.views import Augmentation, keypoint_density

Pixels = NDArray[np.uint8]
CROP = Augmentation((0.25, 1.0), (3 / 4, 4 / 3), 0.5, 0.0, "bicubic", True)


@pytest.fixture
def photograph() -> Pixels:
    """A real one, of 512 x 512 pixels."""
    return read_rgb(next(path for path in paths() if path.stem == "astronaut"))


@pytest.fixture
def view(tiny_vit: Callable[..., Any]) -> Callable[..., MultiCropView]:
    """The view of a 32-px ViT with patches of 8 px, by settings."""

    def make(augmentation: Augmentation = CROP, **settings: Any) -> MultiCropView:
        return MultiCropView(AttMask(**({"local_size": 16, "local_crops": 3} | settings)), augmentation, tiny_vit())

    return make


def test_a_sample_holds_stacked_crops_and_what_masks_need(
    view: Callable[..., MultiCropView], photograph: Pixels
) -> None:
    sample = view(keypoint_weights=True, masking="random")(photograph)
    shapes = {name: (tuple(values.shape), values.dtype) for name, values in sample.items()}
    assert shapes == {
        "image": ((2, 3, 32, 32), torch.uint8),
        "local": ((3, 3, 16, 16), torch.uint8),
        "mask": ((2, 4, 4), torch.bool),
        "density": ((2, 4, 4), torch.float32),
    }


def test_the_same_random_state_gives_the_same_sample_also_after_pickling(
    view: Callable[..., MultiCropView], photograph: Pixels
) -> None:
    one = view(keypoint_weights=True)
    torch.manual_seed(3)
    first = one(photograph)
    torch.manual_seed(3)
    again = pickle.loads(pickle.dumps(one))(photograph)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(one(photograph)["image"], first["image"])


def test_without_local_crops_there_is_no_entry(view: Callable[..., MultiCropView], photograph: Pixels) -> None:
    assert "local" not in view(local_crops=0, local_size=17)(photograph)


def test_density_is_of_the_crop_that_the_model_sees(view: Callable[..., MultiCropView], photograph: Pixels) -> None:
    settings = AttMask()
    sample = view(keypoint_weights=True)(photograph)
    expected = [keypoint_density(crop, settings.detector, "drawn", 8) for crop in sample["image"]]
    assert float(torch.stack(expected).sum()) > 0
    torch.testing.assert_close(sample["density"], torch.stack(expected), rtol=0, atol=0)


def test_both_crops_draw_their_own_mask(view: Callable[..., MultiCropView], photograph: Pixels) -> None:
    draw = view(masking="random", mask_probability=1.0, local_crops=0)
    masks = torch.stack([draw(photograph)["mask"] for _ in range(40)])
    assert (masks[:, 0] != masks[:, 1]).any((1, 2)).float().mean() > 0.9


def test_each_change_of_colour_comes_as_often_as_it_should(view: Callable[..., MultiCropView]) -> None:
    """A picture of two colours, cut whole: what happened to it can be read off."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 16:] = (230, 60, 20)  # the edge between dark and red, and values above 128
    whole = replace(CROP, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    one = view(whole, local_crops=4, local_scale=(1.0, 1.0), local_size=32)
    samples = [one(picture) for _ in range(200)]
    crops = {
        "first": torch.stack([sample["image"][0] for sample in samples]),
        "second": torch.stack([sample["image"][1] for sample in samples]),
        "local": torch.cat([sample["local"] for sample in samples]),
    }

    def share(crops: torch.Tensor) -> tuple[float, float, float]:
        grey = (crops[:, 0] == crops[:, 1]).flatten(1).all(1) & (crops[:, 1] == crops[:, 2]).flatten(1).all(1)
        # the column at the edge lies between the two colours once it is blurred; narrow blurs leave it as it is
        blurred = (crops[:, 0, 16, 15:17] != crops[:, 0, 16, [0, 31]]).any(1)
        flipped = crops[:, 0, 0, 0].float() > crops[:, 0, 0, 31].float()
        return grey.float().mean().item(), blurred.float().mean().item(), flipped.float().mean().item()

    # of deviations from 0.1 to 2, those below about 0.3 change no pixel: 0.89 of the blurs are seen
    for name, blurs in (("first", 0.89), ("second", 0.09), ("local", 0.45)):
        grey, blurred, flipped = share(crops[name])
        within = 0.05 if name == "local" else 0.1  # at most 3.5 standard deviations of a share of 800 or 200
        assert grey == pytest.approx(0.2, abs=within)
        assert blurred == pytest.approx(blurs, abs=within)
        assert flipped == pytest.approx(0.5, abs=within + 0.03 * (name == "second"))  # solarised red may turn dark


def test_only_the_second_crop_is_solarised(view: Callable[..., MultiCropView]) -> None:
    """White turns black by solarisation alone: jitter leaves 0.6 of its brightness at least."""
    white = np.full((32, 32, 3), 255, np.uint8)
    one = view(local_crops=2)
    samples = [one(white) for _ in range(300)]
    dark = torch.stack([sample["image"].float().mean((1, 2, 3)) < 100 for sample in samples]).float().mean(0)
    assert dark[0] == 0
    assert dark[1].item() == pytest.approx(0.2, abs=0.08)
    assert min(sample["local"].float().mean().item() for sample in samples) > 140


def test_local_crops_show_less_of_the_picture(view: Callable[..., MultiCropView]) -> None:
    """On a ramp from left to right, the range of values in a crop tells its width."""
    ramp = torch.arange(256, dtype=torch.uint8).expand(3, 256, 256)
    one = view(local_scale=(0.05, 0.25))

    def width(crop: Any) -> float:
        crops = torch.stack([crop(ramp).float() for _ in range(200)])
        return float((crops.amax((1, 2, 3)) - crops.amin((1, 2, 3))).mean()) / 255

    # without the changes of colour. The crops' mean width is 0.745 of the picture's for areas of (0.25, 1), where some
    # do not fit and are cut anew, and 0.381 for (0.05, 0.25); a pixel's width of it is lost to that pixel's own mean
    local, whole = (augmented.transforms[0] for augmented in (one.local_crop, one.global_crops[0]))
    assert width(local) == pytest.approx(0.381 * 15 / 16, abs=0.03)
    assert width(whole) == pytest.approx(0.745 * 31 / 32, abs=0.03)


def test_the_blur_is_gaussian_and_near_pillows(photograph: Pixels) -> None:
    pixels = np.ascontiguousarray(photograph[100:196, 200:296])
    for seed in range(4):
        torch.manual_seed(seed)
        blurred = GaussianBlur(1.0)(torch.from_numpy(pixels).permute(2, 0, 1)).permute(1, 2, 0).numpy().astype(float)
        torch.manual_seed(seed)
        _chance, place = torch.rand(()), torch.rand(())
        deviation = 0.1 + 1.9 * float(place)
        exact = gaussian_filter(pixels.astype(float), (deviation, deviation, 0), mode="nearest", radius=(6, 6, 0))
        assert np.abs(blurred - exact).max() < 1.5  # rounding to whole grey levels, once for each axis
        pillow = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(deviation)))
        assert np.abs(blurred - pillow).mean() < 0.7
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    assert GaussianBlur(0.0)(image) is image


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_size": 20}, "objective.local_size 20 is no multiple of the patch size 8"),
        ({"keypoint_weights": True, "weight_patch": 7}, "weight patch size 7 does not divide 32x32"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    view: Callable[..., MultiCropView], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        view(**settings)
