"""What the figures of geometry and of spectra draw equals the data."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from kamim_analysis.figures import geometry, spectrum
from kamim_analysis.results import Results

STATISTICS = (
    "token_cosine token_rankme share_within_images image_cosine image_rankme uniformity share_within_classes "
    "share_between_classes class_share_of_images"
).split()


def drawn_by(module: object, results: Results) -> Figure:
    figure = module.draw(results)  # type: ignore[attr-defined]
    assert figure is not None
    return figure


def test_every_panel_draws_its_statistic_of_every_model(drawable: Results) -> None:
    figure = drawn_by(geometry, drawable)
    for axes, statistic in zip(figure.axes, STATISTICS, strict=True):
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        for label, line in zip(drawable.models, lines, strict=True):
            table = drawable.select("geometry", statistic)
            rows = table[table.model == label].sort_values("layer")
            assert_array_equal(line.get_xdata(), rows.layer.to_numpy(float))
            assert_array_equal(line.get_ydata(), rows.value)
    assert [len(axes.collections) for axes in figure.axes] == [3] * 9


def test_features_after_the_final_norm_stand_hollow_beyond_the_last_layer(drawable: Results) -> None:
    figure = drawn_by(geometry, drawable)
    for axes, statistic in zip(figure.axes, STATISTICS, strict=True):
        table = drawable.select("geometry", f"{statistic}_final").set_index("model")
        points = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
        assert_allclose([line.get_ydata()[0] for line in points], table.value)
        for label, line in zip(table.index, points, strict=True):
            last = drawable.model(label)["layers"]
            assert last < line.get_xdata()[0] < last + 0.5
        bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
        for row, bar in zip(table.itertuples(), bars, strict=True):
            assert_allclose(bar.get_ydata(), [row.ci_low, row.ci_high])


def test_layers_alone_have_numbers_on_the_axis(drawable: Results) -> None:
    figure = drawn_by(geometry, drawable)
    assert_array_equal(figure.axes[-1].get_xticks(), range(5))


@pytest.mark.parametrize(("absent", "panels"), [("class", 6), ("image|class|uniformity", 3)])
def test_rows_of_panels_without_numbers_are_left_out(drawable: Results, absent: str, panels: int) -> None:
    results = replace(drawable)
    table = drawable.metrics
    kept = ~table.statistic.str.contains(absent) | (table.statistic == "share_within_images")
    results.__dict__["metrics"] = table[kept]
    figure = drawn_by(geometry, results)
    assert len(figure.axes) == panels
    assert ("hollow" in figure.get_suptitle()) == (panels == 6)
    figure.draw_without_rendering()


def test_spectra_are_the_arrays_less_what_is_zero(drawable: Results) -> None:
    left, right = drawn_by(spectrum, drawable).axes
    for label, line in zip(drawable.models, left.lines, strict=True):
        arrays, last = drawable.arrays("geometry", label), drawable.model(label)["layers"]
        assert_array_equal(line.get_xydata().T, arrays[f"token_spectrum{last}"][:2])
    before, after = right.lines[::2], right.lines[1::2]
    for label, *lines in zip(drawable.models, before, after, strict=True):
        arrays, last = drawable.arrays("geometry", label), drawable.model(label)["layers"]
        for line, key in zip(lines, ("image_spectrum", "image_spectrum_final"), strict=True):
            assert_array_equal(line.get_xydata().T, arrays[f"{key}{last}"][:, :-1], "the last value is zero")
    assert {line.get_marker() for line in after} == {"None"}
    assert (left.get_xscale(), left.get_yscale(), right.get_xscale(), right.get_yscale()) == ("log",) * 4


def test_tokens_alone_have_a_spectrum_too(control_only: Results) -> None:
    arrays = control_only.arrays("geometry", "untrained (random)")
    kept = {f"0.{key}": value for key, value in arrays.items() if key.startswith("token")}
    np.savez_compressed(control_only.directory / "geometry.npz", **kept)
    left, right = drawn_by(spectrum, control_only).axes
    assert (len(left.lines), len(right.lines)) == (1, 0)


@pytest.mark.parametrize("module", [geometry, spectrum])
def test_no_text_is_cut(module: object, drawable: Results) -> None:
    figure = drawn_by(module, drawable)
    figure.draw_without_rendering()
    labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    titles = [title for axes in figure.axes for title in (axes.title, axes._left_title)]  # type: ignore[attr-defined]
    for text in [*figure.texts, *labels, *titles, *figure.legends[0].get_texts()]:
        box = text.get_window_extent()
        if text.get_text():
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
