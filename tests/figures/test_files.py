"""What lies beside every figure: the numbers it shows and its caption; and what each style makes of it."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.figures._caption import caption
from kamim_analysis.figures._draw import draw_all
from kamim_analysis.figures._figure import PACKAGE, figure_modules, numbers_of
from kamim_analysis.figures._sizes import STYLES
from kamim_analysis.figures._style import drawn_for, style
from kamim_analysis.results import Results

NAMES = plugins.names(PACKAGE)
LABEL_COLUMNS = ["model", "other_model", "model_a", "model_b"]
#: numeric columns that say where a number belongs
PLACES = "layer other_layer head picture images patch_row patch_column query_row query_column".split()


def read(results: Results, name: str) -> pd.DataFrame:
    return pd.read_csv(results.directory / "figures" / f"{name}.csv", keep_default_na=False, na_values=[""])


def drawn_labels(results: Results, name: str) -> list[str]:
    """Labels of the models that have at least one analysis that a figure needs."""
    needs = set(figure_modules()[name].NEEDS)
    return [label for label in results.models if not needs or needs - set(results.model(label)["skipped"])]


@pytest.mark.parametrize("name", NAMES)
def test_csv_holds_finite_numbers_of_every_model_drawn(name: str, drawn: Results) -> None:
    table = read(drawn, name)
    assert not table.empty
    columns = [column for column in table if column in LABEL_COLUMNS]
    assert columns, "a column of models"
    assert {label for column in columns for label in table[column]} == set(drawn_labels(drawn, name))
    numeric = table.select_dtypes("number")
    assert not np.isinf(numeric).any(axis=None)
    measured = numeric.drop(columns=[column for column in PLACES if column in numeric])
    assert measured.notna().any(axis=1).all(), "a number in every row"
    assert (drawn.directory / "figures" / f"{name}.csv").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_caption_tells_models_data_and_intervals(name: str, drawn: Results) -> None:
    module, text = figure_modules()[name], (drawn.directory / "figures" / f"{name}.txt").read_text(encoding="utf-8")
    assert text.startswith(f"{module.TITLE}. ")
    assert text.endswith(f" Source: {module.SOURCE}.\n")
    assert text.count("\n") == 1
    assert module.HOW_TO_READ in text
    for label in drawn.models:
        assert (label in text) == (label in drawn_labels(drawn, name))
    assert ("random weights, a control" in text) == ("untrained (random)" in drawn_labels(drawn, name))
    among = r"a few of " if module.EXAMPLES else r"(\d+ of )?"
    assert re.search(rf"Data: <birds>, {among}64 images, 32 px in 4×4 patches", text)  # noqa: RUF001
    assert "/data" not in text, "where the data lie is nothing for a paper"
    table = read(drawn, name)
    has_intervals = "ci_low" in table and bool(table.ci_low.notna().any())
    told = "95% percentile bootstrap over images"
    if name in ("aggregation", "few_shot"):
        told = "95% percentile bootstrap over images and seeds"
    elif name in ("fast_probe", "frequency_bias", "knn", "knn_layers"):
        told = "95% score intervals (Wilson) over images"
    assert (f" Intervals: {told}. " in text) == (has_intervals and not module.EXAMPLES)


def test_intervals_of_accuracies_among_other_numbers_are_told(drawable: Results) -> None:
    both = drawable.metrics[drawable.metrics.analysis.isin(["knn", "fourier"])]
    assert "over images, of accuracies score intervals (Wilson)." in caption(
        drawable, figure_modules()["fourier"], both
    )


def test_caption_of_one_model_names_its_architecture(control_only: Results) -> None:
    draw_all(control_only.directory, ["fourier"])
    text = (control_only.directory / "figures" / "fourier.txt").read_text(encoding="utf-8")
    assert "Model: untrained (random) (vit_tiny, random weights, a control). Data: <birds>, 64 images, 32 px in" in text


def test_caption_tells_of_how_many_images_where_not_of_all(drawable: Results) -> None:
    module = figure_modules()["fourier"]
    table = numbers_of(drawable, module)
    for images, told in (
        (64, "<birds>, 64 images"),
        (63, "63 of 64 images"),
        ([12] + [32] * (len(table) - 1), "12 to 32 of 64 images"),
    ):
        assert f"{told}, 32 px" in caption(drawable, module, table.assign(images=images))


def test_without_numbers_of_its_own_a_figure_leaves_the_rows_of_its_analyses(drawable: Results) -> None:
    module = figure_modules()["reconstructions"]
    assert not hasattr(module, "numbers")
    table = numbers_of(drawable, module)
    assert set(table.statistic) >= {"masked_l1", "mean_colour_l1"}
    assert list(table.columns) == list(drawable.metrics.columns)


def test_numbers_have_six_digits(drawn: Results) -> None:
    lines = (drawn.directory / "figures" / "fourier.csv").read_text().splitlines()
    value = drawn.select("fourier", "delta_log_amplitude").sort_index().iloc[0].value
    assert lines[1].split(",")[5] == f"{value:.6g}"


def texts_of(figure: Figure) -> list[Text]:
    """Everything set in type but numbers at ticks."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        titles = [axes.title, axes._left_title, axes._right_title]  # type: ignore[attr-defined]
        found += [*titles, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    return [text for text in dict.fromkeys(found) if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("chosen", STYLES)
@pytest.mark.parametrize("name", NAMES)
def test_every_style_keeps_width_and_type_and_no_text_meets_another(name: str, chosen: str, drawable: Results) -> None:
    with drawn_for(chosen):
        figure = figure_modules()[name].draw(drawable)
        assert figure is not None
        figure.draw_without_rendering()
        width = figure.get_figwidth()
        widths = (style().column_inches, style().width_inches)
    assert min(abs(width - one) for one in widths) < 1e-6 or (width < widths[1] and figure_modules()[name].EXAMPLES)
    texts = texts_of(figure)
    assert {text.get_fontsize() for text in texts} <= {STYLES[chosen].points, STYLES[chosen].small_points}
    boxes = [(text, text.get_window_extent()) for text in texts]
    for text, box in boxes:
        assert figure.bbox.x0 - 1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1, text
        assert figure.bbox.y0 - 1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1, text
    for (one, a), (other, b) in combinations(boxes, 2):
        across, along = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, along) < 2, (one, other)


def test_files_are_of_the_style_asked_for_and_the_report_shows_one_size_of_type(drawable: Results) -> None:
    pages = {}
    for chosen, one in STYLES.items():
        draw_all(drawable.directory, ["knn"], style=chosen)
        with Image.open(drawable.directory / "figures" / "knn.png") as picture:
            assert picture.width == pytest.approx(one.column_inches * one.dpi, abs=1)
            assert picture.info["Style"] == chosen
        pages[chosen] = (drawable.directory / "report.html").read_text(encoding="utf-8")
    # points of type, in CSS pixels, are the same on each page
    for chosen, one in STYLES.items():
        shown = one.column_inches * 72 / one.points * 13.3
        assert f'<img width="{round(shown)}"' in pages[chosen]
    assert style() == STYLES["paper"]


def test_unknown_style_is_an_error_and_writes_nothing(drawable: Results) -> None:
    with pytest.raises(UserError, match=r"unknown style 'poster'; there are: paper, talk, notebook"):
        draw_all(drawable.directory, style="poster")
    assert not (drawable.directory / "figures").exists()


def test_the_commands_take_a_style(drawable: Results, capsys: pytest.CaptureFixture[str]) -> None:
    commands = {
        name: plugins.load("kamim_analysis.commands", name, "command") for name in ("figures", "analyze", "compare")
    }
    commands["figures"].run([str(drawable.directory), "--figures", "fourier", "--style", "talk"])
    with Image.open(drawable.directory / "figures" / "fourier.png") as picture:
        assert picture.info["Style"] == "talk"
    for command in commands.values():
        with pytest.raises(SystemExit):
            command.run(["--help"])
        assert "--style {paper,talk,notebook}" in capsys.readouterr().out
    with pytest.raises(UserError, match="invalid choice: 'poster'"):
        commands["figures"].run([str(drawable.directory), "--style", "poster"])
