"""Results, feature stores and labels of hostile origin: refused in one line, or shown as they are."""

import io
import json
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import kamim_analysis as ka
from kamim_analysis import results
from kamim_analysis.cli import main
from kamim_analysis.errors import UserError
from kamim_analysis.feature_store import open_store
from kamim_analysis.plain_data import json_of

Refused = Callable[..., str]
NESTED = "[" * 100_000
STEPS = "../../escaped"


@pytest.fixture(scope="module")
def honest(tiny_run: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with arrays, without check sums: whoever writes hostile ones writes the sums too. To be read only."""
    out = tmp_path_factory.mktemp("results") / "results"
    given = ["--data", str(class_folders), "--images", "8", "--workers", "0"]
    main(["analyze", f"KAMIM={tiny_run}", *given, "--analyses=attention_distance,explorer,knn", "--out", str(out)])
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["sha256"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    """A copy to be made hostile."""
    return Path(shutil.copytree(honest, tmp_path / "a" / "b" / "results"))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused_by_all(folder: Path, refused: Refused, names: str = "attention_distance") -> list[str]:
    """What `kamim figures`, `kamim table` and `ka.show` say."""
    said = [refused("figures", folder, "--figures", names), refused("table", folder)]
    with pytest.raises(UserError) as raised:
        ka.show(folder, names)
    return [*said, str(raised.value)]


MODELS: dict[str, Any] = {
    "no list": 5, "texts": ["KAMIM"], "no label": [{}], "a number for a label": [{"label": 5}],
    "two of a name": [{"label": "KAMIM"}] * 2, "a long label": [{"label": "x" * 10**6}],
    "a hidden label": [{"label": "a\u202eb\n"}], "half a sign": [{"label": "\ud800"}],
    "layers": [{"label": "KAMIM", "layers": 10**9}], "negative layers": [{"label": "KAMIM", "layers": -1}],
    "pixels": [{"label": "KAMIM", "image_size": [10**9, 10**9]}], "grid": [{"label": "KAMIM", "grid": "x"}],
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_manifests_of_impossible_models_are_refused(folder, refused: Refused, name):
    change_manifest(folder, lambda manifest: manifest.update(models=MODELS[name]))
    assert all("is damaged" in said for said in refused_by_all(folder, refused))


MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no data": lambda manifest: manifest.pop("data"),
    "data in a text": lambda manifest: manifest.update(data="x"),
    "models without anything": lambda manifest: manifest.update(models=[{"label": "KAMIM"}]),
    "spec of a number": lambda manifest: manifest["models"][0].update(spec=5),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_lack_or_mistype_are_one_line(folder, refused: Refused, name):
    change_manifest(folder, MANIFESTS[name])
    said = refused("figures", folder)
    assert "cannot be drawn of" in said or "no report can be made of" in said
    assert "not what this version of kamim analyze writes" in said


@pytest.mark.parametrize("text", [NESTED, "[" * 500 + "]" * 500, "5", '{"models": [], "sha256": 5}', "\ud800"])
def test_manifests_that_are_none_are_refused(folder, refused: Refused, text):
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    assert all("is damaged" in said for said in refused_by_all(folder, refused))


def changed(name: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.astype({name: object}).assign(**{name: [value, *table[name][1:]]})


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    **{f"without {name}": lambda table, name=name: table.drop(columns=name) for name in results.COLUMNS[:-1]},
    "a value of letters": changed("value", "x"), "a long value": changed("value", "1" * 10**6 + "x"),
    "half a layer": changed("layer", 0.5), "a negative layer": changed("layer", -1),
    "a layer of many": changed("layer", 10**9), "a negative head": changed("head", -5),
    "a head beyond any": changed("head", 10**30), "images of letters": changed("images", "x"),
    "no images": changed("images", ""), "less than no images": changed("images", -1),
    "a model of nobody": changed("model", "nobody"), "a long statistic": changed("statistic", "x" * 10**6),
    "a hidden analysis": changed("analysis", "a\u202eb"), "lines in a protocol": changed("protocol", "a\nb"),
    "a nameless column": lambda table: table.reset_index().rename(columns={"index": ""}).set_index("model"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_numbers_that_no_analysis_writes_are_refused(folder, refused: Refused, name):
    table = pd.read_csv(folder / "metrics.csv", keep_default_na=False)
    TABLES[name](table).to_csv(folder / "metrics.csv", index="nameless" in name)
    if "nameless" in name:
        (folder / "metrics.csv").write_text((folder / "metrics.csv").read_text().replace("model,", "", 1))
    assert all("metrics.csv' is damaged" in said for said in refused_by_all(folder, refused))


def test_names_of_statistics_become_no_file_s(folder, tmp_path, capsys):
    """And values without end or number are drawn, or told of in one line."""
    table = pd.read_csv(folder / "metrics.csv", keep_default_na=False)
    extra = table.iloc[:3].assign(statistic=[STEPS, "<b>", "$x"], analysis=["knn", STEPS, "attention_distance"])
    pd.concat([table, extra.assign(layer="", value=["inf", "", "-inf"])]).to_csv(folder / "metrics.csv", index=False)
    before = {path for path in tmp_path.rglob("*") if folder not in path.parents}
    main(["figures", str(folder), "--figures", "attention_distance,knn"])
    assert STEPS in (folder / "report.html").read_text()
    assert {path for path in tmp_path.rglob("*") if folder not in path.parents} - before <= {folder.parent / "x"}
    assert capsys.readouterr().out.startswith("2 figures")


def npz(path: Path, name: str, content: bytes, *, size: int | None = None, method: int = 0) -> None:
    """An archive of one member; `size`: what its entry tells of its bytes, stored as they are but told as deflated."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.npy", content)
        if size is not None:
            archive.filelist[0].file_size, archive.filelist[0].compress_type = size, method


