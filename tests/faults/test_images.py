"""Pictures and names as they come: what the decoder, training, analyses, features, packing and keypoints make of them.

Pixels of sound files of every kind are tested in tests/core/test_decode.py.
"""

import csv
import io
import json
import logging
import os
import signal
import socket
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import timm.data
import torch
from PIL import EpsImagePlugin, Image, ImageOps

from kamim_analysis.cli import main
from kamim_analysis.data import open_pictures
from kamim_analysis.decode import MOST_PIXELS, UnreadableImage, opened, read_rgb
from kamim_analysis.errors import printable
from kamim_analysis.evaluation_set import middle
from kamim_analysis.shards import decode_packed
from kamim_analysis.train.device_decode import Undecoded, as_jpeg

NO_UTF_8 = os.fsdecode(b"na\xff\xfe")
CLASSES = ("new\nline", "quo\"te's", "größe_日本", "$\\frac{a}", "<b>bold&amp;", NO_UTF_8, "x.jpg")
SMALL = (
    "--encoder.image_size 32 --encoder.width 16 --encoder.depth 2 --encoder.heads 2 --optim.batch_size 8 "
    "--optim.epochs 2 --optim.warmup_epochs 0.5 --efficiency.workers 0 --monitor.every_epochs 0 "
    "--data.max_unreadable 0.5"
).split()
Refused = Callable[..., str]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG of one bit a pixel, all of them black."""
    rows = zlib.compressobj()
    pixels = rows.compress(bytes((width + 7) // 8 + 1) * min(height, 10_000)) + rows.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    field = struct.pack(form, *values)
    return data[:at] + field + data[at + len(field) :]


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag that it has."""
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    places = (directory + 2 + 12 * i for i in range(entries))
    at = next(place for place in places if struct.unpack_from("<H", data, place) == (tag,))
    return patched(data, at, "<HHII", tag, 4, 1, value)


def bombs() -> dict[str, tuple[bytes, int]]:
    """Files of a few kB whose header announces an absurd picture, and the pixels announced."""
    image = smooth(0)
    jpeg, gif, bmp = encoded(image, "JPEG"), encoded(image.quantize(8), "GIF"), encoded(image, "BMP")
    jp2, webp = encoded(image, "JPEG2000"), encoded(image, "WEBP", lossless=True)
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, np.asarray(image), photometric="rgb")
    wide = with_tag(with_tag(tiff.getvalue(), 256, 100_000), 257, 100_000)
    return {
        "a.png": (png(100_000, 100_000), 10**10),
        "just_too_large.png": (png(2**14, 2**14), 2**28),
        "a.jpg": (patched(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65_000, 65_000), 65_000**2),
        "a.gif": (patched(gif, 6, "<HH", 65_000, 65_000), 65_000**2),
        "a.bmp": (patched(bmp, 18, "<ii", 100_000, 100_000), 10**10),
        "a.ppm": (b"P6 100000 100000 255\n" + bytes(300), 10**10),
        "a.jp2": (
            patched(
                patched(jp2, jp2.index(b"ihdr") + 4, ">II", 10**5, 10**5),
                jp2.index(b"\xff\x51") + 6,
                ">II",
                10**5,
                10**5,
            ),
            10**10,
        ),
        "a.webp": (patched(webp, 21, "<I", (16_383 | 16_383 << 14)), 16_384**2),
        "a.tif": (wide, 10**10),
    }


BOMBS = bombs()


@contextmanager
def at_most_mib(most: float) -> Iterator[None]:
    """Fails where the memory of this process grows beyond, however shortly."""
    if not Path("/proc/self/clear_refs").exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_mib("VmRSS")
    yield
    assert memory_mib("VmHWM") - before < most


def memory_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@pytest.fixture(autouse=True)
def never_hangs() -> Iterator[None]:
    """To open a pipe that nobody writes to takes for ever."""

    def give_up(_number: int, _frame: object) -> None:
        raise TimeoutError

    earlier = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)


# ---- files that the decoder must refuse, or must not


@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, monkeypatch, name, lifted):
    if lifted:  # as some libraries do
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    data, pixels = BOMBS[name]
    (tmp_path / name).write_bytes(data)
    assert len(data) < 200_000 < MOST_PIXELS < pixels
    with at_most_mib(60), pytest.raises(UnreadableImage) as caught:
        read_rgb(tmp_path / name)
    assert name in str(caught.value)
    assert f"{pixels}" in str(caught.value).replace(",", "")
    assert "\n" not in str(caught.value)


