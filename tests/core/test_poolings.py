"""Poolings against slow loops in double precision, their contract, and central patches by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kamim_analysis import plugins
from kamim_analysis.errors import UserError
from kamim_analysis.extraction import POOLINGS, parameter_free, pooling_class
from kamim_analysis.poolings._pooling import LayerTokens, QueryPooling
from kamim_analysis.poolings.attentive import Attentive
from kamim_analysis.poolings.central import central_patches
from kamim_analysis.shapes import Grid

NAMES = plugins.names(POOLINGS)
IMAGES, WIDTH = 3, 12


@pytest.fixture
def layer() -> Callable[..., LayerTokens]:
    """A factory of tokens on a grid; the patches are a slice, as they are behind the prefix of an encoder."""

    def make(height: int = 3, width: int = 4) -> LayerTokens:
        tokens = torch.randn(IMAGES, 1 + height * width, WIDTH)
        attention = torch.rand(IMAGES, height * width)
        grid = Grid(height, width)
        return LayerTokens(tokens[:, 1:], grid, tokens[:, 0], attention / attention.sum(1, keepdim=True))

    return make


def trained(name: str) -> torch.nn.Module:
    """A pooling with weights that are not those it starts with."""
    pooling = pooling_class(name)(WIDTH)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter)
    return pooling


def softmax(scores: list[float]) -> list[float]:
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def test_the_names_are_those_of_the_papers():
    assert NAMES == ["abmilp", "attentive", "central", "cls", "cls_attention", "mean"]
    assert parameter_free() == ["central", "cls", "cls_attention", "mean"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", [(3, 4), (1, 1), (5, 5), (2, 2)])
def test_one_feature_an_image_and_shares_that_sum_to_one(name, grid, layer):
    tokens, pooling = layer(*grid), trained(name)
    assert pooling(tokens).shape == (IMAGES, WIDTH)
    weights = pooling.weights(tokens)
    if name == "cls":
        assert weights is None
        return
    assert weights.shape == (IMAGES, len(pooling.queries) if name == "attentive" else 1, grid[0] * grid[1])
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_learned_ones_have_parameters(name):
    pooling = pooling_class(name)(WIDTH)
    assert bool(list(pooling.parameters())) == pooling.LEARNED
    assert (name in parameter_free()) is not pooling.LEARNED
    assert isinstance(pooling, QueryPooling) == pooling.LEARNED


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"cls"}))
def test_what_an_image_gives_does_not_depend_on_its_batch(name, layer):
    tokens, pooling = layer(), trained(name)
    alone = LayerTokens(tokens.patches[1:2], tokens.grid, tokens.cls[1:2], tokens.cls_attention[1:2])
    torch.testing.assert_close(pooling(alone)[0], pooling(tokens)[1])


def test_mean_is_the_mean_and_cls_the_token(layer):
    tokens = layer()
    for image in range(IMAGES):
        mean = [sum(patch[d].item() for patch in tokens.patches[image]) / 12 for d in range(WIDTH)]
        torch.testing.assert_close(pooling_class("mean")(WIDTH)(tokens)[image], torch.tensor(mean))
    assert torch.equal(pooling_class("cls")(WIDTH)(tokens), tokens.cls)


def test_central_averages_the_patches_in_the_middle(layer):
    tokens = layer(4, 6)  # the middle half: rows 1 and 2; columns 1 to 4, whose centres lie at 1.5/6 to 4.5/6
    middle = [row * 6 + column for row in (1, 2) for column in (1, 2, 3, 4)]
    expected = torch.stack([sum(patches[i] for i in middle) / 8 for patches in tokens.patches])
    torch.testing.assert_close(pooling_class("central")(WIDTH)(tokens), expected)


@pytest.mark.parametrize(
    ("grid", "rows"),
    [
        ((1, 1), ["1"]),
        ((2, 2), ["11", "11"]),  # both centres lie at a quarter from the edge
        ((3, 3), ["000", "010", "000"]),
        ((5, 5), ["00000", "01110", "01110", "01110", "00000"]),  # 1.5/5 from the edge is within
        ((3, 4), ["0000", "0110", "0000"]),
        ((6, 2), ["00", "11", "11", "11", "11", "00"]),
    ],
)
def test_central_patches_by_hand(grid, rows):
    expected = torch.tensor([[float(digit) for digit in row] for row in rows])
    assert torch.equal(central_patches(Grid(*grid)).view(grid), expected)


@pytest.mark.parametrize("side", range(1, 20))
def test_central_patches_are_symmetric_and_about_a_quarter(side):
    chosen = central_patches(Grid(side, side)).view(side, side)
    assert torch.equal(chosen, chosen.flip(0))
    assert torch.equal(chosen, chosen.T)
    if side % 4 == 0:
        assert chosen.mean() == 0.25
    assert chosen.sum() >= 1


def test_attention_of_cls_weighs_the_patches(layer):
    tokens = layer()
    expected = torch.zeros(IMAGES, WIDTH)
    for image in range(IMAGES):
        for share, patch in zip(tokens.cls_attention[image], tokens.patches[image], strict=True):
            expected[image] += share * patch
    torch.testing.assert_close(pooling_class("cls_attention")(WIDTH)(tokens), expected)


def test_abmilp_starts_as_the_mean(layer):
    tokens = layer()
    torch.testing.assert_close(pooling_class("abmilp")(WIDTH)(tokens), pooling_class("mean")(WIDTH)(tokens))


def test_abmilp_against_a_slow_loop(layer):
    tokens, pooling = layer(), trained("abmilp")
    score = pooling.score.weight[0].tolist()
    for image, patches in enumerate(tokens.patches.tolist()):
        shares = softmax([math.fsum(w * x for w, x in zip(score, patch, strict=True)) for patch in patches])
        expected = [math.fsum(s * patch[d] for s, patch in zip(shares, patches, strict=True)) for d in range(WIDTH)]
        torch.testing.assert_close(pooling(tokens)[image], torch.tensor(expected))


def slow_attentive(pooling: Attentive, patches: list[list[float]]) -> list[float]:
    """Each query's share of its group of channels of the projected tokens."""
    weight, bias = pooling.value.weight.tolist(), pooling.value.bias.tolist()
    projected = [
        [math.fsum(w * x for w, x in zip(row, patch, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        for patch in patches
    ]
    queries, feature = pooling.queries.tolist(), []
    group = WIDTH // len(queries)
    for number, query in enumerate(queries):
        scores = [math.fsum(q * x for q, x in zip(query, patch, strict=True)) / math.sqrt(WIDTH) for patch in patches]
        shares = softmax(scores)
        mine = range(number * group, (number + 1) * group)
        feature += [math.fsum(s * value[d] for s, value in zip(shares, projected, strict=True)) for d in mine]
    return feature


@pytest.mark.parametrize("queries", [1, 2, 6, 12])
def test_attentive_against_a_slow_loop(queries, layer):
    tokens, pooling = layer(), Attentive(WIDTH, queries)
    torch.nn.init.normal_(pooling.queries)
    for image, patches in enumerate(tokens.patches.tolist()):
        torch.testing.assert_close(pooling(tokens)[image], torch.tensor(slow_attentive(pooling, patches)))


@pytest.mark.parametrize(("width", "queries"), [(12, 6), (384, 8), (7, 7), (97, 1)])
def test_attentive_takes_the_most_queries_up_to_eight_that_divide_the_width(width, queries):
    assert len(Attentive(width).queries) == queries


def test_queries_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UserError, match="5 queries do not divide the 12 channels of a token"):
        Attentive(12, 5)


@pytest.mark.parametrize("name", ["abmilp", "attentive"])
def test_every_weight_of_a_learned_pooling_gets_a_gradient(name, layer):
    tokens, pooling = layer(), trained(name)
    out: Tensor = pooling(tokens)
    (out * torch.randn_like(out)).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in pooling.parameters())
