"""`kamim export` on the command line: what it refuses, what it replaces, and that nothing is left half-written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kamim_analysis.cli import main
from kamim_analysis.opening import load_encoder

Refused = Callable[..., str]
TINY = ["random:vit_tiny", "--image_size", "32"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: MODEL, --format, --out"),
        (["random:vit_tiny", "--out", "{out}"], "required: --format"),
        (["random:vit_tiny", "--format", "timm"], "required: --out"),
        (
            ["random:vit_tiny", "--format", "tim", "--out", "{out}"],
            "unknown form 'tim' (did you mean 'timm'?); there are: huggingface, timm",
        ),
        (["random:vit_tiny", "--format", "timm", "--out", "{full}"], "holds other files"),
        (["random:vit_tiny", "--format", "timm", "--out", "{full}", "--overwrite"], "holds other files"),
        (["random:vit_tiny", "--format", "timm", "--out", "{full}/mine.txt"], "is a file"),
        (["random:vit_tiny", "--format", "timm", "--out", "."], "give the directory by its name"),
        (["random:vit_tinny", "--format", "timm", "--out", "{out}"], "did you mean 'vit_tiny'?"),
        (["{empty}", "--format", "timm", "--out", "{out}"], "is no training run"),
        (["nothing.pth", "--format", "timm", "--out", "{out}"], "unknown model 'nothing.pth'"),
        (["random:vit_tiny", "--format", "timm", "--out", "{out}", "--image_size", "0"], "from 1 up"),
        (["random:vit_tiny", "--format", "timm", "--out", "{out}/deep", "--image_size", "33"], "33"),
        (
            ["random:vit_relpos_small_patch16_224", "--format", "huggingface", "--out", "{out}/deep"],
            "VisionTransformerRelPos (vit_relpos_small_patch16_224), neither the plain VisionTransformer nor",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    places = {name: tmp_path / name for name in ("empty", "full", "out")}
    assert message in refused("export", *[argument.format(**places) for argument in arguments])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
    assert contents(tmp_path / "full") == {"mine.txt": b"keep"}


def test_an_earlier_export_is_replaced_when_asked(
    refused: Refused, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["export", *TINY, "--format", "huggingface", "--out", str(out)])
    before = contents(out)
    assert before.keys() == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert "already holds another run; give a new one, or add --overwrite" in refused(
        "export", *TINY, "--format", "timm", "--out", out
    )
    assert contents(out) == before
    capsys.readouterr()
    main(["export", *TINY, "--format", "timm", "--out", str(out), "--overwrite"])
    assert f'timm.create_model("local-dir:{out}", pretrained=True)' in capsys.readouterr().out
    assert contents(out).keys() == {"README.md", "config.json", "model.safetensors"}
    # the model that is replaced may be the very one that is exported
    state = load_encoder(str(out)).state_dict()
    main(["export", str(out), "--format", "huggingface", "--out", str(out), "--overwrite"])
    assert all((state[key] == value).all() for key, value in load_encoder(str(out)).state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("change", ["a clone", "another's model", "an odd config", "a broken config"])
def test_what_is_not_merely_an_export_is_never_replaced(change: str, refused: Refused, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["export", *TINY, "--format", "timm", "--out", str(out)])
    config = out / "config.json"
    if change == "a clone":
        (out / ".git").mkdir()
    elif change == "another's model":
        config.write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    else:
        config.write_text("[1]" if change == "an odd config" else "{")
    before = contents(out)
    assert "holds other files" in refused("export", *TINY, "--format", "timm", "--out", out, "--overwrite")
    assert contents(out) == before


@pytest.mark.parametrize("there_before", [False, True])
def test_an_error_while_writing_leaves_what_was_there(
    there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    out = tmp_path / "out"
    command = ["export", *TINY, "--format", "timm", "--out", str(out)]
    if there_before:
        main(command)
    before = contents(tmp_path)

    def full_disk(*_arguments: object, **_options: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        main([*command, "--overwrite"])
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if there_before else [])


def test_equal_models_are_exported_as_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        main(["export", *TINY, "--format", "huggingface", "--out", str(tmp_path / name / "out")])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_others_may_read_what_is_exported(tmp_path: Path) -> None:
    main(["export", *TINY, "--format", "timm", "--out", str(tmp_path / "out")])
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["random:vit_nope", "--format", "timm", "--out", "x"],
        ["random:vit_tiny", "--format", "y", "--out", "x"],
    ],
)
def test_help_and_refusals_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from kamim_analysis.cli import main\n"
        "try: main(['export', *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'timm', 'safetensors', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_transformers_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it fails
    main(["export", *TINY, "--format", "huggingface", "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "model.safetensors").is_file()
