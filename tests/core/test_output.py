"""Output directories that appear whole or not at all."""

from pathlib import Path

import pytest

from kamim_analysis import output
from kamim_analysis.errors import UserError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_appears_at_the_end(tmp_path: Path) -> None:
    with output.written_whole(tmp_path / "deep" / "out") as aside:
        (aside / "numbers.csv").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["numbers.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing_new_and_keeps_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier.txt").write_text("kept")

    def write_half() -> None:
        with output.written_whole(tmp_path / "out") as aside:
            (aside / "half").write_text("1")
            raise error

    with pytest.raises(error):
        write_half()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["earlier.txt"]


def test_new_results_take_the_place_of_old_ones(tmp_path: Path) -> None:
    for number in ("1", "2"):
        with output.written_whole(tmp_path / "out") as aside:
            (aside / f"{number}.txt").write_text(number)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["2.txt"]


def test_only_earlier_results_may_be_replaced(tmp_path: Path) -> None:
    output.check(tmp_path / "absent", overwrite=False)
    output.check(tmp_path, overwrite=False)
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match="holds other files"):
        output.check(tmp_path, overwrite=True)
    (tmp_path / output.MANIFEST).write_text("{}")
    with pytest.raises(UserError, match="already holds another run"):
        output.check(tmp_path, overwrite=False)
    output.check(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        output.check(tmp_path / "thesis.tex", overwrite=True)
