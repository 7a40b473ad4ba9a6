"""Packed shards (`kamim pack`): WebDataset archives of small JPEGs, read at random through an index.

    DIR/index.json             what is packed, the classes, and each split's shards with their check sums
    DIR/train-000000.tar       KEY.jpg and KEY.cls of each picture, in an order that mixes the classes
    DIR/train-000000.safetensors   of each picture: where it lies, its class, check sum, and name in the source

A shard's pictures are in random order, but picture i of the collection is the i-th readable one of the source: the
same seed chooses, crops and masks the same pictures, whether they are packed or not.
"""

import hashlib
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.numpy
from jaxtyping import Int32, Int64, UInt8, UInt32
from numpy import ndarray

from .data import Pictures, Split
from .decode import UnreadableImage, opened
from .errors import UserError
from .plain_data import json_of
from .remote import Folder, Stored, is_url, open_folder

INDEX, PLAN = "index.json", "packing.json"
KIND, FORMAT = "kamim_analysis shards", 1
_CHECKED_AT_ONCE = 2**23


def members_file(shard: str) -> str:
    """The file that tells what is in a shard.

    >>> members_file("train-000000.tar")
    'train-000000.safetensors'
    """
    return Path(shard).with_suffix(".safetensors").name


def decode_packed(encoded: bytes) -> UInt8[ndarray, "y x 3"] | None:
    """A JPEG as RGB, by OpenCV: in half of Pillow's time, the same pixels. None where it is none, or too large."""
    try:
        with opened(io.BytesIO(encoded)) as image:  # by its header alone
            if image.format not in ("JPEG", "MPO"):
                return None
    except Exception:  # whatever Pillow's readers raise
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


@dataclass(frozen=True)
class Members:
    """The pictures of one shard or of several, one entry each."""

    offset: Int64[ndarray, " i"]
    """The JPEG's first byte in the shard."""
    length: Int32[ndarray, " i"]
    """Bytes of the JPEG."""
    crc32: UInt32[ndarray, " i"]
    """Check sum of these bytes."""
    label: Int64[ndarray, " i"]
    """Class."""
    position: Int64[ndarray, " i"]
    """Number of the picture in its source."""
    names: UInt8[ndarray, " byte"]
    """What the source calls each (`Pictures.identity`), a zero after each."""

    def tensors(self) -> dict[str, ndarray]:
        """The arrays by name."""
        return dict(vars(self))

    @classmethod
    def of(cls, tensors: Mapping[str, ndarray]) -> "Members":
        """From `tensors` among others."""
        return cls(**{name: tensors[name] for name in cls.__annotations__})

    @classmethod
    def joined(cls, parts: list["Members"]) -> "Members":
        """The pictures of all parts, in their order."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.__annotations__})


def joined_names(names: list[str]) -> UInt8[ndarray, " byte"]:
    """Names as bytes, a zero after each: file names hold any other byte."""
    return np.frombuffer("".join(f"{name}\0" for name in names).encode(errors="surrogateescape"), np.uint8)


@dataclass(frozen=True)
class PackedPictures:
    """The pictures of a split, in the order of their source."""

    folder: Folder
    shards: tuple[Stored, ...]
    shard: Int64[ndarray, " i"]
    """The number of the shard of each member."""
    members: Members
    order: Int64[ndarray, " i"]
    """The member that picture i is."""
    ends: Int64[ndarray, " i"]
    """Where each member's name ends."""

    @classmethod
    def open(cls, folder: Folder, shards: tuple[Stored, ...], parts: list[Members]) -> "PackedPictures":
        """Of shards and what is in each."""
        shard = np.repeat(np.arange(len(parts)), [len(part.offset) for part in parts])
        members = Members.joined(parts)
        order = np.argsort(members.position, kind="stable")
        return cls(folder, shards, shard, members, order, np.flatnonzero(members.names == 0))

    def encoded(self, index: int) -> bytes:
        """The JPEG. Raises UnreadableImage where it is not the one that was packed."""
        i = self.order[index]
        file, start, length = self.shards[self.shard[i]], int(self.members.offset[i]), int(self.members.length[i])
        found = self.folder.read_range(file, start, length)
        if zlib.crc32(found) != self.members.crc32[i]:
            fault = "the shard ends there" if len(found) < length else "its check sum differs"
            raise UnreadableImage(
                self.name(index), f"damaged in {file.name}, bytes {start} to {start + length}: {fault}"
            )
        return found

    def read(self, index: int) -> tuple[UInt8[ndarray, "y x 3"], int]:
        """The decoded picture and its class. Raises UnreadableImage."""
        pixels = decode_packed(self.encoded(index))
        if pixels is None:
            shard = self.shards[self.shard[self.order[index]]]
            raise UnreadableImage(self.name(index), f"no JPEG, or one too large, in {shard.name}")
        return pixels, int(self.members.label[self.order[index]])

    def name(self, index: int) -> str:
        """What the source called it."""
        i = self.order[index]
        start = self.ends[i - 1] + 1 if i else 0
        return self.members.names[start : self.ends[i]].tobytes().decode(errors="surrogateescape")

    def checksum(self, index: int) -> int:
        """CRC-32 of the JPEG."""
        return int(self.members.crc32[self.order[index]])


