"""Training a classifier and judging it: what `kamim probe` and `kamim finetune` leave."""

from pathlib import Path

from kamim_analysis import processes, results
from kamim_analysis.data import Unreadable
from kamim_analysis.errors import UserError
from kamim_analysis.manifest import manifest, model_entry
from kamim_analysis.output import holds_results, written_whole
from kamim_analysis.protocol import protocol
from kamim_analysis.results import Results
from kamim_analysis.sampling import ChosenPictures

from .accuracy import AccuracyMonitor, Judged, judge
from .classifier import Classifier
from .loop import Trained, begin, train
from .objectives._classification import Classification
from .recipe import Recipe
from .run_directory import RESULTS
from .settings import as_dict
from .start import LabelledStart


def train_and_judge(recipe: Recipe, out: Path, *, force: bool = False) -> str:
    """Train by the recipe, judge the last epoch's weights on all test pictures, and write `out`/results.

    Returns a line to print; empty in all processes but the first. A run that `max_steps` cut short is not judged.
    """
    start = begin(recipe)
    assert isinstance(start, LabelledStart)
    monitor = AccuracyMonitor(recipe, start) if recipe.monitor.every_epochs else None
    trained = train(recipe, out, monitor, start, force=force)
    if not processes.is_first():
        return ""
    if not trained.complete:
        return (
            f"{out} stopped before the end of its schedule: no accuracy yet; the same command without max_steps goes on"
        )
    if not holds_results(out / RESULTS):
        _judge(recipe, start, trained, out / RESULTS)
    return _line(Results.open(out / RESULTS))


def _judge(recipe: Recipe, start: LabelledStart, trained: Trained, out: Path) -> None:
    test = start.data.test
    unreadable = Unreadable(len(test), recipe.data.max_unreadable)
    judged = judge(
        trained.model,
        trained.model.encoder,
        test,
        range(len(test)),
        unreadable,
        classes=start.data.classes,
        workers=recipe.efficiency.workers,
    )
    if not judged.indices:
        raise UserError(f"none of the {len(test)} test images of {start.data.source!r} could be read")
    with written_whole(out) as aside:
        _write(recipe, start, trained, judged, unreadable, aside)
    unreadable.check()


def _write(
    recipe: Recipe, start: LabelledStart, trained: Trained, judged: Judged, unreadable: Unreadable, out: Path
) -> None:
    objective = _settings(recipe)
    model = trained.model
    assert isinstance(model, Classifier)
    layer, label = model.layer, start.opened.label
    told = _protocol(recipe, start, model, len(judged.indices))
    rows: list[results.Row] = []
    samples: results.Samples = {}
    for k, correct in judged.correct.items():
        values = correct.numpy()
        right = values[:, None] > 0
        rows += results.rows_of(objective.ANALYSIS, f"top{k}", right, layers=[layer], protocol=told)
        samples[objective.ANALYSIS, f"top{k}", layer] = values
    learned = range(len(start.pictures))
    data = ChosenPictures(start.data.source, start.data.test, judged.indices, start.pictures, [*learned], unreadable)
    # `training` is how the model was pretrained, whose name it bears; how it was probed stands beside
    entry = {"training": None} | model_entry(start.opened, {}) | {"evaluation_recipe": as_dict(recipe)}
    made = manifest(data, [entry], seed=recipe.seed, pooling=objective.pooling)
    results.write(out, made, {label: rows}, {}, {label: samples})


def _settings(recipe: Recipe) -> Classification:
    assert isinstance(recipe.objective, Classification)
    return recipe.objective


def _protocol(recipe: Recipe, start: LabelledStart, model: Classifier, tested: int) -> str:
    objective, optim = _settings(recipe), recipe.optim
    held_out = start.data.held_out
    return protocol(
        evaluation=objective.ANALYSIS,
        pooling=objective.pooling,
        norm=model.norm_name,
        **start.opened.shown,
        train=len(start.pictures),
        test=tested,
        split=None if held_out is None else f"{held_out:g} of each class held out",
        seeds=1,
        learning_rate=optim.learning_rate,
        epochs=optim.epochs,
        batch_size=optim.batch_size,
        weight_decay=optim.weight_decay,
        augmentation=objective.augmentation,
        mixing=objective.mixing,
        label_smoothing=objective.label_smoothing,
        layer_decay=getattr(objective, "layer_decay", None),
        drop_path=None if objective.FROZEN else recipe.encoder.drop_path,
    )


def _line(found: Results) -> str:
    table = found.metrics
    numbers = ", ".join(
        f"{str(row.statistic).replace('top', 'top-')} {row.value:.4f} [{row.ci_low:.4f}, {row.ci_high:.4f}]"
        for row in table.itertuples()
    )
    first = table.iloc[0]
    name = first["analysis"].replace("_", " ")
    return (
        f"{first['model']}: {name} of layer {first['layer']}, {numbers} on {first['images']} images; {found.directory}"
    )
