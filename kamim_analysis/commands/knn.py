"""`kamim knn`: k-NN accuracy of frozen features, of any layers and poolings, of all training pictures or a few."""

import argparse

from ..arguments import Parser, add_features, add_models_and_data, layers, names, numbers, reading, whole_number
from ..errors import UserError

HELP = "classify frozen features by their nearest neighbours"
_POOLINGS = "kamim_analysis.poolings"


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _parser() -> Parser:
    parser = Parser(
        "knn",
        f"{HELP} (DINO's weighted vote). Neighbours are the training pictures, or, where the data have one split, all "
        "others. The first pooling's statistics are called top1_k20, the others' top1_k20_cls; metrics.csv says the "
        "protocol beside each.",
    )
    add_models_and_data(parser, images=None, pooling=False)
    add_features(parser)
    parser.add_argument(
        "--layer", type=layers, default=[-1], metavar="all|last|N,N", help="0 is the embedding (default: last)"
    )
    parser.add_argument(
        "--pooling", type=names, default=["mean"], metavar="NAME,NAME",
        help="mean, cls, central or cls_attention (default: mean of patch tokens)",
    )  # fmt: skip
    parser.add_argument(
        "--norm", nargs="?", const="all", default="last", choices=["none", "last", "all"],
        help="layers whose tokens go through the encoder's final norm (default: last; without a value: all)",
    )  # fmt: skip
    parser.add_argument(
        "--k", type=numbers, default=[], metavar="K,K", help="default: those of 1,10,20,100,200 that fit"
    )
    parser.add_argument("--temperature", type=_temperature, default=0.07, help="of the votes (default: 0.07)")
    parser.add_argument(
        "--few_shot", type=numbers, default=[], metavar="V,V",
        help="learn from V pictures of each class besides; AttMask: 1,5,10,20",
    )  # fmt: skip
    parser.add_argument(
        "--few_shot_seeds", type=whole_number(1), default=5, metavar="N", help="draws of those pictures (default: 5)"
    )
    return parser


def _check(chosen: argparse.Namespace) -> None:
    from .. import output, plugins
    from ..data import check_source

    available = plugins.names(_POOLINGS)
    for name in chosen.pooling or [""]:
        plugins.check(name, available, "pooling")
    check_source(chosen.data)
    output.check(chosen.out, overwrite=chosen.overwrite)


def run(arguments: list[str]) -> None:
    """Check the command and the data's size, then take features and classify."""
    chosen = _parser().parse_args(arguments)
    _check(chosen)

    from ..model_spec import parse_all
    from ..sampling import check_classes, open_data

    models = parse_all(chosen.models, reading(chosen))
    data = open_data(
        chosen.data, chosen.data_root, chosen.images, chosen.seed, max_unreadable=chosen.max_unreadable, bank_all=True
    )
    if chosen.k and max(chosen.k) > data.neighbours:
        raise UserError(
            f"k = {max(chosen.k)} exceeds the {data.neighbours} images that can be neighbours; choose a smaller k"
        )
    check_classes(data)

    from .. import processes
    from ..analyses.evaluation.knn_run import KnnSettings, run_knn
    from ..extraction import Loading

    settings = KnnSettings(
        layers=chosen.layer, poolings=tuple(dict.fromkeys(chosen.pooling)), norm=chosen.norm, ks=tuple(chosen.k),
        temperature=chosen.temperature, few_shot=tuple(chosen.few_shot), few_shot_seeds=chosen.few_shot_seeds,
        image_size=chosen.image_size, seed=chosen.seed, stores=tuple(chosen.features),
    )  # fmt: skip
    with processes.joined(), processes.written_by_first(chosen.out) as aside:
        table = run_knn(models, data, settings, Loading(chosen.batch_size, chosen.workers), aside)
    if processes.is_first():
        print(table)
    data.unreadable.check()
