"""Packed shards: what is in them, that they are read as they were packed, and what is said where they are not."""

import io
import json
import pickle
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from kamim_analysis import photographs, remote
from kamim_analysis.data import Pictures, check_source, has_two_splits, open_pictures
from kamim_analysis.decode import UnreadableImage, read_rgb
from kamim_analysis.errors import UserError
from kamim_analysis.fingerprints import pictures_fingerprint
from kamim_analysis.packing import Packing, pack
from kamim_analysis.sampling import choose
from kamim_analysis.shards import find_shards
from kamim_analysis.train.labelled import subset

SIZE = 64


def photo(width: int, height: int, number: int = 0) -> Image.Image:
    """A real photograph of this size."""
    return Image.fromarray(read_rgb(photographs.paths()[number])).resize((width, height))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of pictures of all kinds, larger and smaller than what is packed."""
    root = tmp_path_factory.mktemp("source") / "tree"
    for folder in ("train/cats", "train/dogs é", "val/cats", "val/dogs é"):
        (root / folder).mkdir(parents=True)
    for i in range(6):
        photo(80 + i, 60, i).save(root / f"train/cats/small {i}.jpg", quality=80)
        photo(90, 140 + i, i).save(root / f"train/dogs é/large {i}.jpg")
        photo(70, 61, i + 6).save(root / f"val/{('cats', 'dogs é')[i % 2]}/{i}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    photo(100, 50).save(root / "train/dogs é/rotated.jpg", exif=exif)
    photo(120, 100).convert("L").save(root / "train/dogs é/gray.jpg")
    photo(120, 100).convert("CMYK").save(root / "train/dogs é/cmyk.jpg")
    photo(120, 100).quantize(16).save(root / "train/dogs é/palette.gif")
    transparent = photo(120, 100)
    transparent.putalpha(Image.linear_gradient("L").resize((120, 100)))
    transparent.save(root / "train/dogs é/alpha.png")
    deep = np.asarray(photo(120, 100).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(root / "train/dogs é/deep.png")
    return root


def packed(source: Path | str, out: Path, **settings: Any) -> Path:
    pack(Packing(source=str(source), **({"size": SIZE, "shard_pictures": 7, "workers": 0} | settings)), out)
    return out


@pytest.fixture(scope="module")
def shards(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree in shards of seven pictures."""
    return packed(tree, tmp_path_factory.mktemp("packed") / "shards")


