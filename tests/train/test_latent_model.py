"""Latent MIM's losses and networks, against loops over patches and channels and the decoder's equations."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from kamim_analysis.masked_autoencoder import mae_sincos_positions, visible_and_hidden
from kamim_analysis.shapes import Grid
from kamim_analysis.train.latent_loss import LatentLoss, direct, latent_errors, patch_discrimination
from kamim_analysis.train.latent_model import LatentDecoder, projector
from kamim_analysis.train.objectives.latent_mim import LatentMIM


def latents(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64) + 0.4


def test_patch_discrimination_is_the_loop_over_patches() -> None:
    predictions, targets = latents(2, 5, 6), latents(2, 5, 6)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for b in range(2):
        columns = []
        for channel in range(6):
            values = predictions[b, :, channel].tolist()
            mean = sum(values) / 5
            deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
            columns.append([(value - mean) / (deviation + 1e-4) for value in values])
        for n in range(5):
            predicted = torch.tensor([column[n] for column in columns], dtype=torch.float64)
            scores = [float(predicted @ t / predicted.norm() / t.norm()) / 0.3 for t in targets[b]]
            total = sum(math.exp(score) for score in scores)
            expected[b, n] = -math.log(math.exp(scores[n]) / total) * 2 * 0.3
    torch.testing.assert_close(patch_discrimination(predictions, targets, 0.3), expected)


def test_patch_discrimination_of_a_blind_prediction_is_that_of_chance() -> None:
    errors = patch_discrimination(torch.ones(3, 7, 4), torch.randn(3, 7, 4), 0.2)
    torch.testing.assert_close(errors, torch.full((3, 7), 2 * 0.2 * math.log(7)))


@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1", "cosine"])
def test_direct_losses_are_the_loop_over_channels(loss: LatentLoss) -> None:
    predictions, targets = latents(2, 3, 5), latents(2, 3, 5)
    expected = torch.zeros(2, 3, dtype=torch.float64)
    for b in range(2):
        for n in range(3):
            target = targets[b, n].tolist()
            mean = sum(target) / 5
            variance = sum((value - mean) ** 2 for value in target) / 4
            target = [(value - mean) / math.sqrt(variance + 1e-6) for value in target]
            gaps = [abs(p - t) for p, t in zip(predictions[b, n].tolist(), target, strict=True)]
            dot = sum(p * t for p, t in zip(predictions[b, n].tolist(), target, strict=True))
            norms = float(predictions[b, n].norm()) * math.sqrt(sum(t * t for t in target))
            expected[b, n] = {
                "l1": sum(gaps) / 5,
                "l2": sum(gap**2 for gap in gaps) / 5,
                "smooth_l1": sum(0.5 * gap**2 if gap < 1 else gap - 0.5 for gap in gaps) / 5,
                "cosine": 1 - dot / norms,
            }[loss]
    torch.testing.assert_close(direct(predictions, targets, loss), expected)
    torch.testing.assert_close(latent_errors(predictions, targets, loss, 0.2), expected)


def test_the_settings_offer_every_loss() -> None:
    annotation = LatentMIM.__dataclass_fields__["loss"].type
    assert get_args(annotation) == get_args(LatentLoss)


def decoder(**settings: Any) -> LatentDecoder:
    options = {"width": 16, "depth": 2, "heads": 2, "self_attention": True, "cue": True}
    return LatentDecoder(6, Grid(3, 4), **options | settings)


VISIBLE, HIDDEN = torch.tensor([[0, 5, 7], [1, 2, 11]]), torch.tensor([[1, 4], [3, 6]])


def test_the_visual_cue_is_a_softmax_of_positions() -> None:
    weights = decoder().cue_weights(VISIBLE, HIDDEN)
    positions = mae_sincos_positions(16, Grid(3, 4), 0)[0].double()
    for b in range(2):
        for m, hidden in enumerate(HIDDEN[b].tolist()):
            scores = [math.exp(float(positions[hidden] @ positions[v]) / 4) for v in VISIBLE[b].tolist()]
            expected = torch.tensor([score / sum(scores) for score in scores])
            torch.testing.assert_close(weights[b, m], expected)


@pytest.mark.parametrize("cue", [True, False])
def test_the_decoder_is_its_equations(cue: bool) -> None:
    model = decoder(depth=1, cue=cue).eval()
    torch.nn.init.normal_(model.mask_token)
    given = torch.randn(2, 1 + 3, 6)
    positions = mae_sincos_positions(16, Grid(3, 4), 0)[0]
    block: Any = model.blocks[0]

    def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads = []
        for part in (slice(0, 8), slice(8, 16)):
            weights = (queries[:, part] @ keys[:, part].T / 8**0.5).softmax(-1)
            heads.append(weights @ values[:, part])
        return torch.cat(heads, 1)

    for b in range(2):
        embedded = model.embed(given[b])
        queries = model.mask_token[0] + positions[HIDDEN[b]]
        if cue:
            queries = queries + model.cue_weights(VISIBLE, HIDDEN)[b] @ embedded[1:]
        queries = torch.cat([model.cls_query[0], queries])  # type: ignore[index]
        context = torch.cat([embedded[:1], embedded[1:] + positions[VISIBLE[b]]])
        queries = queries + block.self_attn.proj(attend(*block.self_attn.qkv(block.norm1(queries)).split(16, 1)))
        asked, (keys, values) = (
            block.cross_attn.q(block.norm2q(queries)),
            block.cross_attn.kv(block.norm2kv(context)).split(16, 1),
        )
        queries = queries + block.cross_attn.proj(attend(asked, keys, values))
        queries = queries + block.mlp(block.norm3(queries))
        expected = model.head(model.norm(queries))[1:]
        torch.testing.assert_close(model(given, VISIBLE, HIDDEN)[b], expected, rtol=1e-4, atol=1e-5)


def test_without_self_attention_a_prediction_does_not_depend_on_the_others() -> None:
    given = torch.randn(2, 4, 6)
    for self_attention in (False, True):
        model = decoder(self_attention=self_attention).eval()
        alone = model(given, VISIBLE, HIDDEN[:, :1])
        together = model(given, VISIBLE, HIDDEN)[:, :1]
        assert torch.allclose(alone, together, atol=1e-5) is not self_attention
        assert all(weight.grad_fn is None for weight in model.parameters())
        model(given, VISIBLE, HIDDEN).sum().backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_projector_has_the_papers_layers() -> None:
    made: Any = projector(6, 10, 3)
    kinds = ["Linear", "LayerNorm", "GELU", "Linear", "LayerNorm", "GELU", "Linear", "LayerNorm"]
    assert [type(part).__name__ for part in made] == kinds
    assert [tuple(part.weight.shape) for part in made if isinstance(part, torch.nn.Linear)] == [
        (10, 6),
        (10, 10),
        (6, 10),
    ]
    assert not any(part.bias is not None for part in made if isinstance(part, torch.nn.Linear))
    given = torch.randn(2, 3, 6)
    assert torch.equal(projector(6, 10, 0)(given), given)


def test_visible_and_hidden_part_the_patches_in_order() -> None:
    mask = torch.stack([torch.randperm(12) < 5 for _ in range(4)])
    visible, hidden = visible_and_hidden(mask, 5)
    for b in range(4):
        assert visible[b].tolist() == [n for n in range(12) if not mask[b, n]]
        assert hidden[b].tolist() == [n for n in range(12) if mask[b, n]]
