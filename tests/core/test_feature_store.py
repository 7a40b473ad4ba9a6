"""What is read from a store is what would be extracted; what a store is not of is noticed and named."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from kamim_analysis import feature_writing
from kamim_analysis.data import Pictures, Unreadable
from kamim_analysis.errors import UserError
from kamim_analysis.extraction import CLS_WEIGHTS, PATCHES, Loading, Rows, Wanted, extract
from kamim_analysis.feature_store import FeatureStore, open_store
from kamim_analysis.feature_writing import Extraction, write_store
from kamim_analysis.fingerprints import pictures_fingerprint, weights_fingerprint
from kamim_analysis.frozen_features import frozen_features
from kamim_analysis.opening import OpenedModel
from kamim_analysis.reconstruction import MaskSettings
from kamim_analysis.sampling import ChosenPictures, open_data

WANTED = Wanted(layers=(0, 2, 3), poolings=("mean", "cls", "central"))
LOADING = Loading(batch_size=2, workers=0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Nine pictures to judge and thirteen to learn from; train/class1/3.png is broken."""
    draw = np.random.default_rng(0)
    for split, count in (("val", 9), ("train", 13)):
        for i in range(count):
            path = tmp_path / "data" / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (40, 36, 3), np.uint8)).save(path)
    (tmp_path / "data" / "train" / "class1" / "3.png").write_bytes(b"broken")
    return tmp_path / "data"


@pytest.fixture
def model(tiny_vit) -> OpenedModel:
    """An encoder as `open_model` gives it."""
    return opened(tiny_vit())


def opened(encoder: Any) -> OpenedModel:
    import timm.data

    config = timm.data.resolve_data_config({"input_size": (3, 32, 32)}, model=encoder)
    transform = timm.data.create_transform(**config, is_training=False)
    named = {name: config[name] for name in ("input_size", "mean", "std", "interpolation", "crop_pct")}
    provenance = {"architecture": encoder.architecture, "model_args": encoder.model_args, "transform": named}
    return OpenedModel("made", "spec", encoder.requires_grad_(False), None, MaskSettings(), transform, provenance)


def chosen(folder: Path, images: int | None = None, seed: int = 0) -> ChosenPictures:
    return open_data(str(folder), None, images, seed, max_unreadable=1.0, bank_all=True)


@pytest.fixture
def write(model, folder, tmp_path) -> Callable[..., FeatureStore]:
    """Write a store of shards of four pictures, unless told otherwise."""

    def written(**changed: Any) -> FeatureStore:
        out = changed.pop("out", tmp_path / "store")
        settings = {"opened": model, "data": chosen(folder), "wanted": WANTED, "loading": LOADING, "shard_pictures": 4}
        return write_store(Extraction(**(settings | changed)), out)

    return written


def contents(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.mark.parametrize("seed", [0, 5])
def test_what_is_read_is_what_would_be_extracted(seed, write, model, folder):
    store = write()
    shards = [f"{split}/0000{i}.safetensors" for split, count in (("train", 4), ("val", 3)) for i in range(count)]
    assert sorted(contents(store.path)) == ["features.json", *shards]
    data, again = chosen(folder, 7, seed), chosen(folder, 7, seed)
    wanted = replace(WANTED, layers=(3, 0), poolings=("cls", "mean"))
    read = frozen_features(model, data, wanted, LOADING, [store.path])
    # one picture a batch: what another batch size changes by rounding is no more than that
    direct = frozen_features(model, again, wanted, Loading(batch_size=1, workers=0))
    for found, expected in ((read.test, direct.test), (read.bank, direct.bank)):
        assert found is not None
        assert expected is not None
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.labels, expected.labels)
        assert list(found.by_key) == list(expected.by_key)
        for key in expected.by_key:
            torch.testing.assert_close(found.by_key[key], expected.by_key[key])
    assert len(read.bank) == 12
    assert data.unreadable.names == again.unreadable.names == {"class1/3.png"}


