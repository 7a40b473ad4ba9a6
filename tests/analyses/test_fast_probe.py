"""The fast probe against plain loops, scikit-learn, and what must not change it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from kamim_analysis.analyses.evaluation.fast_probe import Recipe, probes_of, rate_share, train_probes
from kamim_analysis.analyses.evaluation.fast_probe_choice import (
    FastProbeSettings,
    Trial,
    best_of,
    parts_of,
    trials_of,
)
from kamim_analysis.analyses.evaluation.fast_probe_run import warn_of_ends
from kamim_analysis.errors import UserError
from kamim_analysis.extraction import Features
from kamim_analysis.frozen_features import SplitFeatures

SMALL = Recipe(learning_rates=(1e-3, 0.03, 0.3), epochs=4, batch_size=32)


def alone(features, labels, classes, recipe, rate, seed):
    """One probe in float64: torch's layer, loss, gradient and AdamW, on standardised features."""
    known = features.double()
    if recipe.standardise == "channel":
        known = torch.from_numpy(StandardScaler().fit_transform(known.numpy()))
    layer = torch.nn.Linear(known.shape[1], classes).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    adam = torch.optim.AdamW(layer.parameters(), lr=rate, weight_decay=recipe.weight_decay)
    draw, batches = torch.Generator().manual_seed(seed), -(-len(labels) // recipe.batch_size)
    steps = itertools.count()
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(labels), generator=draw).split(recipe.batch_size):
            share = rate_share(next(steps), recipe.epochs * batches, recipe.warmup)
            adam.param_groups[0]["lr"] = rate * share
            adam.zero_grad()
            torch.nn.functional.cross_entropy(layer(known[batch]), labels[batch]).backward()
            adam.step()
    return layer.weight.T.detach(), layer.bias.detach()


