"""The linear probe: against logistic regression, and an encoder that stays what it was."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch.utils.data import default_collate

from kamim_analysis import encoders
from kamim_analysis.data import open_pictures
from kamim_analysis.errors import UserError
from kamim_analysis.opening import load_encoder
from kamim_analysis.protocol import items
from kamim_analysis.recorder import record
from kamim_analysis.results import Results
from kamim_analysis.splits import stratified
from kamim_analysis.train.evaluated import train_and_judge
from kamim_analysis.train.labelled import open_labelled
from kamim_analysis.train.layer_tokens import LayerReader
from kamim_analysis.train.loop import begin, train
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.recipe import Recipe
from kamim_analysis.train.samples import TrainingSamples
from kamim_analysis.train.schedule import Schedule, build_optimizer
from kamim_analysis.train.views import Augmentation
from kamim_analysis.weights_file import write_state

Make = Callable[..., Recipe]
PLAIN = "--objective.augmentation none --objective.mixing none".split()


def held_out(labels: np.ndarray) -> np.ndarray:
    """Which pictures a source with one split tests on, by the recipe's default share and seed."""
    tested = np.zeros(len(labels), bool)
    tested[stratified(torch.from_numpy(labels), (0.8, 0.2), 0)[1].numpy()] = True
    return tested


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / (run / "last").read_text().strip() / "model.safetensors")


def images_of(source: Path, size: int = 32) -> tuple[torch.Tensor, np.ndarray]:
    """All pictures by timm's preprocessing done by hand: bicubic, ImageNet's mean and deviation; and their classes."""
    pictures = open_pictures(str(source), "train")
    read = [pictures.read(i) for i in range(len(pictures))]
    pixels = [np.asarray(Image.fromarray(rgb).resize((size, size), Image.Resampling.BICUBIC)) for rgb, _label in read]
    normalised = (np.stack(pixels) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalised).permute(0, 3, 1, 2).float(), np.array([label for _rgb, label in read])