def test_rows_are_read_in_any_order_across_shards(write, model, folder):
    wanted = Wanted(layers=(3,), poolings=(PATCHES, CLS_WEIGHTS))
    store = write(wanted=wanted)
    data = chosen(folder)
    bank = frozen_features(model, data, wanted, LOADING, [store.path]).bank
    whole = bank.by_key[3, PATCHES]
    rows = bank.rows((3, PATCHES))
    assert isinstance(rows, Rows)
    assert rows.shape == whole.shape == (12, 16, 32)
    for positions in ([11, 0, 0, 5], [3], [], list(range(12))):
        torch.testing.assert_close(rows[torch.tensor(positions, dtype=torch.int64)], whole[positions])
    direct = extract(model, data.bank, data.bank_indices, wanted, Unreadable(13), LOADING)
    torch.testing.assert_close(whole, direct.by_key[3, PATCHES])
    torch.testing.assert_close(bank.by_key[3, CLS_WEIGHTS], direct.by_key[3, CLS_WEIGHTS])


def test_a_shard_holds_pictures_in_order_and_names_what_is_left_out(write, folder):
    store = write()
    found = []
    for number in range(4):
        with safe_open(store.file(f"train/{number:05d}"), "pt") as shard:
            names = set(shard.keys())
            found.append((shard.get_tensor("indices").tolist(), shard.get_tensor("unreadable").tolist()))
    broken = next(i for i in range(13) if chosen(folder).bank.identity(i) == "class1/3.png")
    assert sorted(index for read, lost in found for index in read + lost) == list(range(13))
    assert [lost for _, lost in found if lost] == [[broken]]
    assert all(read == sorted(read) for read, _ in found)
    assert names == {f"{i}.{name}" for i in (0, 2, 3) for name in WANTED.poolings} | {"indices", "labels", "unreadable"}


def test_a_shard_of_broken_pictures_only(write, folder, model):
    for path in sorted((folder / "val").rglob("*.png"))[:4]:
        path.write_bytes(b"broken")
    store = write()
    assert len(store.split("val").labels) == 5
    data = chosen(folder)
    assert len(frozen_features(model, data, WANTED, LOADING, [store.path]).test) == 5
    assert len(data.unreadable.names) == 5  # and one of train


def test_half_precision_comes_back_as_single(write, model, folder):
    whole = write()
    half = write(out=whole.path.with_name("half"), dtype="float16")
    size = [sum(store.file(shard).stat().st_size for shard in store.shards) for store in (whole, half)]
    assert size[1] < 0.75 * size[0]
    read = [frozen_features(model, chosen(folder), WANTED, LOADING, [store.path]).test for store in (whole, half)]
    assert read[1].by_key[3, "mean"].dtype == torch.float32
    for key in read[0].by_key:
        torch.testing.assert_close(read[1].by_key[key], read[0].by_key[key], rtol=2**-10, atol=1e-4)
        assert torch.equal(read[1].by_key[key], read[0].by_key[key].half().float())


def test_values_beyond_half_precision_are_refused(write, model):
    model.encoder.norm.weight.data[0] = 1e6
    with pytest.raises(UserError, match=r"layer 3 \(cls\) has values beyond 65504.*take --dtype float32"):
        write(dtype="float16", wanted=Wanted(layers=(0, 3), poolings=("cls",)))


