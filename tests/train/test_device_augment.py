"""Augmentation on the device: the workers' boxes, flips, masks and pixels, and runs that go on exactly."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from kamim_analysis import encoders
from kamim_analysis.data import Pictures, Unreadable, open_pictures
from kamim_analysis.decode import read_rgb
from kamim_analysis.errors import UserError
from kamim_analysis.keypoints.fast import FAST
from kamim_analysis.photographs import paths
from kamim_analysis.train.batches import Batches
from kamim_analysis.train.device_crop import DeviceCrop, Interpolation, resized_crops, squeeze
from kamim_analysis.train.device_decode import JPEG
from kamim_analysis.train.loop import train
from kamim_analysis.train.objectives._objective import Objective
from kamim_analysis.train.objectives.kamim import KAMIM
from kamim_analysis.train.objectives.latent_mim import LatentMIM
from kamim_analysis.train.objectives.mae import MAE
from kamim_analysis.train.objectives.simmim import SimMIM
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import Order, TrainingSamples
from kamim_analysis.train.settings import parse_recipe, recipe_path
from kamim_analysis.train.views import Augmentation

WORKERS = Augmentation((0.3, 1.0), (3 / 4, 4 / 3), 0.5, 0.5)
SIZE = 64
DEVICE = ["--data.device_augment", "true", "--data.device_size", "48"]
ROUNDS_OTHERWISE = torch.__version__ < "2.9"
"""Torch's own bilinear resizing of uint8: there it is the device's to one gray level, later bit for bit."""
MODES: list[Interpolation] = ["bilinear", "bicubic"]


def device(augmentation: Augmentation = WORKERS, size: int = SIZE) -> Augmentation:
    return replace(augmentation, device_size=size)


@pytest.fixture(scope="module")
def squares() -> Pictures:
    """Photographs of the very size that workers squeeze to, so that squeezing changes nothing."""
    arrays = [squeeze(read_rgb(path), SIZE).permute(1, 2, 0).contiguous().numpy() for path in paths()]
    return Pictures("squares", (), None, len(arrays), reader=lambda index: (arrays[index], 0))


@pytest.fixture(scope="module")
def encoder() -> Any:
    return encoders.create("vit_tiny", 32, sizes={"patch_size": 8, "width": 16, "depth": 1, "heads": 2})


def batch(pictures: Pictures, objective: Objective, augmentation: Augmentation, encoder: Any) -> dict[str, Any]:
    """One sample of each picture, finished."""
    samples = TrainingSamples(pictures, objective.view(augmentation, encoder), seed=5)
    return samples.batch([(2, index) for index in range(len(pictures))])


# ---- pixels


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_boxes_of_whole_pixels_are_torchvisions_crops_to_one_gray_level(mode: Interpolation, antialias: bool) -> None:
    draw = np.random.default_rng(0)
    photographs = [squeeze(read_rgb(path), 128) for path in paths()]
    noise = torch.from_numpy(draw.choice(np.array([0, 255], np.uint8), (3, 128, 128)))  # the most that overshoots
    images = torch.stack([*photographs, noise])
    for size in (24, 96, 150):
        for _ in range(6):
            heights, widths = draw.integers(1, 129, (2, len(images)))
            heights[:2], widths[1:3] = (size, 128), (size, 128)[: 1 if size > 128 else 2]
            heights, widths = heights.clip(max=128), widths.clip(max=128)
            tops, lefts = draw.integers(0, 129 - heights), draw.integers(0, 129 - widths)
            boxes = torch.from_numpy(np.stack([tops, lefts, heights, widths], 1))
            flips = torch.from_numpy(draw.random((len(images), 2)) < 0.5)
            ours = resized_crops(images, boxes.double(), flips, size, interpolation=mode, antialias=antialias)
            for image, box, flip, one in zip(images, boxes.tolist(), flips.tolist(), ours, strict=True):
                wanted = functional.resized_crop(
                    image, *box, [size, size], interpolation=v2.InterpolationMode(mode), antialias=antialias
                )
                wanted = functional.horizontal_flip(wanted) if flip[0] else wanted
                wanted = functional.vertical_flip(wanted) if flip[1] else wanted
                assert (one.int() - wanted.int()).abs().max() <= 1, box
                same = 0.5 if mode == "bilinear" and ROUNDS_OTHERWISE else 0.9 if antialias else 0.999
                assert (one == wanted).float().mean() > same, box


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_box_between_pixels_is_read_where_it_lies(mode: Interpolation, antialias: bool) -> None:
    """On a ramp of 2 gray levels a pixel, far from the box's edges, what is read tells the place."""
    ramp = (torch.arange(100) * 2).to(torch.uint8)
    images = torch.stack([ramp.expand(3, 100, 100), ramp[:, None].expand(3, 100, 100)])
    boxes = torch.tensor([[10.25, 20.6, 50.5, 61.3], [33.3, 5.5, 40.2, 70.0]], dtype=torch.float64)
    crops = resized_crops(
        images, boxes, torch.tensor([[False, False], [False, True]]), 32, interpolation=mode, antialias=antialias
    )
    middle = (torch.arange(32) + 0.5) / 32
    across = 2 * (20.6 + 61.3 * middle - 0.5)
    down = 2 * (33.3 + 40.2 * middle - 0.5).flip(0)
    inner = slice(4, -4)
    assert (crops[0, 0, 7].float() - across)[inner].abs().max() <= 0.7
    assert (crops[1, 2, :, 9].float() - down)[inner].abs().max() <= 0.7


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("antialias", [False, True])
def test_a_crop_shows_nothing_from_beyond_its_box_and_any_box_works(mode: Interpolation, antialias: bool) -> None:
    images = torch.full((5, 3, 40, 40), 255, dtype=torch.uint8)
    images[:4, :, 10:20, 12:30] = 100
    inside = [[10, 12, 10, 18], [10.3, 12.4, 9.4, 17.2], [15.2, 20.1, 0.4, 0.3], [12, 14, 1, 1]]
    boxes = torch.tensor([*inside, [39.7, 39.8, 0.3, 0.2]], dtype=torch.float64)
    crops = resized_crops(
        images, boxes, torch.zeros(5, 2, dtype=torch.bool), 16, interpolation=mode, antialias=antialias
    )
    assert (crops[[0, 2, 3]] == 100).all()
    assert (crops[4] == 255).all()
    # bicubic without antialiasing overshoots beside an edge that a box begins within a pixel of
    assert (crops[1, :, 1:-1, 1:-1] == 100).all()