@pytest.fixture
def tints(tmp_path: Path) -> Path:
    """Ninety pictures of three overlapping colours: no line tells them apart without mistakes."""
    draw = np.random.default_rng(1)
    for label, tint in (("a", (120, 128, 128)), ("b", (128, 140, 120)), ("c", (140, 120, 132))):
        (tmp_path / "tints" / label).mkdir(parents=True)
        for i in range(30):
            colour = draw.normal(tint, 14, 3)
            pixels = draw.normal(colour, 10, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tints" / label / f"{i}.png")
    return tmp_path / "tints"


def test_without_augmentation_it_becomes_logistic_regression(
    classify: Make, tints: Path, tmp_path: Path, tiny_vit: Callable[..., Any]
) -> None:
    """Cross-entropy without penalty has one minimum; scikit-learn finds it another way, from features of its own."""
    encoder = tiny_vit(width=4)
    path = tmp_path / "narrow.safetensors"
    with torch.no_grad():
        encoder.patch_embed.proj.weight.mul_(10)  # so that colours tell features apart
    write_state(path, encoder.state_dict(), {"architecture": encoder.architecture, "model_args": encoder.model_args})
    options = "--optim.epochs 500 --optim.warmup_epochs 5 --optim.learning_rate 0.1 --optim.weight_decay 0".split()
    recipe = classify(
        "--objective.model", str(path), "--data.source", str(tints), "--objective.layer", "2", *PLAIN, *options
    )
    start = begin(recipe)
    objective = recipe.objective.build(start)
    descend(objective, samples_of(recipe, start), recipe)

    images, labels = images_of(tints)
    with torch.no_grad(), record(encoder, attention=(), tokens=[2]) as recording:
        encoder(images)
    features = recording.tokens[2][:, 1:].mean(1).double().numpy()
    tested = held_out(labels)
    fitted = LogisticRegression(C=np.inf, max_iter=10_000, tol=1e-8).fit(features[~tested], labels[~tested])
    assert 0.4 < fitted.score(features[~tested], labels[~tested]) < 0.99
    found = {name: weight.detach() for name, weight in objective.model.named_parameters()}
    logits = features @ found["head.weight"].double().numpy().T + found["head.bias"].double().numpy()
    expected = fitted.decision_function(features)
    difference = (logits - logits.mean(1, keepdims=True)) - (expected - expected.mean(1, keepdims=True))
    assert np.abs(difference[tested]).max() < 0.05 * np.abs(expected).max()
    assert (logits[tested].argmax(1) == expected[tested].argmax(1)).all()


def samples_of(recipe: Recipe, start: Any) -> dict[str, torch.Tensor]:
    """All pictures to learn from, as one batch."""
    view = recipe.objective.view(Augmentation((0.5, 1.0), (1.0, 1.0), 0.0, 0.0), start.encoder)
    samples = TrainingSamples(start.pictures, view, recipe.seed)
    return default_collate([samples[0, i][0] for i in range(len(start.pictures))])


def descend(objective: Any, batch: dict[str, torch.Tensor], recipe: Recipe) -> None:
    """The recipe's optimizer and schedule, an epoch being one step of all pictures."""
    optimizer = build_optimizer(objective, recipe.optim)
    schedule = Schedule(optimizer, recipe.optim, steps_per_epoch=1)
    for step in range(recipe.optim.epochs):
        schedule.set(Progress(step, 1, recipe.optim.epochs))
        optimizer.zero_grad()
        objective.train()(batch).total.backward()
        optimizer.step()


def test_the_encoder_of_a_probe_is_bit_for_bit_the_model(classify: Make, model: Path, tmp_path: Path) -> None:
    train(classify(), tmp_path / "run")
    before, after = load_encoder(str(model)), load_encoder(str(tmp_path / "run"))
    for name, values in before.state_dict().items():
        assert torch.equal(values, after.state_dict()[name]), name
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(before(images), after(images))
    assert torch.equal(before(images), load_encoder(str(tmp_path / "run" / "encoder.safetensors"))(images))


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_the_frozen_encoder_evaluates_while_the_probe_trains(classify: Make, tmp_path: Path, architecture: str) -> None:
    """With stochastic depth and dropout in the encoder, two passes in training mode are the same to the bit."""
    small = {"vit": {"embed_dim": 16, "depth": 2, "num_heads": 2}, "swi": {"embed_dim": 16, "depths": (2, 2)}}
    options: dict[str, Any] = small[architecture[:3]] | {"img_size": 32, "proj_drop_rate": 0.5, "drop_path_rate": 0.5}
    if "swin" in architecture:
        options |= {"num_heads": (2, 4), "window_size": 4}
    encoder = encoders.build(architecture, options)
    objective = probe_of(classify, encoder, tmp_path).train()
    images = torch.randn(8, 3, 32, 32)
    assert objective.model.head.training
    assert torch.equal(objective.model(images), objective.model(images))
    objective.model.train()
    assert torch.equal(objective.model(images), objective.eval().model(images))
    encoder.train()  # the same encoder, trained, does draw
    assert not torch.equal(encoder(images), encoder(images))


def probe_of(classify: Make, encoder: Any, folder: Path, *overrides: str) -> Any:
    """The probe's module around an encoder."""
    path = folder / "other.safetensors"
    write_state(path, encoder.state_dict(), {"architecture": encoder.architecture, "model_args": encoder.model_args})
    recipe = classify("--objective.model", str(path), *overrides)
    start = begin(recipe)
    object.__setattr__(start, "encoder", encoder)
    return recipe.objective.build(start)


@pytest.mark.parametrize("pooling", ["mean", "cls", "central", "cls_attention", "abmilp", "attentive"])
@pytest.mark.parametrize("norm", ["none", "final", "trained"])
def test_gradients_reach_head_pooling_and_norm_alone(classify: Make, pooling: str, norm: str) -> None:
    recipe = classify("--objective.pooling", pooling, "--objective.norm", norm, "--objective.layer", "2")
    objective = recipe.objective.build(begin(recipe)).train()
    batch = {"image": torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), "label": torch.tensor([0, 1, 0, 1])}
    objective(batch).total.backward()
    given = {name for name, weight in objective.named_parameters() if weight.grad is not None}
    expected = {"model.head.weight", "model.head.bias"}
    expected |= {f"model.norm.{part}" for part in ("weight", "bias") if norm == "trained"}
    expected |= {name for name, _ in objective.named_parameters() if name.startswith("model.pooling.")}
    assert given == expected
    assert given == {name for name, weight in objective.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 16, "num_heads": 2}),
        ("vit_relpos_small_patch16_224", {"embed_dim": 16, "num_heads": 2}),
        ("vit_small_patch14_reg4_dinov2", {"embed_dim": 12, "num_heads": 2, "patch_size": 16}),
        ("beit_base_patch16_224", {"embed_dim": 16, "num_heads": 2}),
        ("eva02_tiny_patch14_224", {"embed_dim": 24, "num_heads": 3, "patch_size": 16}),
        ("deit_tiny_distilled_patch16_224", {"embed_dim": 24, "num_heads": 3}),
    ],
)
@pytest.mark.parametrize("final_norm", [False, True])
def test_a_pass_that_stops_early_gives_the_blocks_output(
    architecture: str, options: dict[str, Any], final_norm: bool
) -> None:
    encoder = encoders.build(architecture, options | {"img_size": 64, "depth": 3}).eval()
    if final_norm and isinstance(encoder.norm, torch.nn.Identity):
        with pytest.raises(UserError, match="no final norm"):
            LayerReader(encoder, 2, final_norm=True, attention=False)
        return
    reader = LayerReader(encoder, 2, final_norm=final_norm, attention=False)
    assert reader.stops_early
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), record(encoder, attention=(), tokens=[2]) as recording:
        encoder(images)
        whole = encoder.norm(recording.tokens[2]) if final_norm else recording.tokens[2]
        encoder.blocks[2].forward = None  # never reached
        tokens = reader(encoder, images)
    prefix = encoders.anatomy(encoder).prefix_tokens
    assert torch.equal(tokens.patches, whole[:, prefix:])
    if tokens.cls is not None:
        assert torch.equal(tokens.cls, whole[:, 0])


