"""Poolings probed side by side: against a loss counted in loops, heads trained alone, and planted problems."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn
from torch.testing import assert_close

from kamim_analysis.analyses.evaluation.aggregation import Part, aggregate, outcome_rows, pooling_names
from kamim_analysis.analyses.evaluation.aggregation_heads import (
    Head,
    Scale,
    batch_logits,
    pooled,
    scale_of,
)
from kamim_analysis.analyses.evaluation.aggregation_training import (
    Judged,
    Outcome,
    Pictures,
    Recipe,
    batches,
    evaluate,
    judged,
    train,
)
from kamim_analysis.errors import UserError
from kamim_analysis.extraction import Features
from kamim_analysis.poolings._pooling import LayerTokens
from kamim_analysis.poolings.abmilp import AbMILP
from kamim_analysis.poolings.attentive import Attentive
from kamim_analysis.shapes import Grid

QUICK = Recipe(epochs=30, learning_rates=(1e-2, 1e-1), batch_size=32)
LAYER, GRID = 3, Grid(4, 4)


def head(pooling=None, width=8, classes=3, spread=0.5):
    made = Head(width, classes, pooling)
    for weights in made.parameters():
        nn.init.normal_(weights, std=spread)
    return made


def layer_of(tokens, grid=GRID):
    return LayerTokens(tokens, grid)


def part(patches, labels, positions=None, grid=GRID, **others):
    by_key = {(LAYER, "patches"): patches} | {(LAYER, name): values for name, values in others.items()}
    positions = torch.arange(len(labels)) if positions is None else positions
    return Part(Features(torch.arange(len(labels)), labels, by_key), positions, LAYER, grid)


@pytest.mark.parametrize("make", [lambda: AbMILP(8), lambda: Attentive(8, 4)])
def test_folded_standardisation_is_the_pooling_of_standardised_tokens(make):
    tokens = (torch.randn(6, 16, 8) + torch.linspace(-5, 5, 8)) * torch.logspace(-3, 3, 8)
    inputs, positions = tokens.__getitem__, torch.arange(6)
    heads = [head(make()) for _ in range(3)]
    scale = scale_of(inputs, positions)
    rows = tokens.flatten(0, 1).double()
    assert_close(scale.mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
    assert_close(scale.deviation.double(), rows.std(0, correction=0), rtol=1e-5, atol=0)
    found, weights = pooled(heads, tokens, scale)
    standardised = layer_of((tokens - scale.mean) / scale.deviation)
    for one, features, of_patches in zip(heads, found, weights.unbind(1), strict=True):
        assert_close(features, one.pooling(standardised), rtol=1e-4, atol=1e-4)
        assert_close(of_patches, one.pooling.weights(standardised), rtol=1e-4, atol=1e-5)


def test_a_constant_channel_counts_for_nothing():
    tokens = torch.randn(5, 16, 8)
    tokens[:, :, 2] = 1e4
    scale = scale_of(tokens.__getitem__, torch.arange(5))
    features, _ = pooled([head(AbMILP(8))], tokens, scale)
    assert features[0, :, 2].abs().max() == 0
    assert features.isfinite().all()


def loss_by_loop(score, weight, bias, tokens, labels):
    """Cross-entropy of AbMILP, batch standardisation and classifier, one number after the other, in float64."""
    features = []
    for picture in tokens:
        scores = [sum(s * t for s, t in zip(score, token, strict=True)) for token in picture]
        shares = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
        features.append(
            [sum(a * token[c] for a, token in zip(shares, picture, strict=True)) for c in range(len(score))]
        )
    count = len(features)
    for c in range(len(score)):
        mean = sum(feature[c] for feature in features) / count
        variance = sum((feature[c] - mean) ** 2 for feature in features) / count
        for feature in features:
            feature[c] = (feature[c] - mean) / math.sqrt(variance + 1e-6)
    total = 0.0
    for feature, label in zip(features, labels, strict=True):
        logits = [
            b + sum(w * f for w, f in zip(row, feature, strict=True)) for row, b in zip(weight, bias, strict=True)
        ]
        total += math.log(sum(map(math.exp, logits))) - logits[label]
    return total / count


def test_joint_gradient_of_abmilp_by_differences_of_a_loop():
    tokens, labels = torch.randn(5, 3, 2).double(), torch.tensor([0, 1, 2, 1, 0])
    one = head(AbMILP(2), width=2).double()
    scale = Scale(torch.zeros(2).double(), torch.ones(2).double())
    logits = batch_logits([one], tokens, scale, torch.ones(1, 5).double())
    loss = nn.functional.cross_entropy(logits[0], labels)
    loss.backward()
    parameters = [one.pooling.score.weight, one.classifier.weight, one.classifier.bias]

    def by_loop():
        score, weight, bias = (values.detach().tolist() for values in parameters)
        return loss_by_loop(score[0], weight, bias, tokens.tolist(), labels.tolist())

    assert_allclose(loss.item(), by_loop(), rtol=1e-12)
    for values in parameters:
        for place in np.ndindex(*values.shape):
            ends = []
            for step in (1e-5, -2e-5):
                values.data[place] += step
                ends.append(by_loop())
            values.data[place] += 1e-5
            assert_allclose(float(values.grad[place]), (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8)
    assert one.pooling.score.weight.grad.abs().max() > 1e-3


def trained_alone(one, rate, tokens, labels, mine, recipe, seed):
    """A head by torch's own modules on standardised tokens, only its own pictures of each batch."""
    flat = tokens.double().flatten(0, 1)
    tokens = (tokens.double() - flat.mean(0)) / flat.std(0, correction=0)
    normalise = nn.BatchNorm1d(tokens.shape[-1], eps=1e-6, affine=False, dtype=torch.float64)
    one = one.double()
    optimizer = torch.optim.AdamW(one.parameters(), lr=rate, weight_decay=recipe.weight_decay)
    order = list(batches(torch.arange(len(tokens)), recipe, seed))
    rising = round(recipe.warmup * len(order))
    for step, some in enumerate(order):
        falling = 0.5 * (1 + math.cos(math.pi * (step - rising) / (len(order) - rising)))
        optimizer.param_groups[0]["lr"] = rate * ((step + 1) / rising if step < rising else falling)
        some = some[mine[some]]
        logits = one.classifier(normalise(one.pooling(layer_of(tokens[some]))))
        loss = nn.functional.cross_entropy(logits, labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features = one.pooling(layer_of(tokens)).detach()
    mean, deviation = features[mine].mean(0), (features[mine].var(0, correction=0) + 1e-6).sqrt()
    return one.classifier((features - mean) / deviation).log_softmax(-1)


@pytest.mark.parametrize("make", [lambda: AbMILP(8), lambda: Attentive(8, 2)])
def test_heads_side_by_side_are_heads_alone(make):
    tokens, labels = 3 * torch.randn(20, 16, 8) + 1, torch.arange(20) % 3
    learned_from = torch.rand(2, 20) < 0.7
    rates, recipe = (1e-2, 3e-2), Recipe(epochs=6, batch_size=8)
    torch.manual_seed(1)
    heads = [head(make(), spread=0.1) for _ in rates]
    copies = [head(make()) for _ in rates]
    for copy, one in zip(copies, heads, strict=True):
        copy.load_state_dict(one.state_dict())
    pictures = Pictures(tokens.__getitem__, labels, torch.arange(20))
    scale = scale_of(pictures.inputs, pictures.positions)
    trained = train(heads, rates, pictures, learned_from, scale, recipe, seed=5)
    known, _ = trained.judge(tokens)
    for copy, rate, mine, found in zip(copies, rates, learned_from, known, strict=True):
        expected = trained_alone(copy, rate, tokens, labels, mine, recipe, 5)
        assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    assert (known[0] - known[1]).abs().max() > 0.1


def planted(seed, pictures=240, everywhere=False):
    """Patches of 16 channels, the class a direction in four of them: in one patch, marked in a fifth, or in all."""
    draw = torch.Generator().manual_seed(seed)
    patches = torch.randn(pictures, 16, 16, generator=draw)
    labels = torch.arange(pictures) % 4
    directions = 4 * torch.eye(4, 16)
    if everywhere:
        return patches + 0.25 * directions[labels][:, None], labels
    at = torch.randint(0, 16, (pictures,), generator=draw)
    places = torch.arange(pictures), at
    # a strong noise of the same channels elsewhere drowns the mean
    patches[:, :, :4] *= 5
    patches[places] = directions[labels] + 0.3 * torch.randn(pictures, 16, generator=draw)
    patches[places[0], places[1], 15] = 12.0
    return patches, labels


def tops(outcomes):
    return {name: float(one.judged.right.float().mean()) for name, one in outcomes.items()}


def test_learned_poolings_find_the_patch_that_tells():
    learn, test = part(*planted(0)), part(*planted(1))
    outcomes = aggregate(learn, test, QUICK, seeds=(0, 1), queries=2)
    top1 = tops(outcomes)
    assert top1["abmilp"] > 0.97
    assert top1["attentive"] > 0.95
    assert top1["mean"] < 0.4
    assert float(outcomes["abmilp"].judged.entropy.mean()) < 0.35
    assert float(outcomes["attentive"].judged.entropy.mean()) < 0.85
    assert float(outcomes["mean"].judged.entropy.mean()) == pytest.approx(1)


def test_nothing_to_gain_where_all_patches_tell_the_same():
    learn, test = part(*planted(2, everywhere=True)), part(*planted(3, everywhere=True))
    outcomes = aggregate(learn, test, QUICK, seeds=(0, 1), queries=2)
    rows, _ = outcome_rows(outcomes, LAYER, dict.fromkeys(protocols_of(outcomes), ""))
    gains = {row.statistic: row for row in rows}
    for name in ("abmilp", "attentive"):
        assert abs(gains[f"gain_over_mean_{name}"].value) < 0.03
    assert tops(outcomes)["mean"] > 0.9
    assert gains["entropy_abmilp"].value > 0.9


def protocols_of(outcomes):
    return [*outcomes, *(f"{name} less {base}" for name in outcomes for base in ("mean", "cls"))]


def test_permuted_patches_change_central_alone():
    (patches, labels), (more, test_labels) = planted(4, 120), planted(5, 120)
    order = torch.randperm(16)
    quick = Recipe(epochs=5, learning_rates=(1e-2,), batch_size=32)
    found = [
        aggregate(part(one, labels), part(other, test_labels), quick, (0,), queries=2)
        for one, other in ((patches, more), (patches[:, order], more[:, order]))
    ]
    for name in ("mean", "abmilp", "attentive"):
        first, second = (outcomes[name].judged for outcomes in found)
        assert_close(first.loss, second.loss, rtol=1e-3, atol=1e-3)
        assert_close(first.entropy, second.entropy, rtol=1e-3, atol=1e-3)
    assert (found[0]["central"].judged.loss - found[1]["central"].judged.loss).abs().max() > 0.1


def test_test_labels_choose_nothing():
    patches, labels = planted(6, 120)
    more, test_labels = planted(7, 120)
    recipe = Recipe(epochs=8, learning_rates=(1e-5, 1e-3, 3e-2), batch_size=32)
    inputs = patches.mean(1), more.mean(1)
    outcomes = []
    for answers in (test_labels, test_labels[torch.randperm(120)]):
        learn, test = (
            Pictures(some.__getitem__, those, torch.arange(120))
            for some, those in zip(inputs, (labels, answers), strict=True)
        )
        outcomes.append(evaluate(lambda: Head(16, 4, None), learn, test, recipe, (0, 1)))
    assert outcomes[0].rate == outcomes[1].rate
    assert outcomes[0].held_out == outcomes[1].held_out
    assert outcomes[0].judged.right.float().mean() != outcomes[1].judged.right.float().mean()


def test_the_rate_is_the_best_one_on_held_out_pictures():
    patches, labels = planted(8, 160, everywhere=True)
    pictures = Pictures(patches.mean(1).__getitem__, labels, torch.arange(160))
    recipe = Recipe(epochs=5, learning_rates=(1e-7, 1e-2), batch_size=32)
    outcome = evaluate(lambda: Head(16, 4, None), pictures, pictures, recipe, (0, 1, 2))
    assert outcome.rate == 1e-2
    assert outcome.held_out[1e-2] > outcome.held_out[1e-7] + 0.2
    assert outcome.learned_from == 128
    assert outcome.judged.right.shape == (3, 160)


def test_held_out_pictures_teach_nothing():
    """With held-out labels exchanged for wrong ones, what is learned stays the same."""
    tokens, labels = torch.randn(20, 16, 8), torch.arange(20) % 3
    learned_from = (torch.arange(20) % 4 > 0)[None]
    wrong = torch.where(learned_from[0], labels, (labels + 1) % 3)
    found = []
    for answers in (labels, wrong):
        torch.manual_seed(2)
        pictures = Pictures(tokens.__getitem__, answers, torch.arange(20))
        scale = scale_of(pictures.inputs, pictures.positions)
        trained = train([head(AbMILP(8))], [1e-2], pictures, learned_from, scale, QUICK, 0)
        found.append(judged(trained, Pictures(tokens.__getitem__, labels, torch.arange(20))))
    assert_close(found[0].loss, found[1].loss, rtol=0, atol=0)


def test_entropy_of_one_patch_and_of_all():
    patches, labels = planted(9, 60)
    weights = torch.full((60, 16), 1 / 16)
    weights[30:] = torch.eye(16)[torch.randint(0, 16, (30,))]
    some = part(patches, labels, cls=patches[:, 0], cls_weights=weights)
    quick = Recipe(epochs=1, learning_rates=(1e-3,), batch_size=32)
    outcomes = aggregate(some, some, quick, (0,), queries=2)
    assert list(outcomes) == ["mean", "cls", "central", "cls_attention", "abmilp", "attentive"] == pooling_names()
    entropy = outcomes["cls_attention"].judged.entropy
    assert_close(entropy, torch.tensor([[1.0] * 30 + [0.0] * 30]), rtol=0, atol=1e-6)
    assert_close(outcomes["central"].judged.entropy, torch.full((1, 60), math.log(4) / math.log(16)))
    assert outcomes["cls"].judged.entropy is None


def test_a_model_without_cls_has_the_other_poolings():
    patches, labels = planted(10, 60)
    quick = Recipe(epochs=1, learning_rates=(1e-3,), batch_size=32)
    outcomes = aggregate(part(patches, labels), part(patches, labels), quick, (0,))
    assert list(outcomes) == ["mean", "central", "abmilp", "attentive"]
    rows, samples = outcome_rows(outcomes, LAYER, dict.fromkeys(protocols_of(outcomes), "p"))
    assert not any("cls" in row.statistic for row in rows)
    assert ("aggregation", "entropy_mean", LAYER) not in samples
    assert ("aggregation", "entropy_abmilp", LAYER) in samples


def test_positions_choose_pictures():
    """Half of one set to learn from, half to judge: the same as two sets."""
    patches, labels = planted(11, 160)
    halves = torch.randperm(160).split(80)
    quick = Recipe(epochs=2, learning_rates=(1e-2,), batch_size=32)
    once = aggregate(*(part(patches, labels, half) for half in halves), quick, (0,), queries=2)
    other = aggregate(*(part(patches[half], labels[half]) for half in halves), quick, (0,), queries=2)
    for name in once:
        assert_close(once[name].judged.loss, other[name].judged.loss, rtol=1e-4, atol=1e-4)


def outcome(right, entropy=None, of_average=None):
    right = torch.tensor(right).bool()
    return Outcome(1e-3, {1e-3: 0.5}, 10, Judged(right, torch.zeros(right.shape), entropy, of_average))


def test_rows_by_hand():
    outcomes = {
        "mean": outcome([[1, 0, 0, 0], [1, 1, 0, 0]]),
        "cls": outcome([[0, 0, 0, 0], [0, 0, 0, 1]]),
        "attentive": outcome([[1, 1, 1, 0], [1, 1, 0, 0]], torch.full((2, 4), 0.25), torch.full((2, 4), 0.75)),
    }
    protocols = {name: name for name in protocols_of(outcomes)}
    rows, samples = outcome_rows(outcomes, 7, protocols)
    values = {row.statistic: row.value for row in rows}
    assert values == pytest.approx(
        {
            "top1_mean": 3 / 8, "top1_cls": 1 / 8, "top1_attentive": 5 / 8, "gain_over_mean_cls": -2 / 8,
            "gain_over_mean_attentive": 2 / 8, "gain_over_cls_mean": 2 / 8, "gain_over_cls_attentive": 4 / 8,
            "entropy_attentive": 0.25, "entropy_of_average_attentive": 0.75,
        }
    )  # fmt: skip
    by_name = {row.statistic: row for row in rows}
    gain = by_name["gain_over_mean_attentive"]
    assert (gain.layer, gain.images, gain.protocol) == (7, 4, "attentive less mean")
    assert gain.ci_low < 0.25 < gain.ci_high
    assert_allclose(samples["aggregation", "gain_over_cls_attentive", 7], [1, 1, 0.5, -0.5])


def test_queries_must_divide_the_channels():
    patches, labels = planted(12, 40)
    with pytest.raises(UserError, match="5 queries do not divide the 16 channels"):
        aggregate(part(patches, labels), part(patches, labels), QUICK, (0,), queries=5)
