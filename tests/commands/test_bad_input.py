"""What a user gets wrong: one line, exit code 2, nothing written."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyse"], "unknown command 'analyse' (did you mean 'analyze'?); there are: aggregate, analyses, analyze"),
        (["train", "--recipe", "kamim"], "unknown recipe 'kamim'"),
        (["train"], "give one of --recipe NAME"),
        (["train", "--recipe", "kamim_photographs"], "give --out RUN"),
        (["train", "--config", "none.yaml", "--out", "{out}"], "no recipe file at 'none.yaml'"),
        (
            ["train", "--recipe", "kamim_photographs", "--out", "{out}", "--objective.detector", "BRISQUE"],
            "unknown detector 'BRISQUE'; there are: AGAST, AKAZE, BRISK, Edges, Entropy, FAST",
        ),
        (
            ["train", "--recipe", "kamim_photographs", "--out", "{out}", "--data.source", "nowhere"],
            "no data at 'nowhere'",
        ),
        (
            ["train", "--recipe", "kamim_photographs", "--out", "{out}", "--objective.mask_unit", "24"],
            "objective.mask_unit 24 does not divide encoder.image_size 64",
        ),
        (["analyze", "random:vit_small", "--data", "photographs"], "required: --out"),
        (["analyze", "random:vit_smal", "--data", "photographs", "--out", "{out}"], "did you mean 'vit_small'?"),
        (["analyze", "nothing.pth", "--data", "photographs", "--out", "{out}"], "unknown model 'nothing.pth'"),
        (["analyze", "a=random:vit_tiny", "a=random:vit_tiny", "--data", "photographs", "--out", "{out}"], "called 'a"),
        (["analyze", "random:vit_tiny", "--data", "{empty}", "--out", "{out}"], "holds no images"),
        (["analyze", "random:vit_tiny", "--data", "missing", "--out", "{out}"], "no data at 'missing'"),
        (
            ["analyze", "random:vit_tiny", "--data", "photographs", "--out", "{out}", "--analyses", "fourrier"],
            "unknown analysis 'fourrier' (did you mean 'fourier'?)",
        ),
        (["analyze", "random:vit_tiny", "--data", "photographs", "--out", "{out}", "--images", "one"], "--images"),
        (["analyze", "random:vit_tiny", "--data", "photographs", "--out", "{full}"], "holds other files"),
        (
            ["knn", "random:vit_tiny", "--data", "photographs", "--out", "{out}", "--k", "7000"],
            "k = 7000 exceeds the 6144",
        ),
        (["figures", "{empty}"], "holds no analysis"),
        (["models", "{empty}"], "is no training run"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    places = {name: tmp_path / name for name in ("empty", "full", "out")}
    assert message in refused(*[argument.format(**places) for argument in arguments])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"


def _analyze(model: Path, out: Path) -> list[object]:
    return ["analyze", model, "--data", "photographs", "--out", out, "--images", "4"]


def test_a_weights_file_without_weights_is_refused(refused: Refused, tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "log.pth")
    assert "holds no tensors by name" in refused(*_analyze(tmp_path / "log.pth", tmp_path / "out"))
    (tmp_path / "text.pth").write_text("hello")
    assert "no torch checkpoint" in refused(*_analyze(tmp_path / "text.pth", tmp_path / "out"))
    (tmp_path / "empty.safetensors").write_bytes(b"")
    assert "is empty" in refused(*_analyze(tmp_path / "empty.safetensors", tmp_path / "out"))


def test_truncated_weights_are_refused(refused: Refused, run: Path, tmp_path: Path) -> None:
    whole = (run / "encoder.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    assert "it is truncated" in refused(*_analyze(tmp_path / "cut.safetensors", tmp_path / "out"))
    (tmp_path / "absurd.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    assert "header is longer than the file" in refused(*_analyze(tmp_path / "absurd.safetensors", tmp_path / "out"))
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-200])
    assert "truncated torch checkpoint" in refused(*_analyze(tmp_path / "cut.pth", tmp_path / "out"))


def test_pickled_code_is_refused_and_never_runs(refused: Refused, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    assert "holds pickled code" in refused(*_analyze(tmp_path / "evil.pth", tmp_path / "out"))
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "out").exists()


def test_timm_weights_out_of_reach_are_one_line(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    line = refused("analyze", "timm:vit_tiny_patch16_224", "--data", "photographs", "--out", tmp_path / "out")
    assert "neither cached nor reachable" in line
    assert "random:vit_tiny_patch16_224" in line
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten_unasked(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    line = refused("analyze", "random:vit_tiny", "--data", "photographs", "--out", tmp_path / "out")
    assert "already holds another run" in line
    assert (tmp_path / "out" / "manifest.json").read_text() == "{}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recipes"],
        ["train", "--help"],
        ["analyze", "--help"],
        ["train", "--recipe", "kamim_photographs", "--print_config"],
        ["train", "--recipe", "kamim_photographs", "--out", "x", "--objective.temperature", "0"],
        ["analyze", "random:vit_nope", "--data", "photographs", "--out", "x"],
        ["knn", "random:vit_tiny", "--data", "photographs", "--out", "x", "--k", "99999"],
        ["figures", "nowhere"],
    ],
)
def test_help_and_refusals_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from kamim_analysis.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'timm', 'sklearn', 'cv2', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    command = [sys.executable, "-m", "kamim_analysis", "recipes"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