def test_resuming_gives_the_uninterrupted_probe(classify: Make, tmp_path: Path) -> None:
    """The paper's augmentation and mixing, a learned pooling and norm."""
    options = ["--objective.pooling", "attentive", "--objective.norm", "trained"]
    train(classify(*options, "--efficiency.workers", "2"), tmp_path / "whole")
    train(classify(*options, "--max_steps", "4"), tmp_path / "parts")
    torch.rand(5)
    train(classify(*options), tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(values, parts[name]) for name, values in whole.items())


def test_a_run_whose_model_changed_is_refused(classify: Make, model: Path, tmp_path: Path) -> None:
    train(classify("--max_steps", "2"), tmp_path / "run")
    state = load_file(model)
    encoder = load_encoder(str(model))
    state["norm.bias"][0] += 1
    write_state(model, state, {"architecture": encoder.architecture, "model_args": encoder.model_args})
    with pytest.raises(
        UserError, match=r"weights of model .*model.safetensors' are not those that run .* started from"
    ):
        train(classify(), tmp_path / "run")


def test_what_a_probe_leaves(classify: Make, model: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = classify(*PLAIN, "--objective.norm", "final", "--optim.epochs", "3", "--optim.learning_rate", "0.05")
    line = train_and_judge(recipe, run)
    found = Results.open(run / "results")
    (row,) = found.metrics.itertuples()  # two classes: top-5 would say nothing
    assert (row.analysis, row.layer, row.statistic, row.images) == ("linear_probe", 3, "top1", 6)

    images, labels = images_of(pictures)
    tested = held_out(labels)
    encoder, head = load_encoder(str(model)), weights(run)
    with torch.no_grad():
        features = encoder.forward_features(images)[:, 1:].mean(1)
    right = (features @ head["head.weight"].T + head["head.bias"]).argmax(1).numpy() == labels
    assert row.value == pytest.approx(right[tested].mean())
    np.testing.assert_array_equal(found.samples("model.safetensors")["linear_probe", "top1", 3], right[tested])
    assert f"linear probe of layer 3, top-1 {row.value:.4f}" in line

    told = items(row.protocol)
    assert list(told)[:9] == "evaluation pooling norm resolution crop interpolation train test split".split()
    assert (told["norm"], told["resolution"], told["train"], told["test"]) == ("final", "32", "26", "6")
    assert told["learning_rate"] == "0.05"
    (entry,) = found.manifest["models"]
    assert entry["training"]["objective"]["class_path"] == "KAMIM"
    assert entry["evaluation_recipe"]["objective"]["class_path"] == "LinearProbe"
    before = (run / "results" / "manifest.json").read_bytes()
    assert train_and_judge(recipe, run) == line
    assert (run / "results" / "manifest.json").read_bytes() == before


def test_a_run_cut_short_is_not_judged(classify: Make, tmp_path: Path) -> None:
    line = train_and_judge(classify("--max_steps", "2"), tmp_path / "run")
    assert "stopped before the end of its schedule" in line
    assert not (tmp_path / "run" / "results").exists()


def test_accuracy_is_looked_at_while_it_trains(classify: Make, tmp_path: Path) -> None:
    options = "--monitor.every_epochs 1 --monitor.images 4".split()
    train_and_judge(classify(*options), tmp_path / "watched")
    lines = [json.loads(line) for line in (tmp_path / "watched" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "monitor/top1" in line] == [3, 6]
    train(classify(), tmp_path / "alone")
    for name, values in weights(tmp_path / "watched").items():
        assert torch.equal(values, weights(tmp_path / "alone")[name])


def test_of_one_split_a_share_of_each_class_is_held_out(pictures: Path) -> None:
    shutil.rmtree(pictures / "dark")
    (pictures / "lone").mkdir()
    shutil.copy(pictures / "light" / "0.png", pictures / "lone")
    with pytest.raises(UserError, match="class 'lone' has 1 picture, and a split into 2 parts takes at least 2"):
        open_labelled(str(pictures), None, 0.25, 0)
    shutil.copy(pictures / "light" / "1.png", pictures / "lone")
    data = open_labelled(str(pictures), None, 0.25, 0)
    names = [{split.identity(i) for i in range(len(split))} for split in (data.train, data.test)]
    assert (len(names[0]), len(names[1]), len(names[0] & names[1])) == (13, 5, 0)
    assert sum(name.startswith("lone/") for name in names[1]) == 1
    assert data.train.read(len(data.train) - 1)[1] == data.train.labels[-1] == 1
    assert [data.test.stamp(i).split()[0] for i in range(5)] == [data.test.identity(i) for i in range(5)]
    other = open_labelled(str(pictures), None, 0.25, 1)
    assert {other.test.identity(i) for i in range(5)} != names[1]


def test_two_splits_are_taken_as_they_are(pictures: Path) -> None:
    shutil.copytree(pictures, pictures.parent / "both" / "train")
    shutil.copytree(pictures, pictures.parent / "both" / "val")
    data = open_labelled(str(pictures.parent / "both"), None, 0.25, 0)
    assert (len(data.train), len(data.test), data.classes, data.held_out) == (32, 32, 2, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--objective.model", "nowhere"], "unknown model 'nowhere'"),
        (["--objective.pooling", "max"], "unknown pooling 'max'; there are: abmilp, attentive, central, cls"),
        (["--encoder.name", "vit_tiny"], "encoder.name is that of objective.model; set it to null"),
        (["--encoder.depth", "3"], "encoder.depth is that of objective.model"),
        (["--encoder.drop_path", "0.1"], "no effect on a frozen encoder"),
        (["--objective.label_smoothing", "1.5"], "objective.label_smoothing is 1.5; it must be between 0 and 1"),
        (["--objective.held_out", "1"], "held_out is 1.0; it must lie between 0 and 1"),
        (["--objective.norm", "batch"], '"norm": .* batch'),
        (["--objective.layer", "first"], '"layer": .* first'),
    ],
)
def test_a_mistaken_setting_is_one_line(classify: Make, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        classify(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--objective.layer", "9"], r"layer 9 does not exist: this encoder has layers 0 \(the embedding\) to 3"),
        (["--objective.layer", "auto"], "layer 8 does not exist"),
        (["--objective.layer", "0", "--objective.pooling", "cls_attention"], "layer 0 has no attention"),
        (["--objective.model", ""], "objective.model is missing"),
    ],
)
def test_what_the_encoder_does_not_offer_is_one_line(
    classify: Make, overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(classify(*overrides), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_cls_of_an_encoder_without_one_is_refused(
    classify: Make, tiny_swin: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="layer 4 has no cls token, which 'cls' needs"):
        probe_of(classify, tiny_swin(), tmp_path, "--objective.pooling", "cls")


def test_a_swin_is_probed_at_its_last_layer_and_a_vit_at_the_eighth(
    classify: Make, tiny_swin: Callable[..., Any], tiny_vit: Callable[..., Any], tmp_path: Path
) -> None:
    swin = probe_of(classify, tiny_swin(), tmp_path, "--objective.layer", "auto")
    assert (swin.model.layer, swin.model.head.in_features) == (4, 32)
    early = probe_of(classify, tiny_swin(), tmp_path, "--objective.layer", "2")
    assert early.model.head.in_features == 16
    assert probe_of(classify, tiny_vit(depth=9), tmp_path, "--objective.layer", "auto").model.layer == 8


def test_one_class_and_missing_labels_are_refused(classify: Make, pictures: Path, tmp_path: Path) -> None:
    shutil.rmtree(pictures / "dark")
    with pytest.raises(UserError, match="have a single class"):
        train(classify(), tmp_path / "run")
    for file in (pictures / "light").iterdir():
        file.rename(pictures / file.name)
    with pytest.raises(UserError, match=r"labels missing in .*they lie in no class folders"):
        train(classify(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
