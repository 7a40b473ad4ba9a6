"""`draw_all`: files, repeatability, errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.figures._draw import draw_all
from kamim_analysis.figures._figure import PACKAGE
from kamim_analysis.results import Results


def test_every_figure_is_written_as_png_and_pdf(drawn: Results) -> None:
    for name in plugins.names(PACKAGE):
        png, pdf = ((drawn.directory / "figures" / f"{name}{suffix}").read_bytes() for suffix in (".png", ".pdf"))
        assert png.startswith(b"\x89PNG")
        assert pdf.startswith(b"%PDF")
        assert min(len(png), len(pdf)) > 5000
        assert b"CreationDate" not in pdf


def test_another_process_draws_the_same_bytes_in_the_papers_order_with_neither_torch_nor_pyplot(
    drawn: Results, drawable: Results
) -> None:
    script = (
        "import sys; from pathlib import Path; from kamim_analysis.figures._draw import draw_all; "
        "print(*draw_all(Path(sys.argv[1]))[:3], *{'torch', 'matplotlib.pyplot', 'seaborn'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", script, str(drawable.directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["reconstructions", "token_tsne", "fourier"]
    first, second = (
        {path.name: path.read_bytes() for path in [*(found / "figures").iterdir(), found / "report.html"]}
        for found in (drawn.directory, drawable.directory)
    )
    assert len(first) == 4 * len(plugins.names(PACKAGE)) + 1, "PNG, PDF, CSV and TXT, and the report"
    assert first == second


def test_chosen_figures_only_are_redrawn_and_the_report_keeps_the_others(drawable: Results) -> None:
    assert draw_all(drawable.directory, ["knn"]) == ["knn"]
    assert {path.stem for path in (drawable.directory / "figures").iterdir()} == {"knn"}
    page = (drawable.directory / "report.html").read_text(encoding="utf-8")
    assert "(<code>fourier</code>): not drawn yet" in page
    assert draw_all(drawable.directory, ["fourier"]) == ["fourier"]
    page = (drawable.directory / "report.html").read_text(encoding="utf-8")
    assert page.index('id="fourier"') < page.index('id="knn"')


def test_figure_of_earlier_results_does_not_survive(empty: Results) -> None:
    folder = empty.directory / "figures"
    folder.mkdir()
    for suffix in (".png", ".pdf", ".csv", ".txt"):
        (folder / f"reconstructions{suffix}").write_bytes(b"old")
    assert "reconstructions" not in draw_all(empty.directory)
    assert not list(folder.glob("reconstructions.*"))


def test_unknown_figure_is_an_error_that_names_those_there_are(drawable: Results) -> None:
    with pytest.raises(
        UserError, match=r"unknown figure 'fourrier' \(did you mean 'fourier'\?\); there are: aggregation, alignment, "
    ):
        draw_all(drawable.directory, ["fourrier"])
    assert not (drawable.directory / "report.html").exists()


def test_directory_without_results_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no analysis: metrics\.csv is missing"):
        draw_all(tmp_path)
    assert list(tmp_path.iterdir()) == []
