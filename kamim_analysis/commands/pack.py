"""`kamim pack`: pictures made small and put into few large files, once, for every later pass to read faster."""

import argparse
from pathlib import Path
from typing import Any

from ..arguments import Parser, share, whole_number
from ..errors import UserError, some

HELP = "pack pictures into shards that load faster, from disk or a URL"
LESS_MEMORY = "take fewer --workers"


def run(arguments: list[str]) -> None:
    """Pack what is not packed yet and say what is there; or check what was packed."""
    chosen = _parser().parse_args(arguments)
    if chosen.check:
        _check(chosen.data)
        return
    if chosen.out is None:
        raise UserError("give --out DIR, the directory of the shards")

    from .. import output
    from ..data import check_source

    check_source(chosen.data)

    from ..packing import Packing, holds_packing, pack

    output.check(chosen.out, overwrite=True, earlier=holds_packing)
    packing = Packing(
        source=chosen.data,
        root=chosen.data_root,
        size=chosen.size,
        quality=chosen.quality,
        shard_pictures=chosen.shard_pictures,
        workers=chosen.workers,
        max_unreadable=chosen.max_unreadable,
    )
    print(_summary(chosen.out, pack(packing, chosen.out)))


def _parser() -> Parser:
    parser = Parser(
        "pack",
        f"{HELP}. DIR is then a DATA argument of every command; so is its URL (http, s3, ...), as it is or as "
        "simplecache::URL, which keeps the shards it has read in $TMPDIR or FSSPEC_SIMPLECACHE_CACHE_STORAGE. Killed "
        "and started again, packing goes on.",
    )
    parser.add_argument("data", metavar="DATA", help="as --data of the other commands, all its splits")
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory of the shards; the same one to go on")
    parser.add_argument("--check", action="store_true", help="DATA is packed: read everything and name what is damaged")
    parser.add_argument("--data_root", metavar="DIR", help="where a data set given by name lies; never downloaded")
    parser.add_argument(
        "--size", type=whole_number(1), default=256, metavar="PIXELS",
        help="pictures whose shorter side is longer are made smaller (default: 256)",
    )  # fmt: skip
    parser.add_argument("--quality", type=_quality, default=92, help="of the JPEGs, 1 to 95 (default: 92)")
    parser.add_argument(
        "--shard_pictures", type=whole_number(1), default=3000, metavar="N", help="pictures of a shard (default: 3000)"
    )
    parser.add_argument("--workers", type=whole_number(0), default=2, help="processes that load pictures (default: 2)")
    parser.add_argument(
        "--max_unreadable", type=share, default=0.01,
        help="end with an error when more than this share of the pictures cannot be read (default: 0.01)",
    )  # fmt: skip
    return parser


def _quality(text: str) -> int:
    value = whole_number(1)(text)
    if value > 95:  # what Pillow advises: above, files grow and pictures do not gain
        raise argparse.ArgumentTypeError(f"{text!r} is above 95")
    return value


def _check(source: str) -> None:
    """Raise UserError that names what is damaged."""
    from ..shards import find_shards

    index = find_shards(source)
    if index is None:
        raise UserError(f"no packed shards at {source!r}; kamim pack DATA --out DIR writes them")
    damaged = list(index.damaged())
    if damaged:
        raise UserError(f"{source!r}: {len(damaged)} files are damaged: {some(damaged)}")
    print(f"{_summary(source, index.content)}: all as they were packed")


def _summary(out: object, index: Any) -> str:
    from ..feature_writing import megabytes

    parts = []
    for split, about in index["splits"].items():
        shards = about["shards"]
        size = megabytes(sum(shard["bytes"] for shard in shards))
        files = f"{len(shards)} shard{'s' if len(shards) > 1 else ''}"
        parts.append(f"{about['pictures']} pictures of {split} in {files}, {size}")
    skipped = f"; {len(index['skipped'])} could not be read" if index["skipped"] else ""
    return f"{out}: {', '.join(parts)}{skipped}"