def test_a_large_photograph_is_opened_without_a_warning(tmp_path):
    (tmp_path / "large.png").write_bytes(png(9500, 9500))
    assert Image.MAX_IMAGE_PIXELS is not None
    assert Image.MAX_IMAGE_PIXELS < 9500**2 < MOST_PIXELS  # Pillow warns, and warnings are errors here
    with opened(tmp_path / "large.png") as image:
        assert image.size == (9500, 9500)


def test_no_other_reader_decodes_a_bomb(tmp_path):
    data, _ = BOMBS["a.jpg"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bomb.jpg").write_bytes(data)
    with at_most_mib(60):
        assert decode_packed(data) is None
        assert as_jpeg(data, "bomb.jpg") is None
        with pytest.raises(UnreadableImage, match="bomb"):
            Undecoded(open_pictures(str(tmp_path), "train"))(0)


def test_a_shard_holds_nothing_but_jpegs():
    jpeg = encoded(smooth(0), "JPEG")
    np.testing.assert_array_equal(decode_packed(jpeg), read_rgb(io.BytesIO(jpeg), "x"))
    for kind in ("PNG", "BMP", "TIFF"):
        other = encoded(smooth(0), kind)
        assert cv2.imdecode(np.frombuffer(other, np.uint8), cv2.IMREAD_COLOR) is not None
        assert decode_packed(other) is None
    assert decode_packed(b"") is None
    assert decode_packed(jpeg[:100]) is None


def test_compressed_text_and_profiles_of_a_png_are_bombs_too():
    zeros = zlib.compress(bytes(2**27), 1)
    chunks = {"text": chunk(b"zTXt", b"Comment\0\0" + zeros), "profile": chunk(b"iCCP", b"p\0\0" + zeros)}
    assert read_rgb(io.BytesIO(png(16, 16)), "sound").shape == (16, 16, 3)
    for name, bomb in chunks.items():
        with at_most_mib(60), pytest.raises(UnreadableImage, match=r"(?i)too large"):
            read_rgb(io.BytesIO(png(16, 16, bomb)), name)


def test_absurd_tiles_of_a_tiff():
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((64, 64, 3), np.uint8), tile=(16, 16), compression="zlib", photometric="rgb")
    data = file.getvalue()
    assert read_rgb(io.BytesIO(data), "sound").shape == (64, 64, 3)
    data = with_tag(with_tag(data, 322, 2**20), 323, 2**20)  # the tiles' width and height
    with at_most_mib(60), pytest.raises(UnreadableImage):
        read_rgb(io.BytesIO(data), "a.tif")


def test_postscript_is_never_interpreted(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with Image.open(path) as image:  # by Ghostscript
        assert isinstance(image, EpsImagePlugin.EpsImageFile)
    with pytest.raises(UnreadableImage, match=r"photo\.jpg': it is none of JPEG, PNG"):
        read_rgb(path)


def test_damaged_exif_costs_no_picture():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    sound = encoded(smooth(0), "WEBP", lossless=True, exif=exif)
    upright = np.rot90(np.asarray(smooth(0)), -1)
    np.testing.assert_array_equal(read_rgb(io.BytesIO(sound), "x"), upright)
    start = sound.index(b"MM\0*")
    broken = patched(sound, start, ">2s", b"??")
    with Image.open(io.BytesIO(broken)) as image, pytest.raises(SyntaxError):
        image.getexif()
    np.testing.assert_array_equal(read_rgb(io.BytesIO(broken), "x"), np.asarray(smooth(0)))
    # an orientation that stands is followed, though Pillow cannot write again what stands beside it
    strange = patched(sound, sound.index(struct.pack(">HH", 0x010E, 2), start), ">HHI", 0x010E, 12, 1)
    with Image.open(io.BytesIO(strange)) as image, pytest.raises(AttributeError):
        ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(read_rgb(io.BytesIO(strange), "x"), upright)


@pytest.mark.parametrize("transform", ["CMYK", "YCCK"])
def test_inverted_inks_of_adobe(transform):
    """Adobe stores 255 less the ink; in YCCK the first three of these as Y, Cb, Cr."""
    stored = np.array([150, 90, 180, 200], np.uint8)  # as the file holds them
    image = Image.frombytes("CMYK", (16, 16), (255 - stored).tobytes() * 256)
    data = encoded(image, "JPEG", quality=100, subsampling=0)
    adobe = data.index(b"Adobe") + 11
    assert data[adobe] == 0
    y, cb, cr, black = stored.astype(float)
    paper = np.array([y, cb, cr])  # what of red, green and blue the inks let through
    if transform == "YCCK":
        data = patched(data, adobe, "B", 2)
        red, green = y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128)
        paper = 255 - np.array([red, green, y + 1.772 * (cb - 128)])
    found = read_rgb(io.BytesIO(data), "x")
    np.testing.assert_allclose(found[8, 8], paper * black / 255, atol=3)
    seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_allclose(found.astype(int), seen.astype(int), atol=3)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_16_bit_colour_keeps_its_tonal_range(tmp_path, kind):
    deep = np.linspace(0, 65535, 9 * 13 * 3).reshape(9, 13, 3).astype(np.uint16)
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, deep, photometric="rgb")
    else:
        assert cv2.imwrite(str(path), deep[..., ::-1])
    np.testing.assert_allclose(read_rgb(path), deep / 257, atol=1)


