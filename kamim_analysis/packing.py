"""Writing packed shards: killed at any moment, the next packing goes on and ends with the same bytes.

What is to be packed is written first (packing.json), then each shard aside, flushed and renamed, after it the file that
tells what is in it; index.json comes last and takes packing.json's place. The bytes of a shard depend on the pictures
and the settings alone, not on the number of processes.
"""

import hashlib
import io
import json
import logging
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image
from rich.progress import track
from safetensors import SafetensorError
from torch.utils.data import Dataset

from .data import Pictures, Split, Unreadable, has_two_splits, open_pictures
from .decode import UnreadableImage
from .errors import UserError
from .fingerprints import pictures_fingerprint
from .lock import LOCK, locked
from .output import PARTIAL, flush, unwritable, write_file
from .plain_data import json_of
from .runtime import progress_console
from .shards import FORMAT, INDEX, KIND, PLAN, Members, decode_packed, joined_names, members_file
from .worker_processes import load_batches

# Shards mix the classes, so that a few of them are a fair sample. With the seed of the commands' own default: their
# sample of N pictures then lies in the first shards, and to look at some pictures of a remote set takes few of them.
_MIXING_SEED = 0
_BATCH = 16
# pixels of a JPEG's longer side, libjpeg's JPEG_MAX_DIMENSION
_LONGEST = 65500

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What is to be packed, and how."""

    source: str
    """A DATA argument."""
    root: str | None = None
    """Where a data set by name lies."""
    size: int = 256
    """Most pixels of a packed picture's shorter side."""
    quality: int = 92
    """JPEG quality of what is encoded anew."""
    shard_pictures: int = 3000
    """Pictures of a shard."""
    workers: int = 2
    """Processes that decode and encode."""
    max_unreadable: float = 0.01
    """The packing ends with an error when more than this share of the pictures cannot be read."""


@dataclass(frozen=True)
class Packed:
    """A picture as it goes into a shard."""

    position: int
    name: str
    label: int
    jpeg: bytes


class _ToPack(Dataset[Any]):
    """Picture i as a JPEG whose shorter side is `size` pixels at most, or why it cannot be read."""

    def __init__(self, pictures: Pictures, size: int, quality: int) -> None:
        self.pictures, self.size, self.quality = pictures, size, quality

    def __getitem__(self, position: int) -> Packed | UnreadableImage:
        name = self.pictures.identity(position)
        try:
            pixels, label = self.pictures.read(position)
            jpeg = self._as_it_is(position, pixels) or encode(pixels, self.size, self.quality)
        except UnreadableImage as error:
            return UnreadableImage(name, error.reason)
        return Packed(position, name, label, jpeg)

    def _as_it_is(self, position: int, pixels: UInt8[ndarray, "y x 3"]) -> bytes | None:
        """The source's own file where it is a small JPEG that decodes, by what reads shards, to these very pixels."""
        encoded = self.pictures.encoded(position) if min(pixels.shape[:2]) <= self.size else None
        if encoded is None or not encoded.startswith(b"\xff\xd8\xff"):
            return None
        decoded = decode_packed(encoded)
        return encoded if decoded is not None and np.array_equal(decoded, pixels) else None


