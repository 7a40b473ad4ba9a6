"""Every kind of picture file as the RGB a person sees, against pixels known before they were written."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from kamim_analysis.decode import UnreadableImage, read_rgb, to_rgb

GRAY = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> NDArray[np.uint8]:
    image.save(path, **options)
    return read_rgb(path)


def three(gray: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.repeat(np.asarray(gray)[..., None], 3, -1).astype(np.uint8)


def on_white(colour: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.float64]:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp", "a.jp2"])
def test_lossless_rgb_comes_back(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    found = saved(tmp_path / name, Image.fromarray(RGB), **options)
    np.testing.assert_array_equal(found, RGB)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.flags.writeable


def test_gray(tmp_path):
    np.testing.assert_array_equal(saved(tmp_path / "a.png", Image.fromarray(GRAY)), three(GRAY))


def test_one_bit(tmp_path):
    bits = GRAY % 3 == 0
    np.testing.assert_array_equal(saved(tmp_path / "a.png", Image.fromarray(bits)), three(255 * bits))


def test_palette(tmp_path):
    colours = RGB.reshape(-1, 3)[:64]
    index = np.random.default_rng(1).integers(0, 64, (7, 11)).astype(np.uint8)
    image = Image.frombytes("P", (11, 7), index.tobytes())
    image.putpalette(colours.flatten().tolist())
    np.testing.assert_array_equal(saved(tmp_path / "a.png", image), colours[index])


def test_palette_with_one_transparent_colour_shows_white_there(tmp_path):
    colours = RGB.reshape(-1, 3)[:4]
    index = (np.arange(48, dtype=np.uint8) % 4).reshape(6, 8)
    image = Image.frombytes("P", (8, 6), index.tobytes())
    image.putpalette(colours.flatten().tolist())
    found = saved(tmp_path / "a.png", image, transparency=2)
    np.testing.assert_array_equal(found, np.where((index == 2)[..., None], 255, colours[index]))


def test_palette_with_partial_transparency_is_mixed_with_white(tmp_path):
    colours, alpha = RGB.reshape(-1, 3)[:4], np.array([0, 85, 170, 255], np.uint8)
    index = (np.arange(48, dtype=np.uint8) % 4).reshape(6, 8)
    image = Image.frombytes("P", (8, 6), index.tobytes())
    image.putpalette(colours.flatten().tolist())
    found = saved(tmp_path / "a.png", image, transparency=alpha.tobytes())
    np.testing.assert_allclose(found, on_white(colours[index], alpha[index]), atol=1)


def test_rgba_is_composed_on_white(tmp_path):
    alpha = np.random.default_rng(2).integers(0, 256, RGB.shape[:2]).astype(np.uint8)
    found = saved(tmp_path / "a.png", Image.fromarray(np.dstack([RGB, alpha])))
    np.testing.assert_allclose(found, on_white(RGB, alpha), atol=1)


def test_gray_with_alpha_is_composed_on_white(tmp_path):
    alpha = GRAY.T.copy()
    image = Image.merge("LA", [Image.fromarray(GRAY), Image.fromarray(alpha)])
    np.testing.assert_allclose(saved(tmp_path / "a.png", image), on_white(three(GRAY), alpha), atol=1)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_transparent_colour_without_palette_shows_white(tmp_path, mode):
    pixels = np.full((4, 6, 3), 60, np.uint8)
    pixels[1, 2] = 200
    key = (200, 200, 200) if mode == "RGB" else 200
    expected = pixels.copy()
    expected[1, 2] = 255
    found = saved(tmp_path / "a.png", Image.fromarray(pixels).convert(mode), transparency=key)
    np.testing.assert_array_equal(found, expected)


def test_cmyk(tmp_path):
    inks = np.random.default_rng(3).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    found = saved(tmp_path / "a.tif", Image.frombytes("CMYK", (8, 8), inks.tobytes()))
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    np.testing.assert_allclose(found, expected, atol=1.01)


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif"])
def test_16_bit_gray_keeps_its_tonal_range(tmp_path, kind):
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"a.{kind[-3:]}"
    if kind == "png":
        Image.fromarray(deep).save(path)
    else:
        tifffile.imwrite(path, deep, byteorder=">" if kind.startswith("big") else "<")
    found = read_rgb(path)
    np.testing.assert_array_equal(found, three(np.round(deep / 257.0)))
    assert (found.min(), found.max()) == (0, 255)


def test_32_bit_integers_are_taken_as_16_bit(tmp_path):
    deep = np.array([[0, 257, 32896, 65535], [70000, -5, 128, 129]], np.int32)
    found = saved(tmp_path / "a.tif", Image.fromarray(deep))
    np.testing.assert_array_equal(found[..., 0], [[0, 1, 128, 255], [255, 0, 0, 1]])


def test_float_gray_is_stretched(tmp_path):
    values = np.linspace(-3, 5, 30, dtype=np.float32).reshape(5, 6)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), three(np.round((values.astype(float) + 3) / 8 * 255)))


def test_constant_float_gray_is_black(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((5, 6), 7.5, np.float32))
    assert not read_rgb(tmp_path / "a.tif").any()


def test_float_gray_with_missing_values(tmp_path):
    values = np.array([[0.0, 1.0], [np.nan, 0.5]], np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif")[..., 0], [[0, 255], [0, 128]])


# what a viewer must do to the stored pixels, by EXIF's orientation
STORED_TO_SEEN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED_TO_SEEN)
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    smooth = np.asarray(Image.fromarray(RGB).resize((48, 32), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    found = saved(tmp_path / f"a.{suffix}", Image.fromarray(smooth), exif=exif, **options)
    expected = STORED_TO_SEEN[orientation](smooth).astype(int)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=6 if suffix == "jpg" else 0)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.gif"), np.full((4, 6, 3), [255, 0, 0]))


def test_a_file_object_serves_as_well(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        np.testing.assert_array_equal(read_rgb(file, "item 3"), RGB)


def test_to_rgb_leaves_the_image_it_is_given_alone():
    image = Image.fromarray(RGB)
    found = to_rgb(image)
    found[:] = 0
    np.testing.assert_array_equal(np.asarray(image), RGB)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(RGB, 20, 0), 20, 1)).save(file, "jpeg")
    return file.getvalue()


BROKEN = {
    "truncated.jpg": jpeg()[: len(jpeg()) // 2],
    "header only.jpg": jpeg()[:30],
    "text.jpg": b"not a picture\n",
    "empty.png": b"",
    "zeros.png": bytes(500),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_decoded_is_named_in_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImage) as caught:
        read_rgb(path)
    assert caught.value.name == str(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.reason


def test_a_missing_file_and_a_given_name(tmp_path):
    with pytest.raises(UnreadableImage, match=r"'cats/7\.png': .*No such file"):
        read_rgb(tmp_path / "nowhere.png", "cats/7.png")


def test_the_error_survives_the_way_from_a_data_worker():
    import pickle

    error = pickle.loads(pickle.dumps(UnreadableImage("a.jpg", "truncated")))
    assert (error.name, error.reason, str(error)) == ("a.jpg", "truncated", "'a.jpg': truncated")
