"""What the maps of layers by layers show equals CKA and shared neighbours of the arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from kamim_analysis.cka import cka_of_grams
from kamim_analysis.figures import mutual_neighbours, similarity
from kamim_analysis.figures._layer_maps import draw_maps, pairs_shown
from kamim_analysis.results import Results
from kamim_analysis.shared_neighbours import shared_neighbours_map

Arrays = dict[str, np.ndarray]


def cka(one: Arrays, other: Arrays) -> np.ndarray:
    return cka_of_grams(one["grams"], other["grams"], int(one["gram_images"]))


def neighbours(one: Arrays, other: Arrays) -> np.ndarray:
    return shared_neighbours_map(one["neighbours"], other["neighbours"])


def drawn_by(module: Any, results: Results) -> Figure:
    figure = module.draw(results)
    assert figure is not None
    return figure


def rewrite(results: Results, change: Callable[[str, np.ndarray], np.ndarray | None]) -> None:
    path = results.directory / "similarity.npz"
    with np.load(path) as archive:
        changed = {key: change(key, archive[key]) for key in archive.files}
    np.savez_compressed(path, **{key: array for key, array in changed.items() if array is not None})
    results.manifest.pop("sha256", None)  # as in results of before there were check sums


@pytest.mark.parametrize(("module", "number"), [(similarity, cka), (mutual_neighbours, neighbours)])
def test_every_pair_of_models_has_its_map_on_one_scale(module: Any, number: Any, drawable: Results) -> None:
    figure = drawn_by(module, drawable)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    pairs = pairs_shown(drawable.models)
    assert len(pairs) == 6
    for (row, column), image in zip(pairs, images, strict=True):
        expected = number(drawable.arrays("similarity", row), drawable.arrays("similarity", column))
        assert expected.shape == tuple(drawable.model(label)["layers"] + 1 for label in (row, column))
        assert_allclose(image.get_array(), expected, atol=1e-6)
        assert image.get_clim() == (0, 1)
        assert image.origin == "lower"


def test_rows_and_columns_are_named_at_the_margins(drawable: Results) -> None:
    maps = [axes for axes in drawn_by(similarity, drawable).axes if axes.images]
    labels = [(axes.get_ylabel().replace("\n", " "), axes.get_xlabel().replace("\n", " ")) for axes in maps]
    assert labels[0] == ("layer of SimMIM", "")
    assert labels[1] == ("layer of untrained (random)", "")
    assert labels[2] == ("", "")
    assert labels[3][1] == "layer of SimMIM"
    assert labels[4] == ("", "layer of untrained (random)")


def test_more_than_four_models_are_shown_each_by_itself(drawable: Results) -> None:
    assert pairs_shown(list("abcde")) == [(label, label) for label in "abcde"]
    drawable.manifest["models"] += [{**drawable.manifest["models"][0], "label": label} for label in ("a", "b")]
    maps = {(label, label): np.eye(3) for label in drawable.models}
    figure = draw_maps(drawable, maps, quantity="number", note="note")
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels][3:] == ["a", "b"]
    assert [axes.get_xlabel() for axes in panels] == ["", "layer", "layer", "layer", "layer"]


def test_the_note_says_how_wide_intervals_are(drawable: Results) -> None:
    note = drawn_by(similarity, drawable).get_suptitle()
    assert note.startswith("unbiased linear CKA of mean-pooled patch tokens of 20 images\n95% confidence")


def test_the_note_says_what_chance_gives(drawable: Results) -> None:
    note = drawn_by(mutual_neighbours, drawable).get_suptitle()
    assert note == "3 nearest of 20 images by cosine of mean-pooled patch tokens\nby chance: 0.16"


def test_models_that_saw_different_images_are_not_compared(drawable: Results) -> None:
    rewrite(drawable, lambda key, array: np.array(19) if key == "1.gram_images" else array)
    rewrite(drawable, lambda key, array: array[:, :19, :19] if key == "1.neighbours" else array)
    rewrite(drawable, lambda key, array: array[..., :19, :19] if key == "1.grams" else array)
    for module in (similarity, mutual_neighbours):
        figure = drawn_by(module, drawable)
        assert sum(bool(axes.images) for axes in figure.axes) == 4
        figure.draw_without_rendering()


def test_one_without_the_other_is_drawn(drawable: Results) -> None:
    rewrite(drawable, lambda key, array: None if "neighbours" in key else array)
    assert mutual_neighbours.draw(drawable) is None
    drawn_by(similarity, drawable)


def test_layers_without_cka_leave_a_gap(control_only: Results) -> None:
    rewrite(control_only, lambda key, array: array * 0 if key.endswith("grams") else array)
    figure = drawn_by(similarity, control_only)
    assert "confidence" not in figure.get_suptitle()
    figure.draw_without_rendering()


@pytest.mark.parametrize("module", [similarity, mutual_neighbours])
@pytest.mark.parametrize("fixture", ["drawable", "control_only"])
def test_no_text_is_cut(module: Any, fixture: str, request: pytest.FixtureRequest) -> None:
    figure = drawn_by(module, request.getfixturevalue(fixture))
    figure.draw_without_rendering()
    labels = [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for text in [*figure.texts, *labels, figure._suptitle]:  # type: ignore[attr-defined]
        box = text.get_window_extent()
        if text.get_text():
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
            assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, text