def test_the_first_frame_of_an_animated_webp():
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(read_rgb(io.BytesIO(data), "x"), np.full((4, 6, 3), [255, 0, 0]))


# ---- shapes


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (3, 1501), (1, 1), (40, 50)])
def test_the_middle_is_what_the_evaluation_transform_shows_anyway(shape):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8))
    transform = timm.data.create_transform((3, 32, 32), is_training=False, interpolation="bicubic", crop_pct=1.0)
    torch.testing.assert_close(transform(middle(picture)), transform(picture), atol=0.05, rtol=0)
    assert (middle(picture) is picture) == (max(shape) <= 100 * min(shape))


def test_no_shape_takes_more_memory_than_its_picture():
    picture = Image.fromarray(np.zeros((1, 60_000, 3), np.uint8))  # 224 x 13 million pixels by the plain transform
    transform = timm.data.create_transform((3, 224, 224), is_training=False)
    with at_most_mib(200):
        assert transform(middle(picture)).shape == (3, 224, 224)


# ---- directories


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A directory with whatever can lie in one, and the names of what cannot be read; tests read it only."""
    root = tmp_path_factory.mktemp("strange") / "pictures"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(4):
            smooth(10 * label + i).save(root / name / f"{i}.png")
    odd, unreadable = root / "odd", root / "unreadable"
    for folder in (odd, unreadable, root / "empty class", root / ".hidden"):
        folder.mkdir()
    for name in ("a\nb\"'.png", f"{NO_UTF_8}.png", "日本 ü.png", "$x$_{.png", "Case.png", "case.png", ".hidden.png"):
        smooth(99).save(odd / name)
    for name, shape in {"one": (1, 1), "wide": (1, 4000), "tall": (4000, 1)}.items():
        Image.fromarray(np.random.default_rng(2).integers(0, 256, (*shape, 3)).astype(np.uint8)).save(
            odd / f"{name}.png"
        )
    (odd / "twice.png").symlink_to("case.png")
    (odd / "to the top").symlink_to("..", target_is_directory=True)
    smooth(99).save(root / ".hidden" / "a.png")
    _unreadable(unreadable)
    return root, {f"unreadable/{printable(path.name)}" for path in unreadable.iterdir()}


def _unreadable(folder: Path) -> None:
    jpeg, large = encoded(smooth(0), "JPEG"), encoded(smooth(0), "PNG")
    files = {
        "cut.jpg": jpeg[: len(jpeg) // 2], "cut.png": large[: len(large) // 2], "empty.jpg": b"",
        "zeros.png": bytes(500),
        "text.jpg": b"not a picture\n", "te\nxt.jpg": b"text", f"{NO_UTF_8}.jpg": b"text", "日本.jpg": b"text",
    }  # fmt: skip
    for name, content in (files | {name: data for name, (data, _) in BOMBS.items() if name == "a.jpg"}).items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        try:
            listening.bind("socket.jpg")
        finally:
            os.chdir(here)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")


def test_the_directory_is_as_strange_as_it_should_be(strange):
    folder = strange[0] / "unreadable"
    assert stat.S_ISFIFO((folder / "pipe.jpg").stat().st_mode)
    assert stat.S_ISSOCK((folder / "socket.jpg").stat().st_mode)
    assert stat.S_ISCHR((folder / "device.jpg").stat().st_mode)
    with pytest.raises(OSError, match="symbolic links"):
        (folder / "loop.jpg").stat()
    assert (strange[0] / "odd" / "to the top" / "odd").is_dir()


def test_what_a_directory_holds(strange):
    root, unreadable = strange
    pictures = open_pictures(str(root), "train")
    names = [pictures.identity(i) for i in range(len(pictures))]
    # no class without pictures, nothing hidden, no loop entered; links to pictures and names that differ in case count
    assert set(pictures.classes) == {*map(printable, CLASSES), "odd", "unreadable"}
    assert unreadable <= set(names)
    odd = {"a\\nb\"'.png", "na\\udcff\\udcfe.png", "日本 ü.png", "$x$_{.png", "Case.png", "case.png"}
    odd |= {"twice.png", "one.png", "wide.png", "tall.png"}
    assert {name for name in names if name.startswith("odd/")} == {f"odd/{name}" for name in odd}
    assert len(names) == len(set(names)) == 4 * len(CLASSES) + len(odd) + len(unreadable)
    assert sum(name.endswith("/0.png") for name in names) == len(CLASSES)  # of one name in several classes
    for text in (*names, *pictures.classes):
        text.encode()
        assert text.isprintable()


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("kamim_photographs", []),
        ("simmim_photographs", ["--data.device_augment", "true", "--data.decode_on_device", "true"]),
    ],
)
def test_training_goes_on_without_what_it_cannot_read(strange, tmp_path, caplog, recipe, options):
    root, unreadable = strange
    out = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        main(["train", "--recipe", recipe, "--out", str(out), "--data.source", str(root), *SMALL, *options])
    assert (out / "encoder.safetensors").is_file()
    _each_named_once(caplog, unreadable, all_of_them=False)


def _each_named_once(caplog: pytest.LogCaptureFixture, unreadable: set[str], *, all_of_them: bool) -> None:
    lines = [record.getMessage() for record in caplog.records if "unreadable image" in record.getMessage()]
    named = [line.split("'", 1)[1].split("': ")[0] for line in lines]
    assert len(named) == len(set(named))
    assert all(line.isprintable() for line in lines)
    # an epoch leaves out its last pictures, other ones each time
    assert set(named) == unreadable if all_of_them else len(unreadable) - 4 <= len(set(named) & unreadable)


@pytest.mark.filterwarnings("ignore:Glyph .* missing from")
def test_analyses_figures_and_report_hold_every_name(strange, tiny_run, tmp_path, caplog):
    root, unreadable = strange
    out = tmp_path / "results"
    analyses = "knn,token_tsne,self_attention_tokens,explorer,attention_maps"
    options = ["--data", str(root), "--workers", "0", "--max_unreadable", "0.5"]
    with caplog.at_level(logging.WARNING):
        main(["analyze", f"R={tiny_run}", "--out", str(out), "--analyses", analyses, *options])
    _each_named_once(caplog, unreadable, all_of_them=True)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["data"]["unreadable"]) == unreadable
    for path in [*out.rglob("*.csv"), *out.rglob("*.html"), *out.rglob("*.txt")]:
        path.read_text(encoding="utf-8")
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "größe_日本" in report
    assert "<b>bold&" not in report


def test_features_of_what_can_be_read(strange, tiny_run, tmp_path, caplog):
    root, unreadable = strange
    options = ["--workers", "0", "--max_unreadable", "0.5"]
    with caplog.at_level(logging.WARNING):
        main(["features", f"R={tiny_run}", "--data", str(root), "--out", str(tmp_path / "f"), *options])
    _each_named_once(caplog, unreadable, all_of_them=True)


def test_packed_pictures_keep_their_names_and_pixels(strange, tmp_path):
    root, unreadable = strange
    main(["pack", str(root), "--out", str(tmp_path / "s"), "--workers", "0", "--max_unreadable", "0.5"])
    source, packed = (open_pictures(str(path), "train") for path in (root, tmp_path / "s"))
    readable = [i for i in range(len(source)) if source.identity(i) not in unreadable]
    assert [packed.identity(i) for i in range(len(packed))] == [source.identity(i) for i in readable]
    assert packed.classes == source.classes
    for i, j in enumerate(readable):
        assert packed.read(i)[0].shape == source.read(j)[0].shape


def test_a_picture_too_long_for_a_jpeg_is_not_packed(tmp_path, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.new("RGB", (70_000, 1)).save(tmp_path / "in" / "a" / "long.png")
    smooth(0).save(tmp_path / "in" / "a" / "short.png")
    with pytest.raises(OSError, match=r"image file|encoder error"):
        encoded(Image.new("RGB", (70_000, 1)), "JPEG")
    line = mistake(capsys, "pack", tmp_path / "in", "--out", tmp_path / "out", "--workers", "0")
    assert "1 of 2 images (50.0%) could not be read" in line


def test_keypoints_of_every_name_and_shape(strange, tmp_path):
    names = ("a\nb\"'.png", f"{NO_UTF_8}.png", "日本 ü.png", "$x$_{.png", "one.png", "tall.png")
    files, out = [str(strange[0] / "odd" / name) for name in names], tmp_path / "figures"
    main(["keypoints", *files, "--out", str(out), "--image_size", "32", "--weight_patch", "8", "--temperature", "1"])
    with (out / "keypoints.csv").open(encoding="utf-8", newline="") as file:
        assert list(dict.fromkeys(row["picture"] for row in csv.DictReader(file))) == list(map(printable, names))
    assert {path.stem for path in out.glob("*.png")} == {Path(printable(name)).stem for name in names}


def test_keypoints_of_no_picture_are_one_line(strange, tmp_path, refused: Refused):
    for name in ("pipe.jpg", "socket.jpg", "device.jpg", "loop.jpg", "te\nxt.jpg", "a.jpg"):
        line = refused("keypoints", strange[0] / "unreadable" / name, "--out", tmp_path / "out")
        assert printable(name).split(".")[0] in line
        assert not (tmp_path / "out").exists()


def test_a_picture_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "a" / "secret.png"
    path.parent.mkdir()
    smooth(0).save(path)
    pictures = open_pictures(str(tmp_path), "train")
    path.chmod(0)
    with _not_as_root():
        with pytest.raises(PermissionError):
            path.read_bytes()
        with pytest.raises(UnreadableImage, match=r"^'a/secret\.png': .*Permission denied"):
            pictures.read(0)
        with pytest.raises(UnreadableImage, match=r"^'a/secret\.png': Permission denied"):
            pictures.encoded(0)


@contextmanager
def _not_as_root() -> Iterator[None]:
    """Root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


