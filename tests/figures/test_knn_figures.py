"""The figures of k-NN by depth and from few pictures equal metrics.csv."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from kamim_analysis import results as results_module
from kamim_analysis.figures import few_shot, knn, knn_layers
from kamim_analysis.figures._caption import caption
from kamim_analysis.figures._draw import draw_all
from kamim_analysis.results import Results, Row


def drawn_by(module: object, results: Results) -> Figure:
    figure = module.draw(results)  # type: ignore[attr-defined]
    assert figure is not None
    return figure


@pytest.fixture
def by_layer(drawable: Results, tmp_path: Path) -> Results:
    """Two models with k-NN of three layers by two poolings."""
    draw = np.random.default_rng(0)
    rows: dict[str, list[Row]] = {}
    for label in drawable.models[:2]:
        places = [(layer, k, p) for layer in (3, 0, 8) for k in (10, 20, 200) for p in ("mean", "cls_attention")]
        # the embedding has no attention
        for layer, k, pooling in [place for place in places if place[::2] != (0, "cls_attention")]:
            value, end = draw.uniform(0.2, 0.7), "" if pooling == "mean" else f"_{pooling}"
            told = f"evaluation=knn; pooling={pooling}; temperature=0.07"
            statistic = f"top1_k{k}{end}"
            rows.setdefault(label, []).append(
                Row("knn", layer, None, statistic, value, value - 0.1, value + 0.1, 64, told)
            )
    entries = [drawable.model(label) for label in drawable.models[:2]]
    folder = tmp_path / "layers"
    folder.mkdir()
    results_module.write(folder, drawable.manifest | {"models": entries}, rows, {})
    return Results.open(folder)


def test_lines_by_layer_are_the_table_at_the_usual_k(by_layer: Results) -> None:
    figure = drawn_by(knn_layers, by_layer)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["mean pooling", "cls_attention pooling"]
    for axes, end, layers in zip(figure.axes, ("", "_cls_attention"), ([0, 3, 8], [3, 8]), strict=True):
        for line, label in zip(axes.lines, by_layer.models, strict=True):
            table = by_layer.select("knn", f"top1_k20{end}")
            rows = table[table.model == label].set_index("layer").loc[layers]
            assert_allclose(line.get_xdata(), layers)
            assert_allclose(line.get_ydata(), 100 * rows.value)
    assert set(knn_layers.numbers(by_layer).k) == {20}


def test_accuracy_by_k_of_the_deepest_layer_has_a_panel_for_each_pooling(by_layer: Results) -> None:
    figure = drawn_by(knn, by_layer)
    assert len(figure.axes) == 2
    for axes, end in zip(figure.axes, ("", "_cls_attention"), strict=True):
        for container, label in zip(axes.containers, by_layer.models, strict=True):
            table = by_layer.select("knn")
            rows = table[(table.model == label) & (table.layer == 8)].set_index("statistic")
            expected = [100 * rows.value[f"top1_k{k}{end}"] for k in (10, 20, 200)]
            assert_allclose(container.lines[0].get_ydata(), expected)


def test_a_single_layer_is_not_drawn_by_layer(drawable: Results, control_only: Results) -> None:
    one = drawable.metrics[drawable.metrics.analysis == "knn"]
    results = replace(control_only)
    results.__dict__["metrics"] = one[one.layer == one.groupby("model").layer.transform("max")]
    assert knn_layers.draw(results) is None


def test_few_shot_points_are_the_table(drawable: Results) -> None:
    figure = drawn_by(few_shot, drawable)
    # three classes: from v = 5 come 15 pictures, of which 20 cannot be neighbours
    for axes, end in zip(figure.axes, ("", "_cls"), strict=True):
        for container, label in zip(axes.containers, drawable.models, strict=True):
            line, _, (bars,) = container.lines
            table = drawable.select("few_shot")
            rows = table[(table.model == label) & (table.layer > 1)].set_index("statistic")
            rows = rows.loc[[f"top1_{name}{end}" for name in ("v1_k1", "v5_k10", "v10_k20")]]
            assert_allclose(line.get_xdata(), [1, 5, 10], rtol=0.1)
            assert_allclose(line.get_ydata(), 100 * rows.value.to_numpy(float))
            ends = np.array([segment[:, 1] for segment in bars.get_segments()])
            assert_allclose(ends, 100 * rows[["ci_low", "ci_high"]].to_numpy(float))
    told = caption(drawable, few_shot, few_shot.numbers(drawable))
    assert "Neighbours: k = 10 (v = 5), k = 20 (v = 10); 5 draws of the labelled ones." in told
    assert "bootstrap over images and seeds." in told


def test_a_single_draw_is_said_to_be_one(drawable: Results) -> None:
    table = drawable.metrics
    results = replace(drawable)
    results.__dict__["metrics"] = table.assign(protocol=table.protocol.str.replace("seeds=5", "seeds=1"))
    told = caption(results, few_shot, few_shot.numbers(results))
    assert "a single draw of the labelled ones" in told
    assert "95% score intervals (Wilson) over images." in told


def test_the_report_of_knn_alone_has_its_headline_and_both_figures(by_layer: Results) -> None:
    assert {"knn", "knn_layers"} <= set(draw_all(by_layer.directory, ["knn", "knn_layers", "few_shot"]))
    page = (by_layer.directory / "report.html").read_text(encoding="utf-8")
    assert "top-1 %, k = 20" in page
    numbers = pd.read_csv(by_layer.directory / "figures" / "knn_layers.csv")
    assert set(numbers.layer) == {0, 3, 8}