def everything(pictures: Pictures) -> list[tuple[bytes, int, str, str]]:
    """All that can be read of a collection."""
    return [
        (pixels.tobytes(), label, pictures.identity(i), pictures.stamp(i))
        for i in range(len(pictures))
        for pixels, label in [pictures.read(i)]
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_are_the_pictures_of_their_source(tree: Path, shards: Path, split: Any) -> None:
    source, found = open_pictures(str(tree), split), open_pictures(str(shards), split)
    assert len(found) == len(source) == {"train": 18, "val": 6}[split]
    assert (found.classes, found.unlabelled) == (source.classes, "")
    assert np.array_equal(found.labels, source.labels)
    for i in range(len(source)):
        assert found.identity(i) == source.identity(i)
        assert found.read(i)[1] == source.labels[i]
        assert min(found.read(i)[0].shape[:2]) == min(*source.read(i)[0].shape[:2], SIZE)
    assert has_two_splits(str(shards))
    check_source(str(shards))


def test_plain_tarfile_reads_webdataset_pairs_in_mixed_order(shards: Path) -> None:
    content = json.loads((shards / "index.json").read_text())
    found, keys = {}, []
    for shard in content["splits"]["train"]["shards"]:
        with tarfile.open(shards / shard["file"]) as archive:
            members = archive.getnames()
            for jpeg, label in zip(members[::2], members[1::2], strict=True):
                assert (Path(jpeg).stem, Path(jpeg).suffix, Path(label).suffix) == (Path(label).stem, ".jpg", ".cls")
                keys.append(Path(jpeg).stem)
                found[archive.extractfile(jpeg).read()] = int(archive.extractfile(label).read())
    pictures = open_pictures(str(shards), "train")
    assert keys == sorted(set(keys))
    assert len(keys) == 18
    assert found == {pictures.encoded(i): pictures.labels[i] for i in range(18)}
    # the source has one class before the other; a shard has both
    for shard in range(3):
        assert set(pictures.labels[pictures.shards == shard]) == {0, 1}
    assert np.bincount(pictures.shards).tolist() == [7, 7, 4]
    assert set(pictures.shards[choose(pictures, 7, seed=0)]) == {0}


def test_a_small_jpeg_is_copied_and_all_else_is_made_small(tree: Path, shards: Path) -> None:
    pictures = open_pictures(str(shards), "train")
    for i in range(len(pictures)):
        path = tree / "train" / pictures.identity(i)
        copied = pictures.encoded(i) == path.read_bytes()
        assert copied == path.name.startswith("small")
        if not copied:
            upright = ImageOps.exif_transpose(Image.fromarray(read_rgb(path)))
            scale = min(1.0, SIZE / min(upright.size))
            expected = upright.resize([round(side * scale) for side in upright.size], Image.Resampling.LANCZOS)
            pixels = pictures.read(i)[0]
            assert pixels.shape == np.asarray(expected).shape
            assert np.abs(pixels.astype(float) - np.asarray(expected)).mean() < 6, path.name


def test_decoding_is_pillows_bit_for_bit(shards: Path) -> None:
    pictures = open_pictures(str(shards), "train")
    for i in range(len(pictures)):
        assert np.array_equal(pictures.read(i)[0], read_rgb(io.BytesIO(pictures.encoded(i))))


def test_the_same_bytes_whatever_the_number_of_processes(tree: Path, shards: Path, tmp_path: Path) -> None:
    other = packed(tree, tmp_path / "other", workers=2)
    names = sorted(path.name for path in shards.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert len(names) == 1 + 2 * (3 + 1)
    assert all((shards / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_what_could_not_be_read_is_left_out_and_named(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "tree").mkdir()
    for i in range(9):
        photo(70, 70, i).save(tmp_path / "tree" / f"{i}.jpg")
    (tmp_path / "tree" / "4.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1 of 9 images \(11.1%\) could not be read"):
        packed(tmp_path / "tree", tmp_path / "shards", shard_pictures=4)
    with pytest.raises(UserError, match="not packed to the end: run the same kamim pack again"):
        open_pictures(str(tmp_path / "shards"), "train")
    packed(tmp_path / "tree", tmp_path / "shards", shard_pictures=4, max_unreadable=0.2)
    pictures = open_pictures(str(tmp_path / "shards"), "val")
    assert [pictures.identity(i) for i in range(8)] == [f"{i}.jpg" for i in range(9) if i != 4]
    assert pictures.unlabelled == "they lie in no class folders"
    assert json.loads((tmp_path / "shards/index.json").read_text())["skipped"] == ["4.jpg"]
    assert not has_two_splits(str(tmp_path / "shards"))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_member_is_unreadable_and_its_neighbours_are_not(tree: Path, tmp_path: Path, damage: str) -> None:
    out = packed(tree, tmp_path / "shards", shard_pictures=100)
    pictures = open_pictures(str(out), "train")
    whole = everything(pictures)
    archive = out / "train-000000.tar"
    content = bytearray(archive.read_bytes())
    first = min(range(18), key=lambda i: content.index(pictures.encoded(i)))
    start = content.index(pictures.encoded(first))
    if damage == "flip":
        content[start + 700] ^= 1
        archive.write_bytes(content)
        readable = [i for i in range(18) if i != first]
    else:
        archive.write_bytes(content[: start + 700])
        readable = []
    for i in range(18):
        if i in readable:
            assert (pictures.read(i)[0].tobytes(), whole[i][1]) == whole[i][:2]
        else:
            with pytest.raises(UnreadableImage, match=r"damaged in train-000000\.tar") as error:
                pictures.read(i)
            assert error.value.name == pictures.identity(i)
    (damaged,) = find_shards(str(out)).damaged()
    assert damaged == "train-000000.tar (its check sum differs)"
    assert not list(find_shards(str(packed(tree, tmp_path / "again"))).damaged())


def test_a_missing_shard_ends_the_run(tree: Path, tmp_path: Path) -> None:
    out = packed(tree, tmp_path / "shards")
    (out / "train-000001.tar").unlink()
    pictures = open_pictures(str(out), "train")
    lost = int(np.flatnonzero(pictures.shards == 1)[0])
    with pytest.raises(UserError, match=r"cannot read .*train-000001\.tar.: No such file"):
        pictures.read(lost)
    with pytest.raises(UserError, match=r"^cannot read '.*train-000001\.tar': No such file or directory$"):
        loaded(pictures)  # in data workers
    (out / "train-000001.safetensors").write_bytes(b"0")
    with pytest.raises(UserError, match=r"train-000001\.safetensors of .* is damaged or another"):
        open_pictures(str(out), "train")


def test_reading_on_in_forked_and_spawned_processes(shards: Path) -> None:
    pictures = open_pictures(str(shards), "train")
    expected = everything(pictures)  # leaves the shards open

    def read(indices: list[int]) -> list[tuple[bytes, int]]:
        return [(pixels.tobytes(), label) for pixels, label in map(pictures.read, indices)]

    loaded = DataLoader(range(18), batch_size=3, num_workers=2, collate_fn=read)
    assert [item for batch in loaded for item in batch] == [item[:2] for item in expected]
    assert everything(pickle.loads(pickle.dumps(pictures))) == expected


def test_more_shards_than_files_may_be_open(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from functools import lru_cache

    monkeypatch.setattr(remote, "_opened", lru_cache(maxsize=2)(remote._opened.__wrapped__))
    pictures = open_pictures(str(packed(tree, tmp_path / "shards", shard_pictures=1)), "train")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert len(everything(pictures)) == 18
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_shards_packed_anew_in_the_same_place(tree: Path, tmp_path: Path) -> None:
    from shutil import rmtree

    first = open_pictures(str(packed(tree, tmp_path / "shards")), "val")
    first.read(0)
    rmtree(tmp_path / "shards")
    second = open_pictures(str(packed(tree, tmp_path / "shards", size=32)), "val")
    assert min(second.read(0)[0].shape[:2]) == 32
    assert pictures_fingerprint(first) != pictures_fingerprint(second)


def test_a_subset_keeps_shards_and_files(shards: Path) -> None:
    pictures = open_pictures(str(shards), "train")
    part = subset(pictures, [5, 2])
    assert part.shards.tolist() == [pictures.shards[5], pictures.shards[2]]
    assert part.encoded(1) == pictures.encoded(2)


def test_a_tree_with_an_index_of_its_own_is_a_tree(tmp_path: Path) -> None:
    photo(50, 50).save(tmp_path / "0.png")
    (tmp_path / "index.json").write_text('{"kind": "mine"}')
    pictures = open_pictures(str(tmp_path), "train")
    assert len(pictures) == 1
    assert pictures.encoded(0) == (tmp_path / "0.png").read_bytes()
    assert open_pictures("photographs", "train").encoded(0) is None


def test_tar_files_of_others_are_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "0000.tar").write_bytes((shards / "train-000000.tar").read_bytes())
    for refuse in (check_source, lambda source: open_pictures(source, "train")):
        with pytest.raises(UserError, match="holds tar files that kamim pack did not write; unpack them"):
            refuse(str(tmp_path))


def test_shards_of_a_later_format_are_refused(shards: Path, tmp_path: Path) -> None:
    content = json.loads((shards / "index.json").read_text()) | {"format": 2}
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="packed in format 2, and 1 is read here"):
        open_pictures(str(tmp_path), "train")


# over a network


class _Ranges(SimpleHTTPRequestHandler):
    """A server of a directory that answers ranges, and tells what it was asked for."""

    ranges = True
    asked: list[str]
    broken: set[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if any(name in self.path for name in self.broken):
            self.send_error(503)
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted and self.ranges:
            start, stop = map(int, wanted.removeprefix("bytes=").split("-"))
            part = content[start : stop + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        else:
            part = content
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(shards: Path) -> Iterator[tuple[str, type[_Ranges]]]:
    """The URL of the shards on a real server, and the server's handler."""
    handler = type("Handler", (_Ranges,), {"asked": [], "broken": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(shards.parent)))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{shards.name}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where shards are kept."""
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(tmp_path / "kept")})
    return tmp_path / "kept"


def loaded(pictures: Pictures) -> list[tuple[bytes, int, str, str]]:
    """All pictures, read by two data workers."""

    def read(indices: list[int]) -> list[tuple[bytes, int, str, str]]:
        return [
            (pixels.tobytes(), label, pictures.identity(i), pictures.stamp(i))
            for i in indices
            for pixels, label in [pictures.read(i)]
        ]

    return [
        item
        for batch in DataLoader(range(len(pictures)), batch_size=2, num_workers=2, collate_fn=read)
        for item in batch
    ]


def test_a_directory_by_url(shards: Path) -> None:
    url = f"file://{shards}"
    check_source(url)
    assert has_two_splits(url)
    assert everything(open_pictures(url, "val")) == everything(open_pictures(str(shards), "val"))


def test_memory_file_system(shards: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(f"{shards}/", "/packed/", recursive=True)
    try:
        found = open_pictures("memory://packed", "train")
        assert loaded(found) == everything(found) == everything(open_pictures(str(shards), "train"))
    finally:
        files.rm("/packed", recursive=True)


def test_over_http_by_ranges_in_data_workers(shards: Path, served: tuple[str, type[_Ranges]]) -> None:
    url, handler = served
    check_source(url)
    pictures = open_pictures(url, "train")
    local = open_pictures(str(shards), "train")
    assert pictures.name == local.name
    assert pictures.read(3)[0].tobytes() == local.read(3)[0].tobytes()  # before the fork
    handler.asked.clear()
    assert loaded(pictures) == everything(local)
    assert len([path for path in handler.asked if path.endswith(".tar")]) == 18
    assert not list(find_shards(url).damaged())


def test_shards_are_kept_whole_and_fetched_once(shards: Path, served: tuple[str, type[_Ranges]], kept: Path) -> None:
    url, handler = served
    local = everything(open_pictures(str(shards), "train"))
    pictures = open_pictures(f"simplecache::{url}", "train")
    # what a process that was killed in the middle leaves
    kept.mkdir()
    first = json.loads((shards / "index.json").read_text())["splits"]["train"]["shards"][0]
    (kept / f"{first['sha256']}.partial").write_bytes(b"half")
    assert loaded(pictures) == local
    assert sorted(path for path in handler.asked if path.endswith(".tar")) == [
        f"/{shards.name}/train-{i:06d}.tar" for i in range(3)
    ]
    assert len([path for path in kept.iterdir() if len(path.name) == 64]) == 3
    handler.broken = {".tar"}
    assert everything(open_pictures(f"simplecache::{url}", "train")) == local


def test_a_wrong_file_is_not_kept(shards: Path, served: tuple[str, type[_Ranges]], kept: Path) -> None:
    url, handler = served
    pictures = open_pictures(f"simplecache::{url}", "val")
    pictures_of_train = open_pictures(f"simplecache::{url}", "train")
    pictures_of_train.read(0)
    original = handler.translate_path
    handler.translate_path = lambda self, path: original(self, path.replace("val-000000.tar", "train-000000.tar"))
    with pytest.raises(UserError, match=r"val-000000\.tar of .* is not the file that its index names"):
        pictures.read(0)


def test_a_lasting_failure_ends_the_run_and_a_passing_one_does_not(
    shards: Path, served: tuple[str, type[_Ranges]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = served
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.02, 0.3, 0.3))
    pictures = open_pictures(url, "train")
    handler.broken = {"train-000000.tar"}
    i = int(np.flatnonzero(pictures.shards == 0)[0])
    handler.broken |= {"index.json"}
    with pytest.raises(UserError, match=r"cannot read index\.json of 'http://.*', tried 3 times: 503"):
        check_source(url)
    handler.asked.clear()
    with pytest.raises(UserError, match=r"cannot read train-000000\.tar of 'http://.*', tried 5 times: 503"):
        pictures.read(i)
    assert len(handler.asked) == 5

    handler.asked = Mending(handler)
    assert pictures.read(i)[0].size
    assert len(handler.asked) == 3


class Mending(list[str]):
    """A list that mends its server at the third request."""

    def __init__(self, handler: type[_Ranges]) -> None:
        self.handler = handler

    def append(self, path: str) -> None:
        super().append(path)
        if len(self) == 3:
            self.handler.broken = set()


def test_a_server_without_ranges_is_named(served: tuple[str, type[_Ranges]], kept: Path) -> None:
    url, handler = served
    handler.ranges = False
    with pytest.raises(UserError, match=f"gives whole files only: read it as simplecache::{url}"):
        open_pictures(url, "train").read(0)
    assert open_pictures(f"simplecache::{url}", "train").read(0)[0].size


def test_urls_without_shards(served: tuple[str, type[_Ranges]], tmp_path: Path) -> None:
    url, _handler = served
    with pytest.raises(UserError, match=r"no packed shards at 'http://.*/nowhere'"):
        check_source(f"{url}/nowhere")
    with pytest.raises(UserError, match=r"cannot open 'nosuch://bucket': Protocol not known"):
        check_source("nosuch://bucket")
    if find_spec("s3fs") is None:
        with pytest.raises(UserError, match=r"'s3://bucket/shards' needs a package .* pip install s3fs"):
            check_source("s3://bucket/shards")