def test_pixels_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (9, 3, 40, 40), dtype=torch.uint8)
    boxes = torch.rand(9, 4, dtype=torch.float64) * 19 + 1
    flips = torch.rand(9, 2) < 0.5
    for antialias in (False, True):
        whole = resized_crops(images, boxes, flips, 20, interpolation="bicubic", antialias=antialias)
        ones = [
            resized_crops(image[None], box[None], flip[None], 20, interpolation="bicubic", antialias=antialias)
            for image, box, flip in zip(images, boxes, flips, strict=True)
        ]
        assert torch.equal(whole, torch.cat(ones))


def test_neither_autocast_nor_reduced_precision_changes_a_pixel() -> None:
    images = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8)
    boxes, flips = torch.tensor([[1.5, 2, 30, 33]] * 4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.bool)
    exact = resized_crops(images, boxes, flips, 24, interpolation="bilinear", antialias=False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            again = resized_crops(images, boxes, flips, 24, interpolation="bilinear", antialias=False)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(exact, again)


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (120, 90), (90, 300), (64, 64)])
def test_squeezing_is_pillows_bicubic(shape: tuple[int, int]) -> None:
    picture = np.array(Image.fromarray(read_rgb(paths()[0])).resize(shape[::-1]))
    wanted = np.asarray(Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    ours = squeeze(picture, SIZE)
    assert ours.shape == (3, SIZE, SIZE)
    assert ours.is_contiguous()
    difference = np.abs(ours.permute(1, 2, 0).numpy().astype(int) - wanted)
    assert difference.mean() < 0.5  # fixed point of 15 bits for 22, rounded twice
    assert difference.max() <= 5
    if shape == (SIZE, SIZE):
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), picture)


# ---- draws


@pytest.mark.parametrize("shape", [(375, 500), (96, 300), (300, 96), (64, 64)])  # extreme shapes: the central crop
def test_boxes_and_flips_are_those_that_torchvision_draws(shape: tuple[int, int]) -> None:
    """A ramp in two colours, cropped by torchvision from the picture itself: its values tell box and flips."""
    height, width = shape
    rows, columns = np.mgrid[:height, :width]
    picture = torch.from_numpy(np.stack([rows, columns, rows]).astype(np.float32))
    transform, crop = WORKERS.build(500), device().crop(500)
    assert isinstance(crop, DeviceCrop)
    for seed in range(30):
        torch.manual_seed(seed)
        theirs = transform(picture)
        state = torch.get_rng_state()
        torch.manual_seed(seed)
        drawn = crop.draw(height, width)
        assert torch.equal(torch.get_rng_state(), state)
        top, left, tall, wide = (drawn["box"] * torch.tensor([height, width, height, width]) / SIZE).tolist()
        down, across = theirs[0, :, 0], theirs[1, 0]
        # the crop is not smaller than its box, so its first and last pixels are the box's own
        assert sorted((down[0].item(), down[-1].item())) == pytest.approx([top, top + tall - 1], abs=1e-3)
        assert sorted((across[0].item(), across[-1].item())) == pytest.approx([left, left + wide - 1], abs=1e-3)
        assert [bool(across[0] > across[-1]), bool(down[0] > down[-1])] == drawn["flips"].tolist()


