"""AttMask: its losses against slow loops, its teacher, centres and schedules, and runs of it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kamim_analysis import plugins
from kamim_analysis.data import open_pictures
from kamim_analysis.train.distillation import Distillation
from kamim_analysis.train.ibot_loss import cls_loss, patch_loss, teacher_distribution, teacher_temperature
from kamim_analysis.train.masks import hidden_places, masks_of
from kamim_analysis.train.objectives.attmask import AttMask
from kamim_analysis.train.progress import Progress
from kamim_analysis.train.samples import Order, TrainingSamples, load_samples
from kamim_analysis.train.start import Start
from kamim_analysis.train.views import Augmentation

SMALL: dict[str, Any] = {
    "local_crops": 3,
    "local_size": 16,
    "head_width": 24,
    "head_bottleneck": 8,
    "head_outputs": 20,
    "mask_probability": 0.7,
}


@pytest.fixture
def distillation(tiny_vit: Callable[..., Any]) -> Callable[..., Distillation]:
    """AttMask around a tiny ViT, the same weights each time, teacher and student unlike."""

    def make(**settings: Any) -> Distillation:
        torch.manual_seed(0)
        encoder = tiny_vit(dynamic_img_size=True)
        objective = AttMask(**(SMALL | settings)).build(Start(open_pictures("photographs", "train"), encoder))
        with torch.no_grad():
            for part in (objective.model.encoder, objective.model.teacher_head):
                for weight in part.parameters():
                    weight += 0.1 * torch.randn_like(weight)
            for name in ("cls_centre", "patch_centre", "mask_token"):
                getattr(objective.model, name).normal_(std=0.1)
        return objective.train()

    return make


@pytest.fixture
def batch_of(tiny_vit: Callable[..., Any]) -> Callable[..., dict[str, Tensor]]:
    """Samples of the photographs."""

    def make(objective: Distillation, pictures: int = 4) -> dict[str, Tensor]:
        crop = Augmentation((0.25, 1.0), (3 / 4, 4 / 3), 0.5, 0.0, "bicubic", True)
        view = objective.settings.view(crop, objective.encoder)
        data = TrainingSamples(open_pictures("photographs", "train"), view, seed=0)
        order = Order(length=24, batch_size=pictures, seed=0)
        return dict(next(load_samples(data, order, workers=0, pin=False))[0])

    return make


def cross_entropy(target: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Of one distribution and one row of scores, term by term."""
    warm = scores / temperature
    partition = (warm - warm.max()).exp().sum().log() + warm.max()
    return -sum((p * (s - partition) for p, s in zip(target, warm, strict=True)), torch.zeros(()))


def test_the_cls_loss_is_the_mean_over_pairs_of_unlike_crops() -> None:
    student, teacher = torch.randn(3, 5, 7).double(), torch.randn(3, 2, 7).double().softmax(-1)
    pairs = [(q, v) for q in range(2) for v in range(5) if v != q]
    assert len(pairs) == 2 * (3 + 1)
    terms = [cross_entropy(teacher[b, q], student[b, v], 0.1) for b in range(3) for q, v in pairs]
    found = cls_loss(student.float(), teacher.float(), 0.1)
    torch.testing.assert_close(found.double(), torch.stack(terms).mean(), rtol=1e-5, atol=0)


def test_a_student_that_knows_nothing_has_a_cls_loss_of_log_k() -> None:
    teacher = torch.eye(7)[None, :2]
    assert float(cls_loss(torch.ones(1, 2, 7), teacher, 0.1)) == pytest.approx(math.log(7))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_patch_loss_is_the_mean_over_hidden_patches_then_over_images(weighted: bool) -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, :5] = mask[1, 2] = mask[3, [0, 5]] = True  # and none in the third
    student, teacher = torch.randn(4, 6, 7).double(), torch.randn(4, 6, 7).double().softmax(-1)
    weight = torch.rand(4, 6).double() + 1 if weighted else torch.ones(4, 6).double()
    images = []
    for b in range(4):
        hidden = [n for n in range(6) if mask[b, n]]
        terms = [weight[b, n] * cross_entropy(teacher[b, n], student[b, n], 0.1) for n in hidden]
        images.append(sum(terms, torch.zeros(())) / max(len(hidden), 1))
    places = mask.flatten().nonzero()[:, 0]
    weights = weight.float() if weighted else None
    found = patch_loss(student[mask].float(), teacher[mask].float(), mask, places, 0.1, weights)
    torch.testing.assert_close(found.double(), torch.stack(images).mean(), rtol=1e-5, atol=0)