def some_features(pictures=100, width=7, classes=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(pictures, width, generator=draw) * torch.logspace(-2, 2, width) + 3
    return features, torch.randint(classes, (pictures,), generator=draw)


@pytest.mark.parametrize("standardise", ["channel", "none"])
def test_each_probe_is_that_of_a_plain_loop(standardise):
    # 100 pictures in batches of 32: the last of an epoch has four
    recipe = Recipe(learning_rates=(1e-3, 0.03, 0.3), epochs=4, batch_size=32, standardise=standardise)
    features, labels = some_features()
    sets = {"wide": features, "narrow": features[:, :4] * 3, "wide again": features.flip(1) - 2}
    for key, probes in probes_of(sets, torch.arange(100), labels, 4, recipe, seed=5):
        for i, rate in enumerate(recipe.learning_rates):
            weight, bias = alone(sets[key], labels, 4, recipe, rate, seed=5)
            torch.testing.assert_close(probes.weight[i].double(), weight, rtol=2e-4, atol=2e-5)
            torch.testing.assert_close(probes.bias[i].double(), bias, rtol=2e-4, atol=2e-5)


def test_sets_in_one_program_are_those_alone():
    # as on CUDA: a batched product over sets
    features, labels = some_features()
    sets = [features, features.flip(1), features**2]
    for together, single in zip(train_probes(sets, labels, 4, SMALL, 1), sets, strict=True):
        (by_itself,) = train_probes([single], labels, 4, SMALL, 1)
        torch.testing.assert_close(together.weight, by_itself.weight)
        torch.testing.assert_close(together.bias, by_itself.bias)


def test_only_the_pictures_named_are_learned_from():
    features, labels = some_features()
    learned = torch.randperm(100, generator=torch.Generator().manual_seed(1))[:60]
    ((_, probes),) = probes_of({0: features}, learned, labels[learned], 4, SMALL, 0)
    (expected,) = train_probes([features[learned]], labels[learned], 4, SMALL, 0)
    torch.testing.assert_close(probes.weight, expected.weight)


def test_the_number_of_threads_is_left_as_it_was():
    features, labels = some_features()
    before = torch.get_num_threads()
    list(probes_of({0: features, 1: features}, torch.arange(100), labels, 4, SMALL, 0))
    assert torch.get_num_threads() == before


def test_classes_may_be_numbered_otherwise():
    features, labels = some_features()
    other = torch.tensor([2, 0, 3, 1])
    (first,), (second,) = (train_probes([features], some, 4, SMALL, 0) for some in (labels, other[labels]))
    torch.testing.assert_close(first.weight, second.weight[..., other])


def test_scale_and_offset_of_channels_are_nothing_to_it():
    features, labels = some_features()
    (first,) = train_probes([features], labels, 4, SMALL, 0)
    (second,) = train_probes([features * 1e4 - 7], labels, 4, SMALL, 0)
    torch.testing.assert_close(first.logits(features), second.logits(features * 1e4 - 7), rtol=1e-3, atol=1e-3)


def test_a_constant_channel_counts_for_nothing():
    features, labels = some_features()
    # a mean over tokens of one value leaves rounding
    constant = torch.full((100, 1), 1234.5) * (1 + 1e-7 * torch.randn(100, 1))
    (with_it,) = train_probes([torch.cat([features, constant], 1)], labels, 4, SMALL, 0)
    (without,) = train_probes([features], labels, 4, SMALL, 0)
    torch.testing.assert_close(with_it.weight[:, :-1], without.weight)
    assert with_it.logits(torch.cat([features, 2 * constant], 1)).isfinite().all()


def test_judged_against_torch():
    features, labels = some_features(2100)
    (probes,) = train_probes([features], labels, 4, SMALL, 0)
    unknown = labels.clone()
    unknown[:5] = -1
    right, loss = probes.judged(features, unknown)
    for i in range(3):
        z = ((features - features.mean(0)) / features.std(0, correction=0)) @ probes.weight[i] + probes.bias[i]
        expected = torch.nn.functional.cross_entropy(z, labels, reduction="none")
        torch.testing.assert_close(loss[i, 5:], expected[5:], rtol=1e-3, atol=1e-4)
        assert (right[i, 5:] == (z.argmax(1) == labels)[5:]).float().mean() > 0.999
    assert not right[:, :5].any()
    assert loss[:, :5].isinf().all()


@given(st.integers(1, 300), st.floats(0, 0.9))
def test_the_schedule_rises_to_one_and_falls(steps, warmup):
    shares = [rate_share(step, steps, warmup) for step in range(steps)]
    top = max(round(warmup * steps) - 1, 0)
    assert shares[top] == max(shares)
    assert shares[top] == pytest.approx(1) or steps == 1
    assert all(0 < share <= 1 for share in shares)
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert np.diff(shares[: top + 1]) == pytest.approx(1 / round(warmup * steps) if top else 0)


@pytest.fixture(scope="module")
def digits():
    """Raw pixels of 1797 digits as features of layer 0, and noise as those of layer 1."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(pixels).float()
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    by_key = {(0, "mean"): pixels, (1, "mean"): noise}
    return Features(torch.arange(len(labels)), torch.from_numpy(labels).long(), by_key)


def test_accuracy_is_that_of_scikit_learns_logistic_regression(digits):
    settings = FastProbeSettings(recipe=Recipe(batch_size=64))
    parts = parts_of(SplitFeatures(digits, None), settings, ())
    trials = trials_of(parts, settings.recipe, 0)
    known = torch.cat(parts.splits[0])
    pixels, labels = digits.by_key[0, "mean"].numpy(), digits.labels.numpy()
    scaler = StandardScaler().fit(pixels[known])
    model = LogisticRegression(C=1, max_iter=2000).fit(scaler.transform(pixels[known]), labels[known])
    expected = model.score(scaler.transform(pixels[parts.test]), labels[parts.test])
    trial = trials[0, "mean"]
    assert expected > 0.94
    assert trial.test_right[0, trial.chosen].float().mean() == pytest.approx(expected, abs=0.015)
    # noise is chance, and not chosen
    noise = trials[1, "mean"]
    assert noise.test_right[0, noise.chosen].float().mean() == pytest.approx(0.1, abs=0.06)
    assert best_of(trials) == (0, "mean")


@pytest.mark.parametrize("two_splits", [False, True])
def test_parts_are_disjoint_and_whole(digits, two_splits):
    settings = FastProbeSettings(seeds=3, test_share=0.25, held_out_share=0.2)
    labels = digits.labels
    features = SplitFeatures(digits, digits if two_splits else None)
    parts = parts_of(features, settings, ())
    assert len(parts.splits) == 3
    for learned, held_out in parts.splits:
        together = [learned, held_out] if two_splits else [learned, held_out, parts.test]
        assert torch.cat(together).sort().values.tolist() == list(range(len(labels)))
        counts = torch.bincount(labels[held_out]) / torch.bincount(labels[torch.cat([learned, held_out])])
        torch.testing.assert_close(counts, torch.full((10,), 0.2), atol=0.005, rtol=0)
    assert len(parts.test) == pytest.approx(len(labels) * (1 if two_splits else 0.25), abs=5)
    assert not torch.equal(parts.splits[0][1], parts.splits[1][1])


def test_test_pictures_have_no_say_in_the_choice(digits):
    def chosen(labels):
        test = Features(digits.indices, labels, digits.by_key)
        parts = parts_of(SplitFeatures(test, digits), FastProbeSettings(), ())
        trials = trials_of(parts, SMALL, 0)
        return trials, {key: (trial.chosen, trial.merit) for key, trial in trials.items()}, best_of(trials)

    first, *choices = chosen(digits.labels)
    permuted, *same = chosen(digits.labels[torch.randperm(len(digits.labels))])
    assert choices == same
    before, after = (some[0, "mean"].test_right.float().mean() for some in (first, permuted))
    assert before > 0.9 > 0.2 > after


def test_a_class_without_training_pictures_is_never_right(digits):
    few = torch.where(digits.labels < 8)[0]
    bank = Features(few, digits.labels[few], {key: values[few] for key, values in digits.by_key.items()})
    parts = parts_of(SplitFeatures(digits, bank), FastProbeSettings(), ())
    right = trials_of(parts, SMALL, 0)[0, "mean"].test_right[0, -1]
    assert not right[digits.labels >= 8].any()
    assert right[digits.labels < 8].float().mean() > 0.9


def test_the_rate_is_that_of_the_best_mean_over_seeds_and_ties_go_by_loss():
    held_out = torch.tensor([[0.5, 0.9, 0.7, 0.7], [0.8, 0.3, 0.7, 0.7]])
    loss = torch.tensor([[1.0, 0.1, 0.5, 0.4], [1.0, 2.0, 0.5, 0.4]])
    trial = Trial(held_out, loss, torch.zeros(2, 4, 1, dtype=torch.bool))
    assert trial.chosen == 3
    assert trial.merit == pytest.approx((0.7, -0.4))
    # without the tie the mean decides, not the best seed
    assert Trial(held_out[:, :3], -loss[:, :3], trial.test_right[:, :3]).chosen == 2


@pytest.mark.parametrize(
    ("accuracies", "warning"),
    [
        ((0.9, 0.5, 0.4), "grid's lowest, 0.1, for layer 0 mean, the one to report among them; try lower ones"),
        ((0.4, 0.5, 0.9), "grid's highest, 0.3, for layer 0 mean, the one to report among them; try higher ones"),
        ((0.4, 0.9, 0.5), ""),
        # chosen for its loss alone: no accuracy is to be won beyond
        ((0.4, 0.9, 0.9), ""),
        ((0.9,), ""),
    ],
)
def test_a_rate_at_the_end_of_the_grid_is_warned_of(accuracies, warning, caplog):
    rates = len(accuracies)
    right = torch.zeros(1, rates, 1, dtype=torch.bool)
    trial = Trial(torch.tensor([accuracies]), torch.arange(rates, 0.0, -1)[None], right)
    warn_of_ends({(0, "mean"): trial}, (0.1, 0.2, 0.3), "model")
    assert (warning in caplog.text) if warning else not caplog.text


@pytest.mark.parametrize(("counts", "message"), [((5, 2), "'owl' has 2 pictures.* 3 parts"), ((5, 0), "single class")])
def test_too_few_of_a_class_is_named(counts, message):
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    features = Features(torch.arange(len(labels)), labels, {(0, "mean"): torch.randn(len(labels), 3)})
    with pytest.raises(UserError, match=message):
        parts_of(SplitFeatures(features, None), FastProbeSettings(), ("cat", "owl"))
