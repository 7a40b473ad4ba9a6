"""`kamim features`: features of a frozen model, extracted once for every evaluation to read."""

from pathlib import Path
from typing import Any

from ..arguments import MODEL, Parser, add_pictures, add_reading, layers, names, reading, whole_number

HELP = "extract a model's features once, for every evaluation to read"
LESS_MEMORY = "take a lower --batch_size, --image_size or --shard_pictures, or fewer --workers"


def run(arguments: list[str]) -> None:
    """Check the command, extract what the store does not hold yet, and tell what it holds."""
    chosen = _parser().parse_args(arguments)

    from .. import output
    from ..data import check_source
    from ..feature_store import holds_store
    from ..model_spec import parse

    check_source(chosen.data)
    spec = parse(chosen.model, reading(chosen))
    output.check(chosen.out, overwrite=True, earlier=holds_store)

    from .. import processes
    from ..extraction import Loading
    from ..feature_writing import Extraction, write_store
    from ..opening import open_model
    from ..sampling import open_data

    data = open_data(
        chosen.data, chosen.data_root, chosen.images, chosen.seed, max_unreadable=chosen.max_unreadable, bank_all=True
    )
    opened = open_model(spec, chosen.image_size, seed=chosen.seed)
    extraction = Extraction(
        opened=opened,
        data=data,
        wanted=_wanted(chosen, opened.encoder),
        loading=Loading(chosen.batch_size, chosen.workers),
        dtype=chosen.dtype,
        shard_pictures=chosen.shard_pictures,
    )
    with processes.joined():
        store = write_store(extraction, chosen.out)
    if processes.is_first():
        print(_summary(store))
    data.changed()
    data.unreadable.check()


def _parser() -> Parser:
    parser = Parser(
        "features",
        f"{HELP}: the chosen layers and poolings in one pass. Killed and started again, it goes on. All training "
        "pictures are stored, where the data have them, and --images of the others.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    add_reading(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="STORE", help="directory; the same one to go on")
    add_pictures(parser, images=None)
    parser.add_argument(
        "--layer", type=layers, default="all", metavar="all|last|N,N", help="0 is the embedding (default: all)"
    )
    parser.add_argument(
        "--pooling",
        type=names,
        metavar="NAME,NAME",
        help="parameter-free poolings; `patches` for the patch tokens themselves, `cls_weights` for the attention of "
        "cls to them (default: mean, central, and cls where there is one)",
    )
    parser.add_argument(
        "--norm",
        choices=["none", "last", "all"],
        default="last",
        help="layers that go through the final norm before pooling (default: last)",
    )
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="default: float32")
    parser.add_argument(
        "--shard_pictures",
        type=whole_number(1),
        metavar="N",
        help="pictures of a file, each written by one process (default: 2048, or what fits 128 MB)",
    )
    return parser


def _wanted(chosen: Any, encoder: Any) -> Any:
    from ..extraction import Wanted, default_poolings, resolve_layers

    poolings = tuple(dict.fromkeys(chosen.pooling or default_poolings(encoder)))
    return Wanted(layers=resolve_layers(chosen.layer, encoder), poolings=poolings, norm=chosen.norm)


def _summary(store: Any) -> str:
    from ..errors import some
    from ..feature_writing import megabytes

    layers = sorted({layer for layer, _ in store.shapes})
    poolings = ", ".join(dict.fromkeys(name for _, name in store.shapes))
    pictures = " and ".join(f"{about['chosen']} pictures of {split}" for split, about in store.index["splits"].items())
    size = megabytes(sum(store.file(shard).stat().st_size for shard in store.shards))
    return f"{store.path}: {poolings} of layers {some(layers, 30)}, {pictures}, {size}"
