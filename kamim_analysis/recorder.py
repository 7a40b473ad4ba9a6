"""See inside an unmodified encoder: forward hooks that hand over attention and tokens, only inside `with`."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .encoders import anatomy
from .errors import UserError
from .models._anatomy import Anatomy, Block
from .unrecorded import unrecorded_attention
from .windows import positions, stitch_attention, stitch_tokens

log = logging.getLogger(__name__)

Kind = Literal["attention", "tokens", "attention_input", "attention_output", "after_attention"]
Layers = Literal["all"] | Sequence[int]
Sink = Callable[[Kind, int, Tensor], None]
# a softmax in bf16 leaves sums within about 2^-8 of one
_ROW_SUM_TOLERANCE = 1e-2
# stitched attention is mostly zeros and 16 times a window's size at Swin's first stage: hand over 128 MB at a time
_STITCHED_ELEMENTS = 2**25
# encoders looked through for attention that goes unrecorded: analyses record once a batch, and say so once
_looked_through: WeakSet[nn.Module] = WeakSet()
# encoders whose rows of attention were seen to sum to one
_rows_checked: WeakSet[nn.Module] = WeakSet()


@dataclass
class Recording:
    """What one forward pass showed, by layer. Layer 0 is the embedding, layer i belongs to block i.

    >>> import kamim_analysis as ka
    >>> encoder = ka.load_encoder("random:vit_tiny", image_size=32)
    >>> with ka.record(encoder, attention=(), tokens=[0], after_attention=[-1]) as recording:
    ...     _ = encoder(torch.zeros(1, 3, 32, 32))
    >>> recording.tokens[0].shape, recording.after_attention[12].shape  # [batch, tokens, channels]
    (torch.Size([1, 5, 192]), torch.Size([1, 5, 192]))
    """

    anatomy: Anatomy
    attention: dict[int, Float[Tensor, "b h t t"]] = field(default_factory=dict)
    """Softmax attention of block i, prefix tokens included, rows summing to one."""
    tokens: dict[int, Float[Tensor, "b t d"]] = field(default_factory=dict)
    """Output of block i, before the final norm."""
    attention_input: dict[int, Float[Tensor, "b t d"]] = field(default_factory=dict)
    """What the attention module of block i is given: the block's input after its first norm."""
    attention_output: dict[int, Float[Tensor, "b t d"]] = field(default_factory=dict)
    """What the attention module of block i returns, after its projection and before the residual sum."""
    after_attention: dict[int, Float[Tensor, "b t d"]] = field(default_factory=dict)
    """The residual stream of block i between attention and MLP."""

    def keep(self, kind: Kind, layer: int, values: Tensor) -> None:
        """Store a tensor that a hook hands over."""
        getattr(self, kind)[layer] = values.detach()


@contextmanager
def record(
    encoder: nn.Module,
    attention: Layers = "all",
    tokens: Layers = "all",
    attention_input: Layers = (),
    attention_output: Layers = (),
    after_attention: Layers = (),
    sink: Sink | None = None,
    check_rows: Literal["always", "once"] = "always",
) -> Iterator[Recording]:
    """Record the forward passes made inside `with`; each pass replaces what the one before left.

    Arguments name the layers wanted: "all", or numbers (1 is the first block; 0, for tokens, the embedding; negative
    ones count from the last). Windowed attention is stitched back to the whole image, [B, heads, N, N].

    With `sink`, each tensor goes to `sink(kind, layer, values)` from within the hook and is then let go: memory does
    not grow, and nothing leaves the device but what the sink keeps. Stitched attention comes a few images at a time,
    so the sink may be called several times for a layer.

    That rows of attention sum to one is seen on the first pass inside `with`, for which a GPU is waited for; `once`, on
    an encoder's first recorded pass alone, is for training, which records in every step.

    Attention is what the `attn_drop` of each attention module puts out, so fused attention is switched off meanwhile,
    which changes outputs by rounding only. The flags and hooks are restored on leaving, also after an error.

    Attention outside the blocks (CaiT's class attention) is not recorded, and logged as a warning once an encoder.

    Raises UserError for an unknown layer, a model of no known family, a site of which nothing was heard (no forward
    pass, or an attention whose probabilities never pass through `attn_drop`), rows that do not sum to one, and maps
    that are not one for each head.

    >>> import kamim_analysis as ka
    >>> encoder = ka.load_encoder("random:vit_tiny", image_size=32)
    >>> with ka.record(encoder) as recording:
    ...     _ = encoder(torch.zeros(1, 3, 32, 32))
    >>> recording.attention[12].shape  # layer 12, [batch, heads, tokens, tokens]: cls and 2 x 2 patches
    torch.Size([1, 3, 5, 5])
    """
    body = anatomy(encoder)
    recording = Recording(body)
    sums = check_rows == "always" or encoder not in _rows_checked
    hooks = _Hooks(encoder, sink or recording.keep, streaming=sink is not None, sums=sums)
    chosen = {
        "attention": _layers(attention, body, least=1),
        "tokens": _layers(tokens, body, least=0),
        "attention_input": _layers(attention_input, body, least=1),
        "attention_output": _layers(attention_output, body, least=1),
        "after_attention": _layers(after_attention, body, least=1),
    }
    with ExitStack() as stack:
        for block in body.blocks:
            hooks.attach(stack, block, {kind for kind, layers in chosen.items() if block.layer in layers})
        if 0 in chosen["tokens"]:
            hooks.attach_embedding(stack, body.blocks[0])
        yield recording
    hooks.check_all_heard()
    if chosen["attention"]:
        _rows_checked.add(encoder)
        _warn_of_unrecorded(encoder)