def encode(pixels: UInt8[ndarray, "y x 3"], size: int, quality: int) -> bytes:
    """A JPEG whose shorter side is `size` pixels, or less where the picture's is: antialiased, never enlarged.

    Raises UnreadableImage, whose name is empty, for a picture too long for any JPEG.
    """
    image = Image.fromarray(pixels)
    shorter = min(image.size)
    if shorter > size:
        width, height = (round(side * size / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if max(image.size) > _LONGEST:
        raise UnreadableImage("", f"{image.width} x {image.height} pixels are too long for a JPEG ({_LONGEST} at most)")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def holds_packing(out: Path) -> bool:
    """Whether shards were packed there, or were about to be when the process was killed."""
    begun = any((out / name).is_file() for name in (INDEX, PLAN))
    return begun or all(path.name in (LOCK, PLAN + PARTIAL) for path in out.iterdir())


def pack(packing: Packing, out: Path) -> dict[str, Any]:
    """Pack what `out` does not hold yet; what stands in index.json.

    Raises UserError where `out` holds another packing, another process packs there, or too much cannot be read.
    """
    with locked(out):
        splits: tuple[Split, ...] = ("train", "val") if has_two_splits(packing.source) else ("train",)
        collections = {split: open_pictures(packing.source, split, root=packing.root) for split in splits}
        plan = _plan(packing, collections)
        complete = _begin(plan, out)
        if complete is not None:
            log.info("%s is complete already", out)
            return complete
        unreadable = Unreadable(sum(map(len, collections.values())), packing.max_unreadable)
        about = {split: _pack_split(packing, out, split, collections[split], unreadable) for split in splits}
        unreadable.check()
        index = {"kind": KIND, "format": FORMAT, "classes": list(collections["train"].classes), "splits": about}
        index |= {"skipped": sorted(unreadable.names), "packing": plan}
        write_file(out / INDEX, _json(index))
        (out / PLAN).unlink(missing_ok=True)
        return index


def _plan(packing: Packing, collections: Mapping[Split, Pictures]) -> dict[str, Any]:
    """What the shards depend on, and what the source is called."""
    prints = {
        split: {"pictures": len(pictures), "fingerprint": pictures_fingerprint(pictures)}
        for split, pictures in collections.items()
    }
    named = {name: getattr(packing, name) for name in ("size", "quality", "shard_pictures")}
    return {"format": FORMAT, "source": packing.source, **named, "splits": prints}


def _begin(plan: Mapping[str, Any], out: Path) -> dict[str, Any] | None:
    """Write the plan unless it is there; the index where all is packed already. Raises UserError for another plan."""
    index: dict[str, Any] | None = None
    if (out / INDEX).is_file():
        index = _noted(out / INDEX)
        earlier = index.get("packing")
    elif (out / PLAN).is_file():
        earlier = _noted(out / PLAN)
    else:
        write_file(out / PLAN, _json(plan))
        earlier = plan
    try:
        different = _difference(earlier or {}, plan)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(out / (PLAN if index is None else INDEX)) from error
    if different:
        raise UserError(f"{str(out)!r} holds another packing ({different}); give a new --out, or the same to go on")
    return index


def _noted(path: Path) -> dict[str, Any]:
    """What an earlier packing wrote of itself. Raises UserError where that is damaged."""
    try:
        noted = json_of(path.read_bytes())
    except ValueError:
        noted = None
    if not isinstance(noted, dict):
        raise _damaged(path)
    return noted


def _damaged(path: Path) -> UserError:
    return UserError(f"{str(path)!r} is damaged; remove it, and the same command goes on with the shards there are")


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what two plans differ, less where the source lies; empty where in nothing."""
    for name in ("format", "size", "quality", "shard_pictures"):
        if there.get(name) != here[name]:
            return f"{name} is {there.get(name)}, not {here[name]}"
    if there["splits"].keys() != here["splits"].keys():
        return f"of the splits {', '.join(there['splits'])}, not {', '.join(here['splits'])}"
    for split, about in here["splits"].items():
        before = there["splits"][split]["pictures"]
        if before != about["pictures"]:
            return f"{before} pictures of {split}, not {about['pictures']}"
        if there["splits"][split] != about:
            return f"of other pictures than {here['source']!r}: names, sizes or labels of {split} differ"
    return ""


def _pack_split(
    packing: Packing, out: Path, split: Split, pictures: Pictures, unreadable: Unreadable
) -> dict[str, Any]:
    """Write the shards that are missing; what the index says of the split."""
    order = np.random.default_rng(_MIXING_SEED).permutation(len(pictures))
    size = packing.shard_pictures
    starts = {out / f"{split}-{i:06d}.tar": i * size for i in range(-(-len(order) // size))}
    tables = {path: _finished(path) for path in starts}
    missing = [path for path, table in tables.items() if table is None]
    todo = [int(i) for path in missing for i in order[starts[path] : starts[path] + size]]
    if len(missing) < len(starts):
        log.info("%d of %d shards of %s are there already", len(starts) - len(missing), len(starts), split)
    items = iter(_loaded(packing, pictures, todo, f"packing {split}"))
    for path in missing:
        tables[path] = _write_shard(path, islice(items, min(size, len(order) - starts[path])), starts[path], unreadable)
    next(items, None)  # the progress bar comes to its end
    for table in tables.values():
        assert table is not None
        unreadable.names |= set(table["skipped"].tobytes().decode(errors="surrogateescape").split("\0")[:-1])
    shards = [_entry(path, table) for path, table in tables.items() if table is not None]
    return {
        "pictures": sum(shard["pictures"] for shard in shards),
        "unlabelled": pictures.unlabelled,
        "shards": shards,
    }


def _entry(path: Path, table: Mapping[str, ndarray]) -> dict[str, Any]:
    """What the index says of a shard."""
    return {
        "file": path.name,
        "pictures": len(table["offset"]),
        "bytes": path.stat().st_size,
        "sha256": table["sha256"].tobytes().hex(),
        "members_sha256": hashlib.sha256(path.with_name(members_file(path.name)).read_bytes()).hexdigest(),
    }


def _finished(path: Path) -> dict[str, ndarray] | None:
    """The table of a shard that is there, whole and undamaged."""
    try:
        table: dict[str, ndarray] = safetensors.numpy.load(path.with_name(members_file(path.name)).read_bytes())
        if table["sha256"].tobytes() == _digest(path):
            return table
        log.warning("%s is damaged; it is packed again", path)
    except (FileNotFoundError, SafetensorError, KeyError):
        pass
    return None


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _loaded(
    packing: Packing, pictures: Pictures, indices: list[int], description: str
) -> Iterator[Packed | UnreadableImage]:
    """The pictures at `indices`, in that order, as they go into shards."""
    if not indices:
        return
    batches = [indices[start : start + _BATCH] for start in range(0, len(indices), _BATCH)]
    to_pack = _ToPack(pictures, packing.size, packing.quality)
    items = (item for batch in load_batches(to_pack, batches, list, workers=packing.workers) for item in batch)
    yield from track(
        items, description, total=len(indices), console=progress_console(), refresh_per_second=1, update_period=1.0
    )


def _write_shard(
    path: Path, items: Iterable[Packed | UnreadableImage], first: int, unreadable: Unreadable
) -> dict[str, ndarray]:
    """A shard and its table, each whole or not there. Raises UserError where they cannot be written."""
    aside = path.with_name(path.name + PARTIAL)
    try:
        with aside.open("wb") as file:
            members, skipped = _archive(file, items, first)
        flush(aside)
        digest = _digest(aside)
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise
    unreadable.add(skipped)
    table = members.tensors() | {
        "skipped": joined_names([error.name for error in skipped]),
        "sha256": np.frombuffer(digest, np.uint8),
    }
    write_file(path.with_name(members_file(path.name)), safetensors.numpy.save(table))
    return table


def _archive(
    file: BinaryIO, items: Iterable[Packed | UnreadableImage], first: int
) -> tuple[Members, list[UnreadableImage]]:
    """Write KEY.jpg and KEY.cls of each picture, KEY counting from `first`; where they lie, and what was skipped."""
    rows: list[tuple[int, ...]] = []
    names, skipped = [], []
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key, item in enumerate(items, first):
            if isinstance(item, UnreadableImage):
                skipped.append(item)
                continue
            offset = file.tell() + tarfile.BLOCKSIZE  # after the member's header
            _add(archive, f"{key:09d}.jpg", item.jpeg)
            _add(archive, f"{key:09d}.cls", str(item.label).encode())
            rows.append((offset, len(item.jpeg), zlib.crc32(item.jpeg), item.label, item.position))
            names.append(item.name)
    columns = np.array(rows, np.int64).reshape(-1, 5).T
    offsets, length, crc32, label, position = map(np.ascontiguousarray, columns)
    members = Members(
        offset=offsets,
        length=length.astype(np.int32),
        crc32=crc32.astype(np.uint32),
        label=label,
        position=position,
        names=joined_names(names),
    )
    return members, skipped


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner, time and mode are the same whoever packs, and when
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
