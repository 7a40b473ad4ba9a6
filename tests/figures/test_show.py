"""`ka.show`: what it returns outside of Jupyter, and what it displays within."""

import subprocess
import sys
from collections.abc import Callable
from html import unescape
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.testing import assert_array_equal

import kamim_analysis as ka
from kamim_analysis.errors import UserError
from kamim_analysis.figures._sizes import STYLES
from kamim_analysis.results import Results


def test_a_figure_by_name_in_the_style_asked_for(drawable: Results) -> None:
    for results in (drawable, drawable.directory, str(drawable.directory)):
        figure = ka.show(results, "fourier")
        assert isinstance(figure, Figure)
        assert figure.get_figwidth() == STYLES["notebook"].column_inches
    assert ka.show(drawable, "geometry", style="talk").get_figwidth() == STYLES["talk"].width_inches


def test_the_report_is_a_page_apart(explorable: Results) -> None:
    html = ka.show(explorable)
    start, page, end = html.split('"', 6)[0], html.split('srcdoc="')[1].split('"')[0], html.rsplit(">", 2)[1]
    assert start.startswith("<iframe")
    assert 'sandbox="allow-scripts"' in html
    assert unescape(page) == (explorable.directory / "report.html").read_text(encoding="utf-8")
    assert end == "</iframe"


def test_values_over_a_picture(drawable: Results) -> None:
    values, picture = torch.arange(6.0, requires_grad=True), np.zeros((20, 30, 3), np.uint8)
    left, right = ka.show(values, picture).axes[:2]
    assert_array_equal(right.images[1].get_array(), np.arange(6.0).reshape(2, 3))
    for axes in (left, right):
        assert_array_equal(axes.images[0].get_array(), picture)
        assert axes.images[0].get_extent() == [-0.5, 2.5, 1.5, -0.5], "a patch covers its pixels"
    (alone,) = (axes.images[0] for axes in ka.show(np.eye(4).reshape(-1)).axes[:1])
    assert_array_equal(alone.get_array(), np.eye(4))
    assert_array_equal(ka.show(torch.ones(2, 5, dtype=torch.bfloat16)).axes[0].images[0].get_array(), np.ones((2, 5)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: ka.show(np.ones(197), np.zeros((8, 8, 3))), "197 values fill no grid .* take the cls and register"),
        (lambda d: ka.show(np.ones((2, 3, 4))), r"a map has the shape .*, not \[2, 3, 4\]"),
        (
            lambda d: ka.show(d, "fourrier"),
            r"unknown figure 'fourrier' \(did you mean 'fourier'\?\); there are: aggregation, al",
        ),
        (lambda d: ka.show(d, "comparison"), "nothing to draw of 'comparison' in .*: it needs two models"),
        (lambda d: ka.show(d, "fourier", style="wall"), "unknown style 'wall'; there are: paper, talk, notebook"),
        (lambda d: ka.show(d), "holds no report; draw it with kamim figures"),
        (lambda d: ka.show(d / "nowhere"), "holds no analysis"),
    ],
)
def test_mistakes_are_told(call: Callable[[Any], Any], message: str, control_only: Results) -> None:
    with pytest.raises(UserError, match=message):
        call(control_only.directory)


def test_in_jupyter_it_is_displayed_and_nothing_returned(explorable: Results) -> None:
    script = (
        "import sys; from IPython.testing.globalipapp import start_ipython; shell = start_ipython();"
        "from IPython.utils.capture import capture_output\n"
        "import kamim_analysis as ka\n"
        "assert ka.show([[1, 2]]).axes, 'a terminal'\n"
        "shell.kernel, shell.display_formatter.active_types = 'one', shell.display_formatter.format_types\n"
        "with capture_output() as output:\n"
        "    found = [ka.show(sys.argv[1], 'fourier'), ka.show(sys.argv[1]), ka.show([[1, 2]])]\n"
        "print(found, [sorted(one.data)[0] for one in output.outputs])\n"
        "print(output.outputs[0].data['image/png'][:4] in (b'\\x89PNG', 'iVBO'), output.outputs[0].metadata)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(explorable.directory)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == [
        "[None, None, None] ['image/png', 'text/html', 'image/png']",
        "True {'image/png': {'width': 576}}",
    ], done.stderr
