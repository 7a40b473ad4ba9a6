"""Whether each objective learns: 200 steps of every small pretraining recipe, and what k-NN gains by them.

`python curves.py OUT [NAME...]` trains the runs that OUT does not hold yet, seed 0, each with `kamim train`, asks
`kamim knn` for the trained encoder and its own initialisation (`random:RUN`) on the same pictures, prints a table and
writes `curves.png`. NAMEs choose among the runs.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kamim_analysis.results import Results
from kamim_analysis.train.objectives._classification import Classification
from kamim_analysis.train.settings import load_recipe, recipe_names, recipe_path

STEPS, AT, WINDOW = 200, (10, 50, 100, 150, 200), 10
#: further runs of a recipe, by what follows its name: the last one is meant to collapse, and to say so
VARIANTS = {
    "attmask_photographs": {" high": "--objective.masking attmask_high"},
    "latent_mim_photographs": {" joint l2": "--objective.target joint --objective.loss l2"},
}
KNN = "top1_k20"


def runs() -> dict[str, list[str]]:
    """Arguments of `kamim train` for each run."""
    found = {}
    for name in recipe_names():
        recipe = load_recipe(recipe_path(name))
        if name.endswith("_photographs") and not isinstance(recipe.objective, Classification):
            for suffix, options in ({"": ""} | VARIANTS.get(name, {})).items():
                found[name.removesuffix("_photographs") + suffix] = ["--recipe", name, *options.split()]
    return found


def kamim(*arguments: object) -> str:
    """A command's messages. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "kamim_analysis", *map(str, arguments)]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        sys.stderr.write(done.stderr)
    done.check_returncode()
    return done.stderr


def train(run: Path, options: list[str]) -> None:
    """Train where it is not done yet, and keep what the command said; then k-NN."""
    if not (run / "encoder.safetensors").is_file():
        free = f"--max_steps {STEPS} --seed 0 --log_every 1 --monitor.every_epochs 0".split()
        said = kamim("train", *options, *free, "--out", run)
        run.with_suffix(".log").write_text(said, encoding="utf-8")
    if not run.with_suffix(".knn").is_dir():
        models = (f"initial=random:{run}", f"trained={run}")
        kamim("knn", *models, "--data", "photographs", "--out", run.with_suffix(".knn"))


def losses(run: Path) -> np.ndarray:
    """The loss of each step."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def row(name: str, run: Path) -> dict[str, Any]:
    """Losses (means of the ten steps up to each), k-NN of both encoders, their paired difference, and warnings."""
    curve, results = losses(run), Results.open(run.with_suffix(".knn"))
    found: dict[str, Any] = {"run": name}
    found |= {f"loss {step}": f"{curve[step - WINDOW : step].mean():.4g}" for step in AT}
    for label, knn in zip(("initial", "trained"), results.select("knn", KNN).itertuples(), strict=True):
        found[f"k-NN {label}"] = f"{knn.value:.3f} [{knn.ci_low:.3f}, {knn.ci_high:.3f}]"
    paired = results.comparison.set_index("statistic").loc[KNN]
    found["gain, paired"] = f"{paired.difference:+.3f} [{paired.ci_low:+.3f}, {paired.ci_high:+.3f}]"
    falls = curve[-WINDOW:].mean() < curve[:WINDOW].mean()
    found["learns"] = "yes" if falls and paired.ci_low > 0 else "NO"
    return found


def draw(curves: dict[str, np.ndarray], path: Path) -> None:
    """Loss against step, one panel a run: each step's, and the mean of ten."""
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.1 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, item in itertools.zip_longest(axes, curves.items()):
        if item is None:
            axis.axis("off")
            continue
        name, curve = item
        steps = np.arange(1, len(curve) + 1)
        axis.plot(steps, curve, color="#56B4E9", linewidth=0.6, label="each step")
        smooth = np.convolve(curve, np.full(WINDOW, 1 / WINDOW), "valid")
        axis.plot(steps[WINDOW - 1 :], smooth, color="#0072B2", linewidth=1.4, label="mean of ten")
        axis.set(title=name, xlabel="optimizer step", ylabel="training loss")
        axis.spines[["top", "right"]].set_visible(False)
    next(iter(figure.axes)).legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=160)


def main() -> None:
    """Train, classify, tell."""
    if len(sys.argv) < 2:
        sys.exit("usage: python curves.py OUT [NAME...]")
    out, asked = Path(sys.argv[1]), sys.argv[2:]
    out.mkdir(parents=True, exist_ok=True)
    rows, curves = [], {}
    for name, options in runs().items():
        if not asked or name in asked:
            run = out / name.replace(" ", "_")
            print(f"{name} ...", file=sys.stderr, flush=True)
            train(run, options)
            rows.append(row(name, run))
            curves[name] = losses(run)
            warned = [
                line for line in run.with_suffix(".log").read_text(encoding="utf-8").splitlines() if "step " in line
            ]
            print("\n".join(warned), file=sys.stderr)
    table = pd.DataFrame(rows)
    table.to_csv(out / "curves.csv", index=False)
    print(table.to_string(index=False))
    draw(curves, out / "curves.png")


if __name__ == "__main__":
    main()