def npy(shape: object, dtype: str = "<f4", data: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})  # type: ignore[arg-type]
    return file.getvalue() + data


def deflated_zeros(gigabytes: int) -> bytes:
    """A header and then 2^30 zeros so many times."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = squeeze.compress(npy((gigabytes * 2**28,))) + squeeze.flush(zlib.Z_FULL_FLUSH)
    zeros = squeeze.compress(bytes(2**24)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return head + zeros * (64 * gigabytes) + squeeze.flush()


ARRAYS: dict[str, Callable[[Path], object]] = {
    "shape": lambda path: npz(path, "0.attention", npy((10**6, 10**6, 10**6))),
    "no shape": lambda path: npz(path, "0.attention", npy((-1, -4), data=bytes(16))),
    "sides of nothing": lambda path: npz(path, "0.attention", npy((0, 10**30))),
    "long elements": lambda path: npz(path, "0.attention", npy((1,), "|V2147483647")),
    "objects": lambda path: npz(path, "0.attention", npy((1,), "|O", pickle.dumps([1]))),
    "nested header": lambda path: npz(path, "0.attention", b"\x93NUMPY\x01\x00\xf0\x00" + b"(" * 240),
    "later bytes": lambda path: npz(path, "0.attention", npy((1,), data=bytes(10**6))),
    "bomb": lambda path: npz(path, "0.attention", deflated_zeros(5), size=5 * 2**30 + 128, method=8),
    "no archive": lambda path: path.write_bytes(NESTED.encode()),
    "encrypted": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_would_fill_memory_are_refused(folder, name):
    ARRAYS[name](folder / "explorer.npz")
    assert (folder / "explorer.npz").stat().st_size < 10**7
    with pytest.raises(UserError, match=r"explorer\.npz' is damaged"):
        ka.Results.open(folder).arrays("explorer", "KAMIM")


def test_arrays_of_other_shapes_are_one_line(folder, refused: Refused):
    """They can be read, and no report can be made of them."""
    found = {f"0.{key}": values for key, values in ka.Results.open(folder).arrays("explorer", "KAMIM").items()}
    np.savez(folder / "explorer.npz", **{key: values.ravel()[:7] for key, values in found.items()})
    assert "no report can be made" in refused("figures", folder, "--figures", "knn")


def test_arrays_with_code_beside_results_are_never_unpickled(tmp_path, target, payload):
    """In results without check sums, as they were before; a payload's author would have made them anyway."""
    row = results.Row("attention_nmi", 1, None, "nmi", 0.5, 0.4, 0.6, 4)
    results.write(tmp_path, {"models": [{"label": "a"}]}, {"a": [row]}, {})
    (tmp_path / results.MANIFEST).write_text(json.dumps({"models": [{"label": "a"}]}))
    np.savez(tmp_path / "tokens.npz", **{"0.x": np.array([payload], object)})
    with pytest.raises((UserError, ValueError), match=r"tokens|allow_pickle"):
        results.Results.open(tmp_path).arrays("tokens", "a")
    assert not target.exists()


