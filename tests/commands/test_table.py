"""`kamim table` on a real run, and what it refuses."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kamim_analysis.cli import main

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory, run: Path, pictures: Path) -> Path:
    """Reconstruction and k-NN of a KAMIM run of six steps."""
    out = tmp_path_factory.mktemp("evaluated") / "results"
    analyses = ["--analyses", "knn,reconstruction", "--workers", "0"]
    main(["analyze", f"KAMIM={run}", "--data", str(pictures), "--out", str(out), *analyses])
    return out


def test_prints_what_a_run_measured_with_its_differences(evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["table", str(evaluated)])
    text = capsys.readouterr().out
    assert "kamim_1: " in text
    assert "latent_mim: " in text
    kamim = text[text.index("kamim_reconstruction") :].split("\n")
    line = next(i for i, row in enumerate(kamim) if row.startswith("KAMIM "))
    assert kamim[line].split()[:3] == ["KAMIM", "paper", "12.063"]
    assert kamim[line + 1].split()[2].startswith("≠(")
    assert "resolution (px) 32 (paper: 192)" in " ".join(text.split())


@pytest.mark.parametrize("style", ["markdown", "latex", "csv"])
def test_writes_a_file_once(evaluated: Path, tmp_path: Path, refused: Refused, style: str) -> None:
    out = tmp_path / "new" / "tables.txt"
    command = ["table", str(evaluated), "--table", "attmask,kamim_reconstruction", "--style", style, "--out", str(out)]
    main(command)
    first = out.read_bytes()
    assert b"12.063" in first
    assert "exists; give a new file, or add --overwrite" in refused(*command)
    main([*command, "--overwrite"])
    assert out.read_bytes() == first
    assert [path.name for path in out.parent.iterdir()] == ["tables.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "holds no analysis: metrics.csv is missing"),
        (
            ["{evaluated}", "--table", "kamim_6"],
            "unknown table 'kamim_6' (did you mean 'kamim_5'?); there are: att",
        ),
        (["{evaluated}", "--style", "html"], "invalid choice: 'html'"),
        (["{evaluated}", "--table", "kamim_1"], "the analyses there are knn, reconstruction; wanted are linear_probe"),
        (["{evaluated}", "--out", "{empty}"], "is a directory; give a file"),
        ([], "required: RESULTS"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, refused: Refused, evaluated: Path, tmp_path: Path
) -> None:
    places = {"empty": tmp_path, "evaluated": evaluated}
    assert message in refused("table", *[argument.format(**places) for argument in arguments])