def test_the_teachers_distribution_is_centred_and_sharpened() -> None:
    scores, centre = torch.randn(5).double(), torch.randn(5).double()
    exponentials = [math.exp((float(s) - float(c)) / 0.04) for s, c in zip(scores, centre, strict=True)]
    expected = torch.tensor([value / sum(exponentials) for value in exponentials])
    torch.testing.assert_close(teacher_distribution(scores.float(), centre.float(), 0.04), expected)


def test_the_teachers_temperature_rises_as_numpys_linspace() -> None:
    schedule = np.concatenate([np.linspace(0.04, 0.07, 30), np.full(70, 0.07)])
    assert [teacher_temperature((0.04, 0.07), 30, epoch) for epoch in range(100)] == pytest.approx(schedule.tolist())
    assert [teacher_temperature((0.04, 0.07), 0, epoch) for epoch in range(2)] == [0.07, 0.07]
    assert [teacher_temperature((0.04, 0.07), 1, epoch) for epoch in range(2)] == [0.04, 0.07]


def test_temperatures_of_cls_and_patches_go_their_own_ways(distillation: Callable[..., Distillation]) -> None:
    objective = distillation(cls_temperature=(0.04, 0.07), patch_temperature=(0.02, 0.08), temperature_epochs=4)
    objective.begin_step(Progress(step=11, steps_per_epoch=5, epochs=10))
    assert (objective.cls_temperature, objective.patch_temperature) == pytest.approx((0.06, 0.06))
    objective.begin_step(Progress(step=20, steps_per_epoch=5, epochs=10))
    assert (objective.cls_temperature, objective.patch_temperature) == pytest.approx((0.07, 0.08))


def scores_of(head: Any, tokens: Tensor) -> Tensor:
    """The head by its definition: unit vectors times rows of a magnitude and a direction."""
    hidden = head.mlp(tokens)
    magnitude, direction = head.last_layer.parametrizations.weight.parameters()
    rows = magnitude * direction / direction.norm(dim=1, keepdim=True)
    return hidden / hidden.norm(dim=-1, keepdim=True) @ rows.T


def cls_attention(encoder: Any, images: Tensor) -> Tensor:
    """Attention of cls to patches in the last block, mean over heads, from its weights."""
    tokens = encoder.blocks[:-1](encoder.norm_pre(encoder._pos_embed(encoder.patch_embed(images))))
    last = encoder.blocks[-1]
    query, key, _value = last.attn.qkv(last.norm1(tokens)).unflatten(-1, (3, last.attn.num_heads, -1)).unbind(2)
    scores = torch.einsum("bhd,bnhd->bhn", query[:, 0], key) / math.sqrt(query.shape[-1])
    return scores.softmax(-1)[:, :, 1:].mean(1)


def slowly(objective: Distillation, batch: dict[str, Tensor], weighted: bool) -> Tensor:
    """The loss with attmask_high, crop by crop and patch by patch; every patch goes through every layer."""
    model, settings = objective.model, objective.settings
    cls_terms, patch_terms = [], []
    for b in range(len(batch["image"])):
        images = objective.normalised(batch["image"][b])
        with torch.no_grad():
            seen = scores_of(model.teacher_head, model.encoder.forward_features(images))
        teacher_cls = ((seen[:, 0] - model.cls_centre) / objective.cls_temperature).softmax(-1)
        teacher_patches = ((seen[:, 1:] - model.patch_centre) / objective.patch_temperature).softmax(-1)
        views = []
        for v in range(2):
            count = int(batch["mask_ranks"][b, v].sum())
            hidden = cls_attention(model.encoder, images[v : v + 1])[0].argsort(descending=True)[:count].tolist()
            patches = model.student.patch_embed(images[v : v + 1]).clone()
            for n in hidden:
                patches[0, n // 4, n % 4] = model.mask_token[0]
            tokens = model.student.norm(model.student.blocks(model.student._pos_embed(patches)))
            scores = scores_of(model.head, tokens)[0]
            views.append(scores[0])
            weight = torch.ones(16)
            if weighted:
                density = batch["density"][b, v].flatten()
                weight = ((density - density.min()) / settings.weight_temperature).exp()
            terms = [weight[n] * cross_entropy(teacher_patches[v, n], scores[1 + n], 0.1) for n in hidden]
            patch_terms.append(sum(terms, torch.zeros(())) / max(count, 1))
        local = [model.student.forward_features(objective.normalised(crop[None])) for crop in batch["local"][b]]
        views += [scores_of(model.head, tokens)[0, 0] for tokens in local]
        cls_terms += [cross_entropy(teacher_cls[q], views[v], 0.1) for q in range(2) for v in range(5) if v != q]
    return 0.7 * torch.stack(cls_terms).mean() + 0.4 * torch.stack(patch_terms).mean()


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_those_of_the_slow_way(
    distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]], weighted: bool
) -> None:
    lambdas = {"cls_loss_weight": 0.7, "patch_loss_weight": 0.4}
    objective = distillation(masking="attmask_high", keypoint_weights=weighted, **lambdas)
    batch = batch_of(objective)
    assert 0 < batch["mask_ranks"].sum(-1).count_nonzero() < 8  # some crops are masked and some are not
    trained = [weight for weight in objective.parameters() if weight.requires_grad]
    loss = objective(batch).total
    found = torch.autograd.grad(loss, trained)
    expected = slowly(objective, batch, weighted)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    for gradient, slow in zip(found, torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(gradient, slow, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("masking", plugins.names("kamim_analysis.masking"))
def test_hidden_patches_are_found_in_the_masks_order(
    distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]], masking: str
) -> None:
    # units of one patch, of which 0.3 is the ratio; random_blocks has neither chance nor variation
    of_blocks = {"mask_unit": 8, "mask_probability": 1.0, "mask_ratio_variation": 0.0}
    objective = distillation(masking=masking, **(of_blocks if masking == "random_blocks" else {}))
    batch = batch_of(objective)
    crops = {name: values.flatten(0, 1) for name, values in batch.items() if values.ndim > 1}
    hidden = masks_of(objective.strategy, crops, torch.rand(8, 16)).flatten(1)
    assert torch.equal(hidden_places(hidden, batch["hidden_slots"]), hidden.flatten().nonzero()[:, 0])
    assert hidden.any()


