"""Pictures of hostile origin, in data sets' own files, in shards, and behind a URL: refused in one line."""

import gzip
import hashlib
import io
import json
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any

import aiohttp
import numpy as np
import pytest
from fsspec.config import conf
from PIL import Image
from safetensors.numpy import load_file, save_file

from kamim_analysis.data import open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.packing import Packing, pack

Refused = Callable[..., str]


def _cifar(root: Path, payload: bytes, file: str) -> list[Any]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    honest = {"label_names": ["a", "b"], "data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(payload if name == file else pickle.dumps(honest, protocol=2))
    return ["--data", "torch/cifar10", "--data_root", root]


def _devkit(root: Path, payload: bytes, _file: str) -> list[Any]:
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "meta.mat").write_bytes(payload)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    (root / "val").mkdir()
    Image.new("RGB", (8, 8)).save(root / "val" / "ILSVRC2012_val_00000001.JPEG")
    return ["--data", "torch/imagenet", "--data_root", root]


def _shards(root: Path, payload: bytes, file: str) -> list[Any]:
    """The sums are right: whoever writes a payload writes them too."""
    out = packed(root)
    if file == "index":
        (out / "index.json").write_bytes(payload)
        return ["--data", out]
    (out / "train-000000.safetensors").write_bytes(payload)
    change_index(out, "members_sha256", hashlib.sha256(payload).hexdigest())
    return ["--data", out]


@pytest.mark.parametrize(
    ("write", "file"),
    [(_cifar, "batches.meta"), (_cifar, "test_batch"), (_devkit, "meta.mat"), (_shards, "members"), (_shards, "index")],
)
def test_data_with_code_are_refused(tmp_path, refused: Refused, target, payload, write, file):
    (tmp_path / "data").mkdir()
    given = write(tmp_path / "data", pickle.dumps(payload, protocol=2), file)
    refused("analyze", "random:vit_tiny", *given, "--out", tmp_path / "out")
    assert not target.exists()
    assert not (tmp_path / "out").exists()


def test_a_cifar_file_cannot_make_numpy_trust_it(tmp_path, refused: Refused):
    """Elements of objects and of 10^12 bytes, shapes beyond the bytes, and a memo that would take 34 GB."""

    class Made:
        def __init__(self, *call: Any) -> None:
            self.call = call

        def __reduce__(self) -> tuple[Any, ...]:
            return self.call

    rebuild = np.empty(0).__reduce__()[0]
    rows = np.dtype("u1")
    states = {
        "objects": (1, (1,), np.dtype("O"), False, b"A" * 8),
        "long elements": (1, (1,), np.dtype("V9"), False, b"A" * 9),
        "shape": (1, (10**12, 3072), rows, False, b"A"),
    }
    memo = b"\x80\x02}r\xff\xff\xff\x7f."
    forms = {name: pickle.dumps(Made(rebuild, (np.ndarray, (0,), b"b"), state), 2) for name, state in states.items()}
    for content in (*forms.values(), pickle.dumps(Made(np.dtype, ("O",)), 2), memo):
        root = tmp_path / hashlib.sha256(content).hexdigest()[:8]
        root.mkdir()
        given = _cifar(root, b"", "")
        (root / "cifar-10-batches-py" / "batches.meta").write_bytes(content)
        assert "is no CIFAR file" in refused("analyze", "random:vit_tiny", *given, "--out", tmp_path / "out")