@dataclass(frozen=True)
class ShardIndex:
    """What index.json tells."""

    source: str
    folder: Folder
    content: Mapping[str, Any]

    @property
    def has_two_splits(self) -> bool:
        """Whether training and validation pictures are apart."""
        return len(self.content.get("splits", ())) == 2

    def pictures(self, split: Split) -> Pictures:
        """The pictures of a split; a source with one split has the same for both.

        Raises UserError where a file that tells what is in a shard is missing or damaged, and so where the index is.
        """
        try:
            return self._pictures(split)
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # a name or a value that a bit changed
            raise self._damaged_index(error) from error

    def _damaged_index(self, error: Exception) -> UserError:
        return UserError(
            f"{INDEX} of {self.source!r} is damaged ({type(error).__name__}: {error}); put back a copy, or pack again"
        )

    def _pictures(self, split: Split) -> Pictures:
        splits = self.content["splits"]
        about = splits[split if self.has_two_splits else next(iter(splits))]
        shards = tuple(Stored(shard["file"], shard["bytes"], shard["sha256"]) for shard in about["shards"])
        packed = PackedPictures.open(self.folder, shards, self._members(about["shards"]))
        return Pictures(
            name=Path(self.source).name,
            classes=tuple(self.content["classes"]),
            labels=packed.members.label[packed.order],
            length=len(packed.order),
            reader=packed.read,
            namer=packed.name,
            marker=packed.checksum,
            unlabelled=about["unlabelled"],
            opener=packed.encoded,
            shards=packed.shard[packed.order],
        )

    def _members(self, shards: list[Mapping[str, Any]]) -> list[Members]:
        names = [members_file(shard["file"]) for shard in shards]
        try:
            contents = self.folder.read(names)
        except OSError as error:
            raise UserError(f"{self.source!r} lacks {error.filename or error}, which its {INDEX} names") from error
        for name, content, shard in zip(names, contents, shards, strict=True):
            if hashlib.sha256(content).hexdigest() != shard["members_sha256"]:
                raise UserError(f"{name} of {self.source!r} is damaged or another; pack it again in a new directory")
        return [self._checked(content, shard) for content, shard in zip(contents, shards, strict=True)]

    def _checked(self, content: bytes, shard: Mapping[str, Any]) -> Members:
        """What is in a shard. Raises UserError where that cannot be: the sums are of the same hand as the numbers."""
        try:
            found = Members.of(safetensors.numpy.load(content))
            one = {len(values) for name, values in vars(found).items() if name != "names"}
            within = found.offset.astype(np.int64) + found.length <= shard["bytes"]
            right = len(one) == 1 and np.count_nonzero(found.names == 0) in one and bool(within.all())
            right = right and min(part.min(initial=0) for part in (found.offset, found.length, found.label)) >= 0
            right = right and found.label.max(initial=-1) < max(1, len(self.content["classes"]))
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError):
            right = False
        if not right:
            name = members_file(shard["file"])
            raise UserError(f"{name} of {self.source!r} tells of pictures that cannot be in the shard; pack it again")
        return found

    def damaged(self) -> Iterator[str]:
        """Each file whose bytes are not those that were packed, with what is wrong; everything is read."""
        try:
            yield from self._damaged_files()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._damaged_index(error) from error

    def _damaged_files(self) -> Iterator[str]:
        for shard in (shard for about in self.content["splits"].values() for shard in about["shards"]):
            try:
                if self._digest(Stored(shard["file"], shard["bytes"], shard["sha256"])) != shard["sha256"]:
                    yield f"{shard['file']} (its check sum differs)"
                self._members([shard])
            except UserError as error:
                yield str(error)

    def _digest(self, file: Stored) -> str:
        digest = hashlib.sha256()
        for start in range(0, file.size, _CHECKED_AT_ONCE):
            digest.update(self.folder.read_range(file, start, _CHECKED_AT_ONCE))
        return digest.hexdigest()


def _is_index(content: dict[str, Any]) -> bool:
    """Whether an index tells all that is read from it, and names files beside it only."""
    try:
        splits = content["splits"].values()
        shards = [shard for about in splits for shard in about["shards"]]
        names = [shard[key] for shard in shards for key in ("file", "sha256", "members_sha256")]
        beside = all(isinstance(name, str) and Path(name).name == name and name.isprintable() for name in names)
        sizes = all(isinstance(shard["bytes"], int) and 0 <= shard["bytes"] < 2**63 for shard in shards)
        told = all(isinstance(about["unlabelled"], str) for about in splits)
        named = all(isinstance(name, str) for name in content["classes"])
    except (KeyError, TypeError, AttributeError):
        return False
    return 1 <= len(splits) <= 2 and beside and sizes and told and named


def find_shards(source: str) -> ShardIndex | None:
    """The packed shards at a path or URL; None where a path is anything else.

    Raises UserError for shards that are not finished or of another version, and for a URL without any.
    """
    folder = open_folder(source)
    content: Any = None
    try:
        content = json_of(folder.read([INDEX])[0])
    except (OSError, ValueError) as error:
        if is_url(source):
            raise UserError(f"no packed shards at {source!r}: {INDEX} is missing or damaged ({error})") from error
    if isinstance(content, dict) and content.get("kind") == KIND:
        if content.get("format") != FORMAT:
            raise UserError(f"{source!r} is packed in format {content.get('format')}, and {FORMAT} is read here")
        if not _is_index(content):
            raise UserError(f"{INDEX} of {source!r} is damaged, or names files elsewhere; pack it again")
        return ShardIndex(source, folder, content)
    if is_url(source):
        raise UserError(f"{INDEX} at {source!r} is not one of packed shards; kamim pack writes them")
    if (Path(source) / PLAN).is_file():
        raise UserError(f"{source!r} is not packed to the end: run the same kamim pack again to go on")
    return None