@pytest.fixture(scope="module")
def stored(tiny_run: Path, class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature store, to be read only."""
    out = tmp_path_factory.mktemp("store") / "store"
    main(["features", str(tiny_run), "--data", str(class_folders), "--workers", "0", "--out", str(out)])
    return out


INDEXES: dict[str, Callable[[dict[str, Any]], object]] = {
    "counts beyond any": lambda index: index["splits"]["val"].update(chosen=10**18, pictures=10**18),
    "more than there are": lambda index: index["splits"]["val"].update(chosen=10**6),
    "no pictures a shard": lambda index: index.update(shard_pictures=0),
    "a part of a picture": lambda index: index.update(shard_pictures=1e-9),
    "shapes": lambda index: index.update(features={"2.mean": [10**12]}),
    "names": lambda index: index.update(features={STEPS: [16]}),
    "layers": lambda index: index.update(features={"9" * 5000 + ".mean": [16]}),
    "no splits": lambda index: index.update(splits=[]),
    "no model": lambda index: index.update(model="x"),
}


@pytest.fixture
def knn(tiny_run: Path, class_folders: Path, tmp_path: Path, refused: Refused) -> Callable[[Path], str]:
    """What k-NN on a store says that it must not take."""
    rest = ["--data", class_folders, "--workers", "0", "--out", tmp_path / "out"]
    return lambda store: refused("knn", tiny_run, *rest, "--features", store)


def test_indexes_of_features_tell_what_can_be(stored, tmp_path, knn):
    store = Path(shutil.copytree(stored, tmp_path / "store"))
    honest = json.loads((store / "features.json").read_text())
    honest.pop("sha256", None)
    for change in INDEXES.values():
        index = json.loads(json.dumps(honest))
        change(index)
        (store / "features.json").write_text(json.dumps(index))
        assert "features.json' is damaged" in knn(store)
    (store / "features.json").write_text(NESTED)
    assert "holds no features" in knn(store)
    index = honest | {"splits": {STEPS: honest["splits"]["val"]}}
    (store / "features.json").write_text(json.dumps(index))
    assert "without the val split" in knn(store)


def of_features(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state.update({key: change(value) for key, value in state.items() if "." in key})


TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "too few rows": of_features(lambda values: values[:3].clone()),
    "other shapes": of_features(lambda values: values[:, :1].clone()),
    "whole numbers": of_features(torch.Tensor.long),
    "too few labels": lambda state: state.update(labels=state["labels"][:3].clone()),
    "labels with parts": lambda state: state.update(labels=state["labels"].double()),
    "a table of indices": lambda state: state.update(indices=state["indices"][:, None].clone()),
}  # fmt: skip


def test_features_are_as_their_index_tells(stored, tmp_path, knn):
    store = Path(shutil.copytree(stored, tmp_path / "store"))
    index = json.loads((store / "features.json").read_text())
    (store / "features.json").write_text(json.dumps({k: v for k, v in index.items() if k not in ("sha256", "crc32")}))
    (shard,) = store.glob("val/*")
    honest = {key: value.clone() for key, value in load_file(shard).items()}  # the file is written over below
    for name, change in TENSORS.items():
        state = dict(honest)
        change(state)
        save_file(state, shard)  # without check sums, as stores of before
        if "indices" in name or "labels" in name:
            assert "is damaged or missing" in knn(store)
        else:  # these are read lazily, as the type checker of the tests reads them too
            split, (key, shape) = open_store(store).split("val"), next(iter(index["features"].items()))
            with pytest.raises(UserError, match="is damaged or missing"):
                split.features(0, key, tuple(shape))
    shard.write_bytes(pickle.dumps(honest))
    assert "is damaged or missing" in knn(store)


def test_json_nested_deep_is_refused_wherever_it_is_written_again():
    for text in (NESTED, "[" * 101 + "]" * 101, '{"a":' * 200 + "1" + "}" * 200):
        with pytest.raises(ValueError, match="nested too deep"):
            json_of(text)
    assert json_of("[" * 100 + "]" * 100)


@pytest.mark.parametrize("file", ["checkpoint.json", "metrics.jsonl"])
def test_nested_files_of_a_run_are_one_line_or_left_out(tiny_run, tmp_path, refused: Refused, file):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for path in run.rglob(file):
        path.write_text(NESTED + "\n" + path.read_text())
    if file == "checkpoint.json":
        assert "no checkpoint" in refused("train", "--config", run / "config.yaml", "--out", run)
    else:
        main(["train", "--config", str(run / "config.yaml"), "--out", str(run)])


def test_nested_files_beside_commands_are_one_line(tmp_path, refused: Refused, class_folders):
    (tmp_path / "manifest.json").write_text(NESTED)
    assert "is no readable JSON" in refused("rerun", tmp_path / "manifest.json", "--out", tmp_path / "out")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "packing.json").write_text(NESTED)
    assert "is damaged" in refused("pack", class_folders, "--out", tmp_path / "shards", "--workers", "0")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text(NESTED)
    given = ["--format", "timm", "--out", tmp_path / "export", "--overwrite"]
    assert "holds other files" in refused("export", "random:vit_tiny", *given)


LABEL = "| _a_ & 50% $x$ # {b} \\ `c` ~ ^ <i> [d](e) * --- !"


def test_labels_stay_text_in_tables(folder, capsys):
    """No sign of a label is left that Markdown or LaTeX takes for its own, and each row stays on its line."""
    change_manifest(folder, lambda manifest: manifest["models"][0].update(label=f"KAMIM {LABEL}"))
    table = pd.read_csv(folder / "metrics.csv", keep_default_na=False).assign(model=f"KAMIM {LABEL}")
    table.to_csv(folder / "metrics.csv", index=False)
    change_manifest(folder, lambda manifest: manifest["data"].update(source="a\n\n# b | $c$"))
    main(["table", str(folder), "--style", "markdown"])
    markdown = capsys.readouterr().out
    assert "KAMIM" in markdown
    assert not [line for line in markdown.splitlines() if line.startswith(("# ", "b |"))]
    main(["table", str(folder), "--style", "latex"])
    assert r"\textbar{}" in capsys.readouterr().out


def test_labels_stay_text_in_model_cards(tiny_run, tmp_path):
    from markdown_it import MarkdownIt

    main(["export", f"{LABEL}={tiny_run}", "--format", "timm", "--out", str(tmp_path / "out")])
    front, text = (tmp_path / "out" / "README.md").read_text().split("\n---\n", 1)
    assert yaml.safe_load(front.removeprefix("---\n"))["model_name"] == LABEL
    heading = MarkdownIt().parse(text)[1]
    assert [token.type for token in heading.children or ()].count("text") == len(heading.children or ())
    assert "".join(token.content for token in heading.children or ()) == LABEL
