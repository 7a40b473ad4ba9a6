"""`kamim demo`: the whole way on bundled photographs, from training to the report."""

from pathlib import Path

from ..arguments import Parser, whole_number

HELP = "train SimMIM and KAMIM on bundled photographs, analyse both, write figures and report"
_METHODS = {"SimMIM": "simmim_photographs", "KAMIM": "kamim_photographs"}


def run(arguments: list[str]) -> None:
    """Train (or resume) both recipes, analyse them beside their own random initialisation, say what came out."""
    parser = Parser("demo", f"{HELP} (about six minutes on two cores)")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="directory (default: out/demo)")
    parser.add_argument("--max_steps", type=whole_number(1), help="train for this many steps only, to try it out")
    parser.add_argument("--images", type=whole_number(2), default=768, help="pictures to analyse (default: 768)")
    chosen = parser.parse_args(arguments)

    from .. import output
    from ..train import run_directory, settings

    results = chosen.out / "results"
    output.check(results, overwrite=True)
    recipes = {}
    for label, name in _METHODS.items():
        stop = ["--max_steps", str(chosen.max_steps)] if chosen.max_steps else []
        recipes[label] = settings.parse_recipe(["--config", str(settings.recipe_path(name)), *stop])
        run_directory.check(chosen.out / name, recipes[label])

    from . import analyze
    from .train import train_and_monitor

    for label, name in _METHODS.items():
        print(f"training {label} ({name})")
        train_and_monitor(recipes[label], chosen.out / name)
    models = [f"{label}={chosen.out / name}" for label, name in _METHODS.items()]
    control = f"untrained=random:{chosen.out / _METHODS['SimMIM']}"
    analyze.run(
        [
            *models,
            control,
            "--data",
            "photographs",
            "--images",
            str(chosen.images),
            "--out",
            str(results),
            "--overwrite",
        ]
    )
    _summarise(results, [*_METHODS], control.split("=")[0])


def _summarise(results: Path, trained: list[str], control: str) -> None:
    """The two comparisons that show that something was learned."""
    from ..results import Results

    table = Results.open(results)

    def number(label: str, analysis: str, statistic: str) -> str:
        rows = table.select(analysis, statistic)
        (row,) = rows[rows.model.str.startswith(label)].itertuples()
        return f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"

    for label in trained:
        print(
            f"{label}: masked L1 {number(label, 'reconstruction', 'masked_l1')} against "
            f"{number(label, 'reconstruction', 'mean_colour_l1')} for each image's mean colour; "
            f"k-NN (k = 20) {number(label, 'knn', 'top1_k20')} against {number(control, 'knn', 'top1_k20')} untrained"
        )
