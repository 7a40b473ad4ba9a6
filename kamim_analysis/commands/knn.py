"""`kamim knn`: k-NN accuracy of frozen features, of any layers and poolings, of all training pictures or a few."""

import argparse

from ..arguments import Parser, names, numbers, whole_number
from ..errors import UserError
from ..invocation import recorded
from ._frozen import LESS_MEMORY as LESS_MEMORY
from ._frozen import above_zero, frozen_parser, models_and_data, write_and_print

HELP = "classify frozen features by their nearest neighbours"


def parser() -> Parser:
    """The command's options."""
    parser = frozen_parser(
        "knn",
        f"{HELP} (DINO's weighted vote). Neighbours are the training pictures, or, where the data have one split, all "
        "others. The first pooling's statistics are called top1_k20, the others' top1_k20_cls; metrics.csv says the "
        "protocol beside each.",
        layer="last",
    )
    parser.add_argument(
        "--pooling", type=names, default=["mean"], metavar="NAME,NAME",
        help="mean, cls, central or cls_attention (default: mean of patch tokens)",
    )  # fmt: skip
    parser.add_argument(
        "--k", type=numbers, default=[], metavar="K,K", help="default: those of 1,10,20,100,200 that fit"
    )
    parser.add_argument("--temperature", type=above_zero, default=0.07, help="of the votes (default: 0.07)")
    parser.add_argument(
        "--few_shot", type=numbers, default=[], metavar="V,V",
        help="learn from V pictures of each class besides; AttMask: 1,5,10,20",
    )  # fmt: skip
    parser.add_argument(
        "--few_shot_seeds", type=whole_number(1), default=5, metavar="N", help="draws of those pictures (default: 5)"
    )
    return parser


def run(arguments: list[str]) -> None:
    """Check the command and the data's size, then take features and classify."""
    with recorded(parser(), arguments) as chosen:
        _evaluate(chosen)


def _evaluate(chosen: argparse.Namespace) -> None:
    models, data = models_and_data(chosen, poolings=chosen.pooling or [""])
    if chosen.k and max(chosen.k) > data.neighbours:
        raise UserError(
            f"k = {max(chosen.k)} exceeds the {data.neighbours} images that can be neighbours; choose a smaller k"
        )

    from ..analyses.evaluation.knn_run import KnnSettings, run_knn
    from ..extraction import Loading

    settings = KnnSettings(
        layers=chosen.layer, poolings=tuple(dict.fromkeys(chosen.pooling)), norm=chosen.norm, ks=tuple(chosen.k),
        temperature=chosen.temperature, few_shot=tuple(chosen.few_shot), few_shot_seeds=chosen.few_shot_seeds,
        image_size=chosen.image_size, seed=chosen.seed, stores=tuple(chosen.features),
    )  # fmt: skip
    loading = Loading(chosen.batch_size, chosen.workers)
    write_and_print(chosen, data, lambda aside: run_knn(models, data, settings, loading, aside))