def test_the_same_again_changes_nothing_and_extracts_nothing(write, model, folder):
    store = write()
    before, times = contents(store.path), {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    model.label, model.spec = "another name", "elsewhere"
    write(data=replace(chosen(folder), source="elsewhere"))
    assert contents(store.path) == before
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == times


@pytest.mark.parametrize("lost", ["val/00000", "train/00001", "train/00003"])
def test_shards_that_are_missing_are_written_again_with_the_same_bytes(lost, write):
    store = write()
    before = contents(store.path)
    store.file(lost).unlink()
    Path(f"{store.file(lost)}.partial").write_bytes(b"half")
    assert store.missing() == [lost]
    assert contents(write().path) == before


def test_a_file_that_is_larger_than_allowed_leaves_nothing_half_written(write, tmp_path, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write '.*features.json': No space left on device; what is written"):
        write()
    assert contents(tmp_path / "store") == {}


def test_too_little_space_is_said_before_anything_is_written(write, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_writing.shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"features need 0.0 MB and .* has 0.0 MB free; take fewer layers"):
        write()
    assert not (tmp_path / "store").exists()


def changed_weights(model: OpenedModel) -> OpenedModel:
    changed = opened(model.encoder)
    with torch.no_grad():
        changed.encoder.blocks[1].mlp.fc1.weight[3, 4] += 1e-6
    return changed


def changed_epsilon(model: OpenedModel) -> OpenedModel:
    changed = opened(model.encoder)
    changed.encoder.norm.eps *= 2
    return changed


def changed_transform(model: OpenedModel) -> OpenedModel:
    transform = model.provenance["transform"] | {"crop_pct": 0.5}
    return replace(model, provenance=model.provenance | {"transform": transform})


MODELS = [
    (changed_weights, "its weights differ"),
    (changed_epsilon, "its weights differ"),
    (changed_transform, "its pictures' crop_pct is 0.9, not 0.5"),
]


@pytest.mark.parametrize(("change", "reason"), MODELS)
def test_features_of_another_model_are_refused(change, reason, write, model, folder):
    store = write()
    other = change(model)
    with pytest.raises(UserError) as refused:
        frozen_features(other, chosen(folder), WANTED, LOADING, [store.path])
    line = (
        f"features in {str(store.path)!r} are of another model than 'made' ({reason}); extract them with kamim features"
    )
    assert str(refused.value) == line
    with pytest.raises(UserError, match=rf"holds other features \(of another model: {reason}\); give a new --out"):
        write(opened=other)


def test_another_image_size_and_architecture_are_named(write, tiny_vit, folder):
    store = write()
    larger = opened(tiny_vit(image_size=48))
    larger.provenance["transform"]["input_size"] = (3, 48, 48)
    for other, reason in (
        (larger, r"its image size is 32 x 32 px, not 48 x 48 px"),
        (opened(tiny_vit(width=16)), r"its architecture has .*'embed_dim': 32.*, not .*'embed_dim': 16"),
    ):
        with pytest.raises(UserError, match=reason):
            frozen_features(other, chosen(folder), WANTED, LOADING, [store.path])


def longer(folder: Path) -> None:
    path = next((folder / "train").rglob("5.png"))
    path.write_bytes(path.read_bytes() + b"\0")


def renamed(folder: Path) -> None:
    path = next((folder / "val").rglob("2.png"))
    path.rename(path.with_name("other.png"))


def moved(folder: Path) -> None:
    path = next((folder / "val").rglob("2.png"))
    path.rename(folder / "val" / "class1" / "2.png")


@pytest.mark.parametrize(("change", "split"), [(longer, "train"), (renamed, "val"), (moved, "val")])
def test_changed_pictures_are_noticed(change, split, write, model, folder):
    store = write()
    change(folder)
    with pytest.raises(UserError, match=rf"are of other pictures \(names, sizes, labels or seed differ .*, {split}\)"):
        frozen_features(model, chosen(folder), WANTED, LOADING, [store.path])
    with pytest.raises(UserError, match=rf"the pictures of {split} are others, or their names"):
        write()


def test_more_pictures_are_noticed(write, model, folder):
    store = write()
    shutil.copy(folder / "val" / "class0" / "0.png", folder / "val" / "class0" / "new.png")
    with pytest.raises(UserError, match=r"are of other pictures \(9 in val, not 10\)"):
        frozen_features(model, chosen(folder), WANTED, LOADING, [store.path])
    with pytest.raises(UserError, match=r"holds other features \(9 pictures of val, not 10\)"):
        write()


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (Wanted(layers=(1,)), "lack mean of layer 1 (they hold mean, cls, central of layers 0, 2, 3)"),
        (Wanted(layers=(3,), poolings=(PATCHES,)), "lack patches of layer 3"),
        (Wanted(layers=(2,), norm="all"), "are of layer 2 before the final norm (--norm last), and those after it"),
        (Wanted(layers=(3,), norm="none"), "are of layer 3 after the final norm (--norm last), and those before it"),
    ],
)
def test_other_layers_poolings_and_norms_are_named(wanted, reason, write, model, folder):
    store = write()
    with pytest.raises(UserError) as refused:
        frozen_features(model, chosen(folder), wanted, LOADING, [store.path])
    assert f"features in {str(store.path)!r} {reason}" in str(refused.value)