# ---- how many


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve files each, none of them a picture."""
    root = tmp_path_factory.mktemp("broken")
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(12):
            (root / name / f"{i}.jpg").write_bytes(b"text" * i)
    return root


@pytest.mark.parametrize("workers", ["0", "1"])
def test_pictures_of_which_none_can_be_read(broken, tiny_run, tmp_path, capsys, workers):
    for command in ("analyze", "features"):
        line = mistake(capsys, command, tiny_run, "--data", broken, "--out", tmp_path / "out", "--workers", workers)
        assert "none of the 24 images" in line or "24 of 24 images" in line
    train = ["train", "--recipe", "kamim_photographs", "--out", tmp_path / "run", "--data.source", broken, *SMALL]
    assert "none of the 24 images" in mistake(capsys, *train, "--efficiency.workers", workers)
    assert not (tmp_path / "out" / "metrics.csv").exists()


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The last line of a command that begins its work, shows its progress, and ends with a mistake."""
    with pytest.raises(SystemExit) as left:
        main(list(map(str, arguments)))
    assert left.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("kamim: error: ")
    return line


def test_no_pictures_at_all(tmp_path, tiny_run, refused: Refused):
    (tmp_path / "data" / "class").mkdir(parents=True)
    data, out = tmp_path / "data", tmp_path / "out"
    for command in (
        ["train", "--recipe", "kamim_photographs", "--out", out, "--data.source", data, *SMALL],
        ["analyze", tiny_run, "--data", data, "--out", out],
        ["features", tiny_run, "--data", data, "--out", out],
        ["pack", data, "--out", out],
        ["keypoints", data, "--out", out],
    ):
        assert "holds no images" in refused(*command)
        assert not out.exists()


def test_one_picture(tmp_path, tiny_run, refused: Refused):
    (tmp_path / "data" / "class").mkdir(parents=True)
    smooth(0).save(tmp_path / "data" / "class" / "only.png")
    data = ["--data.source", str(tmp_path / "data")]
    train = ["train", "--recipe", "kamim_photographs", "--out", str(tmp_path / "run"), *data, *SMALL]
    assert "1 training images are fewer than one batch" in refused(*train)
    main([*train, "--optim.batch_size", "1"])
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    options = ["--data", str(tmp_path / "data"), "--workers", "0"]
    main(["features", f"R={tiny_run}", "--out", str(tmp_path / "features"), *options])
    main(["analyze", f"R={tiny_run}", "--out", str(tmp_path / "results"), "--analyses", "attention_distance", *options])
    assert (tmp_path / "results" / "report.html").is_file()