def _warn_of_unrecorded(encoder: nn.Module) -> None:
    if encoder in _looked_through:
        return
    _looked_through.add(encoder)
    missing = unrecorded_attention(encoder)
    if missing:
        paths = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        log.warning("%s: %d attention modules are not recorded: %s", type(encoder).__name__, len(missing), paths)


def _layers(wanted: Layers, body: Anatomy, *, least: int) -> set[int]:
    last = len(body.blocks)
    if isinstance(wanted, str):
        return set(range(least, last + 1))
    layers = {layer + last + 1 if layer < 0 else layer for layer in wanted}
    for layer in layers:
        if not least <= layer <= last:
            raise UserError(f"layer {layer} does not exist: this encoder has layers {least} to {last}")
    return layers


class _Hooks:
    """The hooks of one `record`, and the sites that have not been heard of yet."""

    def __init__(self, encoder: nn.Module, sink: Sink, *, streaming: bool, sums: bool) -> None:
        self.encoder, self.sink, self.streaming, self.sums = encoder, sink, streaming, sums
        self.silent: dict[tuple[Kind, int], str] = {}

    def attach(self, stack: ExitStack, block: Block, kinds: set[str]) -> None:
        """Hooks on one block and on its attention."""
        attention = self.encoder.get_submodule(block.attention)
        if "attention" in kinds:
            self._unfuse(stack, attention)
            self._attach_attention(stack, block, attention)
        if "attention_input" in kinds:
            hear = self._site("attention_input", block.layer, block.attention)
            before = attention.register_forward_pre_hook(lambda _m, inputs: hear(_whole(inputs[0], block)))
            stack.callback(before.remove)
        if "attention_output" in kinds:
            self._attach_output(stack, attention, self._site("attention_output", block.layer, block.attention), block)
        if "after_attention" in kinds:
            self._attach_between(stack, block)
        if "tokens" in kinds:
            module = self.encoder.get_submodule(block.path)
            self._attach_output(stack, module, self._site("tokens", block.layer, block.path), None)

    def _attach_between(self, stack: ExitStack, block: Block) -> None:
        if block.mlp_norm is None:
            raise UserError(f"{block.path} has no residual stream between attention and MLP to record")
        hear = self._site("after_attention", block.layer, block.mlp_norm)
        norm = self.encoder.get_submodule(block.mlp_norm)
        stack.callback(norm.register_forward_pre_hook(lambda _m, inputs: hear(_flat(inputs[0]))).remove)

    def attach_embedding(self, stack: ExitStack, first: Block) -> None:
        """A hook on what enters the first block: layer 0."""
        hear = self._site("tokens", 0, first.path)
        module = self.encoder.get_submodule(first.path)
        stack.callback(module.register_forward_pre_hook(lambda _m, inputs: hear(_flat(inputs[0]))).remove)

    def check_all_heard(self) -> None:
        """A site that recorded nothing is an error, not an empty plot."""
        if self.silent:
            raise UserError(
                f"nothing recorded of {', '.join(sorted(set(self.silent.values())))}: no forward pass reached it "
                "inside `with`, or an attention did not pass its probabilities through its `attn_drop`"
            )

    def _site(self, kind: Kind, layer: int, path: str) -> Callable[[Tensor], None]:
        """Where a hook delivers; until it does, the site counts as silent."""
        self.silent[kind, layer] = path

        def hear(values: Tensor) -> None:
            self.silent.pop((kind, layer), None)
            self.sink(kind, layer, values)

        return hear

    @staticmethod
    def _unfuse(stack: ExitStack, attention: nn.Module) -> None:
        if hasattr(attention, "fused_attn"):
            stack.callback(setattr, attention, "fused_attn", attention.fused_attn)
            setattr(attention, "fused_attn", False)  # noqa: B010  (a module's attributes are typed as tensors)

    @staticmethod
    def _attach_output(
        stack: ExitStack, module: nn.Module, hear: Callable[[Tensor], None], windowed: Block | None
    ) -> None:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            hear(_flat(output) if windowed is None else _whole(output, windowed))

        stack.callback(module.register_forward_hook(hook).remove)

    def _attach_attention(self, stack: ExitStack, block: Block, attention: nn.Module) -> None:
        drop = getattr(attention, "attn_drop", None)
        if not isinstance(drop, nn.Module):
            raise UserError(f"{block.attention} ({type(attention).__name__}) has no module `attn_drop` to hook")
        hear = self._site("attention", block.layer, block.attention)

        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if ("attention", block.layer) in self.silent:
                _check_shape(output, block)
                if self.sums:
                    _check_rows(output, block)
            for part in self._whole_images(output, block):
                hear(part)

        stack.callback(drop.register_forward_hook(hook).remove)

    def _whole_images(self, attention: Tensor, block: Block) -> Iterator[Tensor]:
        """Attention over all tokens of an image; windows are stitched, for a sink a few images at a time."""
        if block.window is None:
            yield attention
            return
        windows = len(positions(block.window, block.grid))
        images = len(attention) // windows
        if self.streaming:
            images = max(1, min(images, _STITCHED_ELEMENTS // (block.heads * block.grid.area**2)))
        for part in attention.split(images * windows):
            yield stitch_attention(part, block.window, block.grid)


def _flat(tokens: Tensor) -> Tensor:
    """[B, H, W, C] as [B, N, C]."""
    return tokens.flatten(1, -2)


def _whole(tokens: Tensor, block: Block) -> Tensor:
    """What goes into or comes out of an attention module, as tokens of the whole image."""
    return _flat(tokens) if block.window is None else stitch_tokens(tokens, block.window, block.grid)


def _check_shape(attention: Tensor, block: Block) -> None:
    """Attention must be over the tokens that the anatomy counts, one map for a head."""
    tokens = block.grid.area + block.prefix_tokens
    expected = tokens if block.window is None else block.window.size[0] * block.window.size[1]
    # differential attention puts out two maps for a head, which it subtracts afterwards
    if attention.ndim != 4 or attention.shape[1] != block.heads or attention.shape[-1] != expected:
        raise UserError(
            f"{block.attention}: attention of shape {tuple(attention.shape)}, expected [*, {block.heads}, {expected}, "
            f"{expected}] for a {block.grid.height}x{block.grid.width} grid and {block.prefix_tokens} prefix tokens"
        )


def _check_rows(attention: Float[Tensor, "b h q k"], block: Block) -> None:
    """Attention must be probabilities."""
    sums = attention.detach().sum(-1, dtype=torch.float32)
    error = (sums - 1).abs().amax()
    if error <= _ROW_SUM_TOLERANCE:
        return
    if sums.isfinite().all():
        raise UserError(f"{block.attention}: rows of attention miss a sum of one by {float(error):.2g}")
    heads = (~sums.isfinite()).any(-1).any(0).nonzero()[:, 0].tolist()
    raise UserError(
        f"{block.attention}: attention holds NaN or infinity in head {', '.join(map(str, heads))} of "
        f"{attention.shape[1]} (counted from 0); look for weights that are not finite, or numbers too large for half "
        "precision"
    )