def test_a_norm_that_makes_no_difference_to_the_layer_fits(write, model, folder):
    store = write()
    wanted = Wanted(layers=(0, 2), norm="none")
    assert len(frozen_features(model, chosen(folder), wanted, LOADING, [store.path]).test) == 9


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"wanted": replace(WANTED, layers=(3,))},
            "mean,cls,central of layers 0,2,3, not mean,cls,central of layers 3",
        ),
        ({"wanted": replace(WANTED, norm="all")}, "norm is last, not all"),
        ({"dtype": "float16"}, "dtype is float32, not float16"),
        ({"loading": Loading(batch_size=4, workers=0)}, "batch_size is 2, not 4"),
        ({"shard_pictures": 2}, "shard_pictures is 4, not 2"),
    ],
)
def test_a_run_with_other_settings_is_refused(changed, reason, write):
    before = contents(write().path)
    with pytest.raises(UserError) as refused:
        write(**changed)
    assert f"holds other features ({reason}); give a new --out, or the same settings to go on" in str(refused.value)
    assert contents(write().path) == before


def test_fewer_pictures_serve_fewer_only(write, model, folder):
    store = write(data=chosen(folder, 5))
    read = frozen_features(model, chosen(folder, 4), WANTED, LOADING, [store.path])
    assert len(read.test) == 4
    with pytest.raises(UserError, match=r"lack 4 of the 9 pictures of val asked for \(they are of 5\)"):
        frozen_features(model, chosen(folder), WANTED, LOADING, [store.path])
    with pytest.raises(UserError, match=r"holds other features \(5 chosen of val, not 6\)"):
        write(data=chosen(folder, 6))


def test_the_first_store_that_fits_is_taken_and_all_reasons_are_told(write, model, folder):
    store = write()
    other = changed_weights(model)
    second = write(opened=other, out=store.path.with_name("second"))
    assert len(frozen_features(other, chosen(folder), WANTED, LOADING, [store.path, second.path]).test) == 9
    other.encoder.norm.bias.data += 1
    with pytest.raises(UserError) as refused:
        frozen_features(other, chosen(folder), WANTED, LOADING, [store.path, second.path])
    assert str(refused.value).count("its weights differ") == 2


def test_an_unfinished_store_is_refused(write, model, folder):
    store = write()
    store.file("val/00001").unlink()
    with pytest.raises(UserError, match=r"are unfinished \(6 of 7 shards\)"):
        frozen_features(model, chosen(folder), WANTED, LOADING, [store.path])


def test_a_damaged_shard_is_named(write, model, folder):
    store = write()
    path = store.file("val/00001")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"shard '.*val/00001.safetensors' is damaged or missing .*; remove it and run"):
        frozen_features(model, chosen(folder), WANTED, LOADING, [store.path])


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no features"):
        open_store(tmp_path / "nowhere")
    (tmp_path / "features.json").write_text("[1")
    with pytest.raises(UserError, match="holds no features"):
        open_store(tmp_path)
    (tmp_path / "features.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="are of format 99, and 1 is read here"):
        open_store(tmp_path)


def test_fingerprints_are_of_contents(tiny_vit):
    torch.manual_seed(3)
    one = tiny_vit()
    torch.manual_seed(3)
    two = tiny_vit()
    assert weights_fingerprint(one) == weights_fingerprint(two)
    two.load_state_dict({name: value.double().float() for name, value in one.state_dict().items()})
    assert weights_fingerprint(one) == weights_fingerprint(two)
    assert weights_fingerprint(one) != weights_fingerprint(two.double())


def test_labels_known_only_after_reading_are_left_out_of_the_fingerprint():
    def pictures(labels: list[int] | None) -> Pictures:
        known = None if labels is None else np.array(labels)
        return Pictures("made", (), known, 3, lambda _i: None, str, marker=str)

    assert pictures_fingerprint(pictures([0, 1, 1])) != pictures_fingerprint(pictures([0, 1, 0]))
    assert pictures_fingerprint(pictures(None)) == pictures_fingerprint(pictures(None))


@pytest.mark.parametrize(("asked", "taken"), [(5, 4), (1, 2), (100, 100), (None, 2048)])
def test_shards_hold_whole_batches(asked, taken, write):
    # else the batches of a run that goes on with the second shard would not be those of a run in one go
    assert write(shard_pictures=asked).index["shard_pictures"] == taken