def test_keypoint_weights_of_one_leave_the_loss_as_it_is_bit_for_bit(
    distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    plain, weighted = distillation(), distillation(keypoint_weights=True)
    batch = batch_of(weighted)
    even = batch | {"density": torch.full_like(batch["density"], 0.3)}
    assert torch.equal(plain(batch).total, weighted(even).total)
    assert weighted(batch).total > plain(batch).total


UNIFORM_MASKS = {"mask_ratio": 0.5, "mask_ratio_variation": 0.0, "mask_probability": 1.0, "mask_unit": 8}
# of 16 patches; the hint reveals floor(0.5 x 0.25 x 16) of them
HIDDEN = {"attmask_hint": 6, "keypoint_hint": 6}


@pytest.mark.parametrize("name", plugins.names("kamim_analysis.masking"))
def test_every_masking_strategy_hides_its_share(
    name: str, distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    objective = distillation(masking=name, show_max=0.25, **UNIFORM_MASKS)
    loss = objective(batch_of(objective))
    loss.total.backward()
    assert objective.model.mask_token.grad is not None
    assert objective.model.mask_token.grad.abs().sum() > 0
    share = float(loss.parts["masked_share"])
    assert 0 < share <= 0.5 if name == "block" else share == HIDDEN.get(name, 8) / 16


@pytest.mark.parametrize("masking", ["random", "attmask_high"])
def test_the_teacher_looks_once_and_is_left_as_it_was(
    masking: str, distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    objective = distillation(masking=masking)
    seen: list[int] = []
    handle = objective.encoder.blocks[-1].register_forward_hook(lambda *_: seen.append(1))
    before = {name: weight.clone() for name, weight in objective.encoder.state_dict().items()}
    objective(batch_of(objective)).total.backward()
    handle.remove()
    assert seen == [1]
    assert all(weight.grad is None for weight in objective.encoder.parameters())
    assert all(weight.grad is None for weight in objective.model.teacher_head.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in objective.encoder.state_dict().items())
    assert objective.encoder.blocks[-1].attn.fused_attn == objective.model.student.blocks[-1].attn.fused_attn


def test_the_teacher_drops_nothing_while_the_student_does(tiny_vit: Callable[..., Any]) -> None:
    encoder = tiny_vit(dynamic_img_size=True, drop_path_rate=0.9)
    objective = AttMask(**SMALL).build(Start(open_pictures("photographs", "train"), encoder)).train()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(objective.encoder.forward_features(images), objective.encoder.forward_features(images))
    student = objective.model.student
    assert not torch.equal(student.forward_features(images), student.forward_features(images))


def test_the_teacher_is_the_moving_average_of_the_student(
    distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    objective = distillation(momentum=0.9)
    batch = batch_of(objective)
    pairs = [(objective.model.encoder, objective.model.student), (objective.model.teacher_head, objective.model.head)]
    expected = [[weight.double() for weight in teacher.parameters()] for teacher, _ in pairs]
    for step in range(4):
        progress = Progress(step=step, steps_per_epoch=3, epochs=2)
        objective.begin_step(progress)
        objective(batch)
        with torch.no_grad():
            for _, student in pairs:
                for weight in student.parameters():
                    weight += 0.1 * torch.randn_like(weight)
        objective.end_step(progress)
        momentum = 1 - (1 - 0.9) * (math.cos(math.pi * step / 6) + 1) / 2  # iBOT's cosine over all six steps
        for weights, (_, student) in zip(expected, pairs, strict=True):
            for i, weight in enumerate(student.parameters()):
                weights[i] = momentum * weights[i] + (1 - momentum) * weight.detach().double()
    for weights, (teacher, _) in zip(expected, pairs, strict=True):
        for weight, one in zip(teacher.parameters(), weights, strict=True):
            torch.testing.assert_close(weight.double(), one, rtol=1e-4, atol=1e-6)


def test_centres_follow_the_means_over_all_crops_and_all_patches(
    distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    """Two micro-batches of two pictures are one batch of four."""
    objective = distillation(centre_momentum=0.8)
    model, batch = objective.model, batch_of(objective)
    cls, patch = model.cls_centre.clone(), model.patch_centre.clone()
    with torch.no_grad():
        tokens = model.encoder.forward_features(objective.normalised(batch["image"].flatten(0, 1)))
        scores = scores_of(model.teacher_head, tokens)
        expected = ((scores[:, 0] - cls) / objective.cls_temperature).softmax(-1).mean(0)
    for part in (slice(0, 2), slice(2, 4)):
        objective({name: values[part] for name, values in batch.items()})
    objective.end_step(Progress(0, 10, 1))
    torch.testing.assert_close(model.cls_centre, 0.8 * cls + 0.2 * scores[:, 0].mean(0))
    torch.testing.assert_close(model.patch_centre, 0.8 * patch + 0.2 * scores[:, 1:].mean((0, 1)))
    torch.testing.assert_close(model.cls_mean, expected)


def test_a_student_learns_a_teacher_that_stands_still(
    distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    """Only then is the least loss, the teacher's entropy, the same at every step."""
    objective = distillation()
    batch = batch_of(objective)
    optimizer = torch.optim.AdamW([weight for weight in objective.parameters() if weight.requires_grad], lr=0.003)
    losses = []
    for _ in range(40):
        loss = objective(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.parts["cls_loss"]))
    least = float(loss.parts["teacher_entropy"]) * math.log(20)
    assert least < losses[-1] < least + (losses[0] - least) / 2


def test_each_collapse_is_seen_and_named(
    distillation: Callable[..., Distillation], batch_of: Callable[..., dict[str, Tensor]]
) -> None:
    """A teacher that says the same of every picture: sharp without centring, uniform with it."""

    def watch(steps: int, **settings: Any) -> tuple[dict[str, float], str]:
        objective = distillation(momentum=1.0, **settings)
        last = objective.model.teacher_head.mlp[-1]
        torch.nn.init.zeros_(last.weight)
        batch = batch_of(objective, 1)
        for _ in range(steps):
            loss = objective(batch)
            objective.end_step(Progress(0, 10, 1))
        numbers = {name: float(value) for name, value in loss.parts.items()}
        return numbers, objective.diagnosis(numbers)

    sharp, sharps = watch(2, centre_momentum=1.0, cls_temperature=(0.001, 0.001))
    even, evens = watch(30, centre_momentum=0.5)
    assert (sharp["teacher_entropy"], sharp["teacher_diversity"]) == pytest.approx((0, 0), abs=0.02)
    assert (even["teacher_entropy"], even["teacher_diversity"]) == pytest.approx((1, 1), abs=1e-4)
    assert sharps == "collapsed: one prototype for all pictures"
    assert evens == "collapsed: uniform over prototypes"
    objective = distillation(cls_temperature=(0.01, 0.01))
    parts = objective(batch_of(objective)).parts
    assert objective.diagnosis({name: float(value) for name, value in parts.items()}) == ""


def test_the_last_layer_starts_with_unit_rows_and_keeps_them_if_told_to(
    distillation: Callable[..., Distillation],
) -> None:
    for kept in (False, True):
        head = distillation(norm_last_layer=kept).model.head
        torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(20))
        magnitude, direction = head.last_layer.parametrizations.weight.parameters()
        assert (magnitude.requires_grad, direction.requires_grad) == (not kept, True)
        assert float(head.mlp[0].weight.detach().std()) == pytest.approx(0.02, abs=0.002)
        assert not head.mlp[0].bias.any()
