"""What is drawn equals the data."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose, assert_array_equal

from kamim_analysis.figures import (
    attention_distance,
    attention_maps,
    attention_nmi,
    fourier,
    knn,
    reconstructions,
    self_attention_classes,
    self_attention_pair,
    self_attention_tokens,
    token_tsne,
)
from kamim_analysis.figures._style import BLUE, GREEN, ORANGE, RED, looks, name
from kamim_analysis.results import Results

DEPTH = [
    (fourier.draw, "fourier", "delta_log_amplitude", False),
    (attention_distance.draw, "attention_distance", "mean", True),
    (attention_nmi.draw, "attention_nmi", "mean", True),
]
Draw = Callable[[Results], Figure | None]


def drawn_by(draw: Draw, results: Results) -> Figure:
    figure = draw(results)
    assert figure is not None
    return figure


def rows_of(results: Results, label: str, analysis: str, statistic: str) -> pd.DataFrame:
    table = results.select(analysis, statistic)
    return table[table.model == label].sort_values("layer")


def legend_texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(("draw", "analysis", "statistic", "heads"), DEPTH)
def test_depth_lines_and_bands_are_the_table(
    draw: Draw, analysis: str, statistic: str, heads: bool, drawable: Results
) -> None:
    (axes,) = drawn_by(draw, drawable).axes
    bands = [band for band in axes.collections if len(band.get_paths()) and len(band.get_offsets()) == 1]
    assert len(axes.lines) == len(bands) == 3
    for label, line, band in zip(drawable.models, axes.lines, bands, strict=True):
        rows = rows_of(drawable, label, analysis, statistic)
        assert_array_equal(line.get_xdata(), rows.layer.to_numpy(float))
        assert_array_equal(line.get_ydata(), rows.value)
        corners = {(float(x), round(float(y), 12)) for x, y in band.get_paths()[0].vertices}
        expected = [(x, y) for column in (rows.ci_low, rows.ci_high) for x, y in zip(rows.layer, column, strict=True)]
        assert {(float(x), round(y, 12)) for x, y in expected} == corners


@pytest.mark.parametrize(("draw", "analysis", "statistic", "heads"), DEPTH)
def test_single_heads_are_drawn_where_there_are_any(
    draw: Draw, analysis: str, statistic: str, heads: bool, drawable: Results
) -> None:
    (axes,) = drawn_by(draw, drawable).axes
    clouds = [cloud.get_offsets() for cloud in axes.collections if len(cloud.get_offsets()) > 1]
    if not heads:
        assert clouds == []
        return
    table = drawable.select(analysis, statistic, heads=True)
    for label, cloud in zip(drawable.models, clouds, strict=True):
        rows = table[table.model == label]
        assert_array_equal(cloud[:, 1], rows.value)
        assert_allclose(cloud[:, 0], rows.layer.to_numpy(float), atol=0.2)


def test_attention_distance_says_resolution_only_where_models_differ(drawable: Results) -> None:
    texts = legend_texts(drawn_by(attention_distance.draw, drawable))
    assert texts[0] == "SimMIM, 32 px"
    assert texts[2].endswith("32×48 px")  # noqa: RUF001
    drawable.manifest["models"][2]["image_size"] = [32, 32]
    assert legend_texts(drawn_by(attention_distance.draw, drawable))[0] == "SimMIM"


def test_knn_points_and_bars_are_the_table(drawable: Results) -> None:
    (axes,) = drawn_by(knn.draw, drawable).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "10", "100"]
    for label, container in zip(drawable.models, axes.containers, strict=True):
        line, _, (bars,) = container.lines
        table = drawable.select("knn")
        rows = table[(table.model == label) & (table.layer > 1)].set_index("statistic")
        rows = rows.loc[["top1_k1", "top1_k10", "top1_k100"]]
        assert_allclose(line.get_xydata()[:, 0], [1, 10, 100], rtol=0.1)
        assert_allclose(line.get_xydata()[:, 1], 100 * rows.value)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        assert_allclose(ends, 100 * rows[["ci_low", "ci_high"]].to_numpy())


def test_knn_of_every_layer_shows_the_deepest(drawable: Results) -> None:
    table = drawable.metrics
    earlier = table[(table.analysis == "knn")].assign(layer=0, value=0.0)
    results = replace(drawable)
    results.__dict__["metrics"] = pd.concat([earlier, table]).astype({"layer": "Int64"})
    (before,), (after,) = drawn_by(knn.draw, drawable).axes, drawn_by(knn.draw, results).axes
    for one, other in zip(before.containers, after.containers, strict=True):
        assert_array_equal(one.lines[0].get_xydata(), other.lines[0].get_xydata())


def test_reconstructions_show_given_rows_once_for_equal_pictures(drawable: Results) -> None:
    pixels = drawable.arrays("reconstructions", "SimMIM")["pixels"]
    images = [axes.images[0].get_array() for axes in drawn_by(reconstructions.draw, drawable).axes]
    assert_array_equal(np.stack(images), pixels.swapaxes(0, 1).reshape(16, 32, 32, 3))
    other = pixels.copy()
    other[:, 2:] = 255 - other[:, 2:]
    assert [text for text, _ in reconstructions._rows({"a": pixels, "b": other})] == [
        "original", "masked", "a\npredicted", "a\npasted", "b\npredicted", "b\npasted",
    ]  # fmt: skip
    assert [text for text, _ in reconstructions._rows({"a": pixels, "b": 255 - pixels})].count("masked") == 2


def test_attention_maps_box_the_centre_patch_of_each_grid(drawable: Results) -> None:
    figure = drawn_by(attention_maps.draw, drawable)
    pictures = [axes for axes in figure.axes if axes.patches and isinstance(axes.patches[0], Rectangle)]
    boxes = [axes.patches[0].get_bbox().bounds for axes in pictures if axes.images]
    base, square, wide_base, wide = (16 - 0.5, 16 - 0.5, 8, 8), (1.5, 1.5, 1, 1), (15.5, 15.5, 16, 16), (0.5, 0.5, 1, 1)
    assert_allclose(boxes, [base] * 4 + [square] * 8 + [wide_base] * 4 + [wide] * 4)
    assert all(to_hex(axes.patches[0].get_edgecolor()) == "#ff0000" for axes in pictures)


def test_attention_maps_show_the_mean_over_heads_in_units_of_uniform(drawable: Results) -> None:
    images = [axes.images[0] for axes in drawn_by(attention_maps.draw, drawable).axes if axes.images]
    assert_array_equal(images[0].get_array(), drawable.arrays("attention", "SimMIM")["pixels"][0])
    # rows: pictures, SimMIM, untrained; pictures, wide
    maps = drawable.arrays("attention", "SimMIM")["maps"].astype(float)
    shown = np.stack([image.get_array() for image in images[4:8]])
    assert_allclose(shown, maps.mean(1)[:, 2 * 4 + 2].reshape(4, 4, 4) * 16)
    wide = drawable.arrays("attention", drawable.models[2])["maps"].astype(float)
    assert_allclose(images[16].get_array(), wide.mean(1)[0, 1 * 3 + 1].reshape(2, 3) * 6)
    # one colour scale for a model's row
    assert {image.get_clim() for image in images[4:8]} == {(shown.min(), shown.max())}


def test_uniform_attention_looks_flat(drawable: Results) -> None:
    model = attention_maps._model(drawable, "SimMIM")
    sheet = attention_maps.PictureSheet(["a"], 4)
    attention_maps._draw_maps(sheet, 0, model._replace(maps=1 + 1e-4 * np.eye(4)[None]))
    low, high = sheet.rows[0][0].images[0].get_clim()
    assert low < 0.995 < 1.005 < high


def test_tsne_points_are_the_arrays_by_class(drawable: Results) -> None:
    figure = drawn_by(token_tsne.draw, drawable)
    for label, axes in zip(drawable.models, figure.axes, strict=True):
        arrays = drawable.arrays("tokens", label)
        for number, cloud in enumerate(axes.collections):
            expected = arrays["tsne"][arrays["tsne_labels"] == number].reshape(-1, 2)
            assert_array_equal(cloud.get_offsets(), expected)
    # dollars are characters, not formulas
    assert legend_texts(figure) == ["cat", "<script>alert(1)</script>", r"\$x_1\$ owl\$"]


def test_one_picture_is_drawn_at_the_second_last_layer(drawable: Results) -> None:
    figure = drawn_by(self_attention_tokens.draw, drawable)
    assert "layer 3 of 4" in figure.axes[0].get_title()
    for label, axes in zip(drawable.models, figure.axes, strict=True):
        layer = drawable.model(label)["layers"] - 1
        arrays = drawable.arrays("tokens", label)
        for cloud, when, colour in zip(axes.collections, ("before", "after"), (BLUE, ORANGE), strict=True):
            assert_array_equal(cloud.get_offsets(), arrays[f"one_{when}{layer}"][0])
            assert to_hex(cloud.get_facecolor()[0]) == colour.lower()


def test_two_pictures_and_their_centroids_at_the_last_layer(drawable: Results) -> None:
    axes = drawn_by(self_attention_pair.draw, drawable).axes[0]
    arrays = drawable.arrays("tokens", "SimMIM")
    before, after = arrays["two_before4"], arrays["two_after4"]
    clouds, centroids = axes.collections[:4], axes.collections[4:]
    for cloud, points, colour in zip(clouds, [*before, *after], [BLUE, GREEN, ORANGE, RED], strict=True):
        assert_array_equal(cloud.get_offsets(), points)
        assert to_hex(cloud.get_facecolor()[0]) == colour.lower()
    for cross, points, colour in zip(centroids, (before, after), ("#000000", "#8a8a8a"), strict=True):
        assert_allclose(cross.get_offsets(), points.mean(1))
        assert to_hex(cross.get_facecolor()[0]) == colour


def test_sixteen_pictures_by_class_at_the_last_layer(drawable: Results) -> None:
    figure = drawn_by(self_attention_classes.draw, drawable)
    for label, axes in zip(drawable.models, figure.axes, strict=True):
        arrays = drawable.arrays("tokens", label)
        last = arrays["all_after" + str(drawable.model(label)["layers"])]
        for number, cloud in enumerate(axes.collections):
            assert_array_equal(cloud.get_offsets(), last[arrays["self_attention_labels"] == number].reshape(-1, 2))


def test_a_model_looks_the_same_in_every_figure(drawable: Results) -> None:
    found = looks(drawable)
    assert len({look.colour for look in found.values()}) == len({look.marker for look in found.values()}) == 3
    for draw, *_ in DEPTH:
        for line, look in zip(drawn_by(draw, drawable).axes[0].lines, found.values(), strict=True):
            assert (line.get_color(), line.get_marker(), line.get_linestyle()) == look[:3]
    control = found["untrained (random)"]
    assert (control.line, control.control) == ("--", True)
    red, green, blue = (int(control.colour[i : i + 2], 16) for i in (1, 3, 5))
    assert red == green == blue, "gray"


def test_one_image_has_no_interval_and_is_drawn(drawable: Results) -> None:
    results = replace(drawable)
    results.__dict__["metrics"] = drawable.metrics.assign(ci_low=np.nan, ci_high=np.nan, images=1)
    for draw in (fourier.draw, attention_distance.draw, knn.draw):
        drawn_by(draw, results).draw_without_rendering()


def test_name_breaks_after_separators_and_loses_nothing() -> None:
    assert name("random:vit_small_patch16_224", 18) == "random:vit_small_\npatch16_224"
    assert name("a" * 25, 10) == "a" * 10 + "\n" + "a" * 10 + "\n" + "a" * 5
    assert name("short") == "short"
    assert name("$1 and $2") == r"\$1 and \$2"
    assert name("") == ""


@pytest.mark.parametrize("module", [token_tsne, fourier, attention_distance, self_attention_pair, knn, attention_maps])
def test_no_text_is_cut_and_the_layout_is_settled(module: object, drawable: Results) -> None:
    figure = drawn_by(module.draw, drawable)  # type: ignore[attr-defined]
    figure.draw_without_rendering()
    page = figure.bbox
    # the layout has settled: PNG and PDF, drawn one after the other, agree
    before = [axes.get_position().bounds for axes in figure.axes]
    figure.draw_without_rendering()
    assert_allclose([axes.get_position().bounds for axes in figure.axes], before, atol=1e-9)
    texts = [*figure.texts, *(axes.title for axes in figure.axes), *(axes.yaxis.label for axes in figure.axes)]
    for text in [*texts, *(text for legend in figure.legends for text in legend.get_texts())]:
        box = text.get_window_extent()
        if text.get_text():
            assert box.x0 >= page.x0, text
            assert box.y0 >= page.y0, text
            assert box.x1 <= page.x1, text
            assert box.y1 <= page.y1, text