OBJECTIVES: dict[str, Objective] = {
    "simmim": SimMIM(mask_unit=16),
    "kamim": KAMIM(mask_unit=16),
    "kamim, hidden by keypoints": KAMIM(masking="keypoint_high", weight_patch=4, map_style="points"),
    "mae": MAE(keypoint_weights=True),
    "latent_mim": LatentMIM(visible=5, gap=3),
    "latent_mim, by keypoints": LatentMIM(visible=5, gap=3, masking="keypoint_high", keypoint_weights=True),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_is_the_workers(name: str, squares: Pictures, encoder: Any) -> None:
    """Of pictures that are not squeezed: pixels, masks, scores, densities, bit for bit."""
    workers = replace(WORKERS, interpolation="bicubic" if ROUNDS_OTHERWISE else "bilinear")
    wanted = batch(squares, OBJECTIVES[name], workers, encoder)
    ours = batch(squares, OBJECTIVES[name], device(workers), encoder)
    assert ours.keys() == wanted.keys()
    for entry, values in wanted.items():
        assert torch.equal(ours[entry], values), entry
    assert wanted["image"].shape == (12, 3, 32, 32)


def test_masks_are_the_workers_of_squeezed_pictures_too_and_pixels_nearly(encoder: Any) -> None:
    pictures = replace(open_pictures("photographs", "train"), length=24)
    wanted = batch(pictures, KAMIM(mask_unit=16), WORKERS, encoder)
    ours = batch(pictures, KAMIM(mask_unit=16), device(size=128), encoder)
    assert torch.equal(ours["mask"], wanted["mask"])
    assert torch.equal(ours["label"], wanted["label"])
    # a wrong box or flip would differ by a photograph's contrast, some 50 gray levels
    assert (ours["image"].int() - wanted["image"].int()).abs().float().mean((1, 2, 3)).max() < 25
    assert (ours["image"].int() - wanted["image"].int()).abs().float().mean() < 6


def test_workers_send_the_squeezed_picture_alone(encoder: Any) -> None:
    samples = TrainingSamples(open_pictures("photographs", "train"), KAMIM(mask_unit=16).view(device(), encoder), 0)
    sample, _failed = samples[0, 0]
    assert sample["image"].shape == (3, SIZE, SIZE)
    assert set(sample) == {"image", "box", "flips", "mask", "label"}


# ---- whole runs


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def alike(expected: Any) -> Any:
    """Equal, or where a gray level may move a keypoint nearly so."""
    return pytest.approx(expected, rel=0.1) if ROUNDS_OTHERWISE else expected


def test_a_run_goes_on_bit_for_bit_in_mid_epoch(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    train(tiny_recipe(*DEVICE, "--efficiency.workers", "2"), tmp_path / "whole")
    train(tiny_recipe(*DEVICE, "--max_steps", "3"), tmp_path / "parts")
    torch.rand(5)
    train(tiny_recipe(*DEVICE), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, parts[name]), name
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_the_losses_of_pictures_that_fit_are_the_workers_also_in_micro_batches(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The pictures are of 48 px, as `device_size`."""
    few = ["--max_steps", "3"]
    train(tiny_recipe(*few), tmp_path / "workers")
    train(tiny_recipe(*few, *DEVICE), tmp_path / "device")
    train(tiny_recipe(*few, *DEVICE, "--efficiency.accumulate", "4"), tmp_path / "four")
    assert losses(tmp_path / "device") == alike(losses(tmp_path / "workers"))
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "device"), rel=1e-5)


def test_temperature_auto_is_that_of_the_devices_crops(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    auto = ["--objective.temperature", "auto", "--max_steps", "1", "--data.device_augment", "true"]
    found = {}
    for size in ("48", "20"):
        train(tiny_recipe(*auto, "--data.device_size", size), tmp_path / size)
        found[size] = yaml_of(tmp_path / size)["objective"]["init_args"]["found_temperature"]
    train(tiny_recipe("--objective.temperature", "auto", "--max_steps", "1"), tmp_path / "workers")
    assert found["48"] == alike(yaml_of(tmp_path / "workers")["objective"]["init_args"]["found_temperature"])
    assert found["20"] != found["48"]


def yaml_of(run: Path) -> Any:
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())


# ---- files that the device decodes


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Photographs as files: JPEGs in colour and gray, one on its side, one of CMYK, one cut short, and a PNG."""
    folder = tmp_path / "files"
    folder.mkdir()
    images = [Image.fromarray(read_rgb(path)).resize((120, 90)) for path in paths()[:6]]
    images[0].save(folder / "colour.jpg", quality=90)
    images[1].convert("L").save(folder / "gray.jpg", quality=90)
    exif = Image.Exif()
    exif[0x0112] = 6
    images[2].save(folder / "rotated.jpg", exif=exif)
    images[3].convert("CMYK").save(folder / "cmyk.jpg")
    images[4].save(folder / "plain.png")
    images[5].save(folder / "other.jpg", subsampling=2)
    return folder


def test_files_give_the_pixels_of_decoded_pictures(files: Path, encoder: Any) -> None:
    pictures = open_pictures(str(files), "train")
    undecoded = replace(device(), decode_on_device=True)
    samples = TrainingSamples(pictures, KAMIM(mask_unit=16).view(undecoded, encoder), 5)
    sent = {pictures.identity(i): isinstance(samples[2, i][0]["image"], JPEG) for i in range(len(pictures))}
    alone = ("cmyk.jpg", "plain.png", "rotated.jpg")
    assert sent == {name: name not in alone for name in sent}
    ours = batch(pictures, SimMIM(mask_unit=16), undecoded, encoder)
    wanted = batch(pictures, SimMIM(mask_unit=16), device(), encoder)
    assert ours.keys() == wanted.keys()
    assert torch.equal(ours["mask"], wanted["mask"])
    assert (ours["image"].int() - wanted["image"].int()).abs().max() <= 2  # libjpeg-turbo in two versions


def test_a_file_cut_short_is_gray_and_reported(files: Path, encoder: Any) -> None:
    whole = (files / "colour.jpg").read_bytes()
    (files / "colour.jpg").write_bytes(whole[: len(whole) // 2])
    pictures = replace(open_pictures(str(files), "train"), length=4)  # cmyk, colour, gray, other
    view = SimMIM(mask_unit=16).view(replace(device(), decode_on_device=True), encoder)
    unreadable = Unreadable(len(pictures))
    order = Order(length=4, batch_size=4, seed=0)
    samples = TrainingSamples(pictures, view, 0)
    finished = next(Batches(samples, order, unreadable, torch.device("cpu"), workers=0, finish=view.finish))
    assert unreadable.names == {"colour.jpg"}
    gray = (finished["image"] == 128).flatten(1).all(1)
    assert gray.sum() == 1
    assert isinstance(finished["image"], torch.Tensor)


def test_a_run_decodes_and_goes_on_bit_for_bit(files: Path, tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (files / "plain.png").unlink()
    options = ["--data.source", str(files), *DEVICE, "--data.decode_on_device", "true", "--optim.batch_size", "2"]
    train(tiny_recipe(*options, "--efficiency.workers", "2"), tmp_path / "whole")
    train(tiny_recipe(*options, "--max_steps", "1"), tmp_path / "parts")
    train(tiny_recipe(*options), tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_decoding_on_the_device_needs_its_augmentation() -> None:
    with pytest.raises(UserError, match=r"data.decode_on_device is true, but data.device_augment, which it needs"):
        parse_recipe(["--config", str(recipe_path("kamim_photographs")), "--data.decode_on_device", "true"])


# ---- refusals


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attmask_photographs", "", "AttMask's colour jitter, blur and solarisation is work for the data workers"),
        ("fine_tuning_photographs", "--objective.augmentation paper", "objective.augmentation paper .crop is not."),
        ("kamim_photographs", "--objective.detector SIFT", "objective.detector SIFT .FAST runs on the device."),
        ("mae_photographs", "--objective.masking keypoint_high --objective.detector ORB", "objective.detector ORB"),
    ],
)
def test_what_only_workers_can_do_is_refused_in_one_line(name: str, options: str, message: str) -> None:
    settings = ["--config", str(recipe_path(name)), *options.split()]
    parse_recipe(settings)
    with pytest.raises(UserError, match=f"data.device_augment must be false: {message}") as refused:
        parse_recipe([*settings, "--data.device_augment", "true"])
    assert "\n" not in str(refused.value)


def test_detectors_that_nothing_asks_are_no_obstacle() -> None:
    for name in ("simmim_photographs", "mae_photographs", "latent_mim_photographs"):
        recipe = parse_recipe(
            ["--config", str(recipe_path(name)), "--objective.detector", "SIFT", "--data.device_augment", "true"]
        )
        assert recipe.data.device_augment
    assert FAST().batched


def test_a_classifier_of_crops_trains_on_the_device(classify: Callable[..., Recipe], tmp_path: Path) -> None:
    crops = ["--objective.augmentation", "crop", "--max_steps", "2"]
    train(classify(*crops), tmp_path / "workers")
    train(classify(*crops, *DEVICE), tmp_path / "device")
    assert losses(tmp_path / "device") == pytest.approx(losses(tmp_path / "workers"), rel=1e-2)