def packed(root: Path) -> Path:
    """Four pictures in a shard."""
    for i in range(4):
        (root / "tree" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(root / "tree" / "ab"[i % 2] / f"{i}.png")
    with redirect_stderr(io.StringIO()):
        pack(Packing(source=str(root / "tree"), size=32, workers=0), root / "shards")
    return root / "shards"


def change_index(out: Path, key: str, value: Any) -> None:
    index = json.loads((out / "index.json").read_text())
    next(iter(index["splits"].values()))["shards"][0][key] = value
    (out / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("key", "value"),
    [("file", "/etc/passwd"), ("file", "../train-000000.tar"), ("file", "https://localhost/x.tar"),
     ("file", "a\nb.tar"), ("bytes", 2**80), ("bytes", -1), ("bytes", "1"), ("file", 5), ("sha256", "../../x")],
)  # fmt: skip
def test_an_index_names_files_beside_it_only(tmp_path, refused: Refused, key, value):
    out = packed(tmp_path)
    change_index(out, key, value)
    said = refused("analyze", "random:vit_tiny", "--data", out, "--out", tmp_path / "out")
    assert "is damaged, or names files elsewhere" in said


def test_what_shards_tell_of_their_pictures_must_be_possible(tmp_path, refused: Refused):
    out = packed(tmp_path)
    members = next(out.glob("*.safetensors"))
    honest = load_file(members)
    hostile = {
        "offset": honest["offset"] - 10**6, "length": np.full_like(honest["length"], 2**31 - 1),
        "label": honest["label"] + 10**9, "names": honest["names"][:3], "crc32": honest["crc32"][:2],
    }  # fmt: skip
    for name, values in hostile.items():
        save_file(honest | {name: np.ascontiguousarray(values)}, members)
        change_index(out, "members_sha256", hashlib.sha256(members.read_bytes()).hexdigest())
        said = refused("analyze", "random:vit_tiny", "--data", out, "--out", tmp_path / "out")
        assert "tells of pictures that cannot be in the shard" in said
    (out / "index.json").write_text("[" * 100_000)
    refused("analyze", "random:vit_tiny", "--data", out, "--out", tmp_path / "out")


def test_a_shard_is_never_unpacked(tmp_path):
    """Its members' names, kinds and sizes are not read: pictures are taken by their places, with their sums."""
    out = packed(tmp_path)
    before = [open_pictures(str(out), "train").read(i) for i in range(4)]
    shard = next(out.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        offsets = [member.offset for member in archive]
    names = ["../../escaped", "/escaped", "a\nb", "same", "same", "link", "device", "huge"]
    kinds = [b"0", b"0", b"0", b"0", b"0", b"2", b"3", b"0"]
    for offset, name, kind in zip(offsets, names, kinds, strict=True):
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, "/etc/passwd", 8**11 - 1 if name == "huge" else 0
        content[offset : offset + 512] = member.tobuf(tarfile.USTAR_FORMAT)
    shard.write_bytes(content)
    with tarfile.open(shard) as archive:
        assert archive.next().name == "../../escaped"  # type: ignore[union-attr]
    after = [open_pictures(str(out), "train").read(i) for i in range(4)]
    for (pixels, label), (same, number) in zip(before, after, strict=True):
        assert label == number
        np.testing.assert_array_equal(pixels, same)
    assert not any("escaped" in path.name for path in tmp_path.rglob("*"))


class Hostile(SimpleHTTPRequestHandler):
    """Serves a packing, but for what is asked below /ANSWER, and for shards where that is `shards`."""

    def do_GET(self) -> None:
        answer, name = self.path.split("/")[1:3]
        if answer == "shards" and not name.endswith(".tar"):
            self.path = f"/{name}"
            super().do_GET()
            return
        self.send_response(302 if answer == "file" else 200)
        for key, value in self.headers_of(answer).items():
            self.send_header(key, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            for content in self.body_of(answer):
                self.server.sent += len(content)  # type: ignore[attr-defined]
                self.wfile.write(content)

    def headers_of(self, answer: str) -> dict[str, str]:
        lengths = {"length": "1000000", "nested": "100000", "drip": "100000"}
        if answer in lengths:
            return {"Content-Length": lengths[answer]}
        # what a client that follows to file:// would read
        moved = {"Location": f"file://{self.directory}/index.json"}
        return {"file": moved, "bomb": {"Content-Encoding": "gzip"}}.get(answer, {})

    def body_of(self, answer: str) -> Iterator[bytes]:
        if answer in ("length", "nested"):
            yield b"[" * 100_000
        elif answer == "bomb":
            yield gzip.compress(bytes(2**28), 1)
        while answer in ("endless", "shards", "drip"):
            yield b"[" if answer == "drip" else bytes(2**20)
            sleep(0.1 if answer == "drip" else 0)

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server(tmp_path) -> Iterator[ThreadingHTTPServer]:
    """A hostile server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hostile, directory=str(packed(tmp_path))))
    server.daemon_threads, server.sent = True, 0  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


ANSWERS = {
    "file": "missing or damaged|tried 3 times",
    "length": "tried 3 times",
    "nested": "nested too deep",
    "drip": "tried 3 times",
    "endless": "sends far more for index.json than packed shards have",
    "bomb": "sends far more for index.json than packed shards have",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_hostile_server_is_refused(tmp_path, monkeypatch, server, refused: Refused, answer):
    if answer == "drip":  # fsspec's own is five minutes
        monkeypatch.setitem(conf, "http", {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=0.4)}})
    url = f"http://127.0.0.1:{server.server_port}/{answer}"
    assert re.search(ANSWERS[answer], refused("analyze", "random:vit_tiny", "--data", url, "--out", tmp_path / "out"))
    if answer in ("endless", "drip"):
        assert 0 < server.sent < 2**28  # it was sending until the reader left


@pytest.mark.parametrize(
    ("cache", "reason"),
    [("", "gives whole files only"), ("simplecache::", "is not the file that its index names: it is larger")],
)
def test_shards_without_an_end_fill_no_memory_and_no_disk(tmp_path, monkeypatch, server, cache, reason):
    kept = tmp_path / "kept"
    monkeypatch.setitem(conf, "simplecache", {"cache_storage": str(kept)})
    pictures = open_pictures(f"{cache}http://127.0.0.1:{server.server_port}/shards", "train")
    with pytest.raises(UserError, match=reason):
        pictures.read(0)
    assert 2**20 <= server.sent < 2**28
    assert [file.suffix for file in kept.glob("*")] == [".lock"] * bool(cache)
