"""What patch tokens show of a picture: principal components as colours, segments, corresponding patches.

Patch tokens of the last layer are taken after the encoder's final norm, as DINOv2's `x_norm_patchtokens`. Those of
earlier layers, and of encoders without one, get a layer norm without learned scale: the final norm's scale is learned
for the last layer, Swin's earlier stages are narrower, and raw, a few tokens of extreme norm (arXiv 2309.16588) would
take all principal components.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import layer_norm

from kamim_analysis.encoders import patch_tokens
from kamim_analysis.recorder import record
from kamim_analysis.results import rows_of
from kamim_analysis.shapes import Size

from ._analysis import Analysis, Batch, Findings, Site, Subject, as_array
from ._dense_maps import coherence, principal_colours, segments, silhouette
from ._dense_matching import match_shares, mirrored_crop, mutual_nearest, nearest, nearest_colours, spread, true_places
from .attention_maps import to_pixels

QUESTION = "What do patch tokens show of a picture, and do they know a place by its content or by its position?"
HOW_TO_READ = (
    "Flip match far above colour match: patches are known by their content; same position high: by their place."
)
SOURCE = "Oquab et al., DINOv2, arXiv 2304.07193, section 7.5"
COST = "one further forward pass and a clustering for each of 32 pictures"
BY_DEFAULT = True
#: pictures whose patches are clustered and matched: a pass and a k-means each
PICTURES = 32
#: pictures that are shown
SHOWN = 8
_DEPTHS = 4
# pairs of pictures whose corresponding patches are shown, and patches for each
_PAIRS, _MATCHES = 2, 14
_FLIP = ("flip_match", "flip_match_within_one", "flip_same_position")


def depths(layers: int) -> list[int]:
    """A quarter, half, three quarters and all of the layers, rounded up.

    >>> depths(12), depths(3), depths(1)
    ([3, 6, 9, 12], [1, 2, 3], [1])
    """
    return sorted({-(-layers * i // _DEPTHS) for i in range(1, _DEPTHS + 1)})


class Dense(Analysis):
    """Colours of eight pictures at four depths; segments of the last layer; patches found again in a mirrored crop.

    The pictures' own tokens come from the common pass, those of their crops from one of its own.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"tokens"})
    FILE: ClassVar[str] = "dense"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.depths = depths(subject.layers)
        self._pending: dict[int, Tensor] = {}
        self.add_lists("pixels", "labels", "segments", "segmentation", "colour_match")
        self.add_lists(*(f"{state}{layer}" for state in ("tokens", "flip") for layer in self.depths))

    @classmethod
    def unavailable(cls, subject: Subject) -> str | None:
        """Needs patches to tell apart, the final norm and a further pass."""
        if subject.block(subject.layers).grid.area < 2:
            return "its last layer is of a single patch"
        return "there is no encoder to pass mirrored crops through" if subject.encoder is None else None

    def layers_wanted(self, site: Site) -> Sequence[int]:
        """Four depths."""
        return self.depths if site in self.SITES else []

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Hold the tokens of the first pictures until the batch is closed."""
        room = PICTURES - self.count("segments")
        if site in self.SITES and layer in self.depths and room > 0:
            self._pending[layer] = self._normed(values[:room], layer)

    def _normed(self, values: Float[Tensor, "b ..."], layer: int) -> Float[Tensor, "b n d"]:
        tokens = patch_tokens(values, self.subject.block(layer).prefix_tokens)
        final = getattr(self.subject.encoder, "norm", None)
        if layer == self.subject.layers and final is not None and not isinstance(final, torch.nn.Identity):
            normed: Float[Tensor, "b n d"] = final(tokens).float()
            return normed
        return layer_norm(tokens.float(), tokens.shape[-1:])

    def update(self, batch: Batch) -> None:
        """Cluster and match the first pictures' patches, keep the tokens of those that are shown."""
        tokens, self._pending = self._pending, {}
        if not tokens:
            return
        room = SHOWN - self.count("pixels")
        if room > 0:
            self.append("pixels", to_pixels(batch.images[:room], self.subject))
            self.append("labels", batch.labels[:room])
            for layer, values in tokens.items():
                self.append(f"tokens{layer}", values[:room])
        self._segment(tokens[self.subject.layers])
        count = len(tokens[self.subject.layers])
        self._match(batch.images[:count], batch.indices[:count].tolist(), tokens)

    def _segment(self, tokens: Float[Tensor, "b n d"]) -> None:
        grid = self.subject.block(self.subject.layers).grid
        labels = [segments(one) for one in tokens]
        found = [[silhouette(one, of), coherence(of, grid)] for one, of in zip(tokens, labels, strict=True)]
        self.append("segments", torch.stack(labels).byte().to(tokens.device))
        self.append("segmentation", torch.tensor(found, device=tokens.device))

    def _match(
        self, images: Float[Tensor, "b 3 y x"], indices: Sequence[int], tokens: dict[int, Float[Tensor, "b n d"]]
    ) -> None:
        """Pass mirrored crops through the encoder, and look for their patches in the pictures."""
        generators = [self.subject.generator(index) for index in indices]
        crops = [mirrored_crop(image, draw) for image, draw in zip(images, generators, strict=True)]
        views, size = torch.stack([view for view, _ in crops]), Size(*images.shape[-2:])

        def shares(found: Int64[Tensor, "b n"], layer: int) -> Float[Tensor, "b 3"]:
            grid = self.subject.block(layer).grid
            return match_shares(found, torch.stack([true_places(box, size, grid) for _, box in crops]), grid)

        def compare(_kind: str, layer: int, values: Tensor) -> None:
            self.append(f"flip{layer}", shares(nearest(self._normed(values, layer), tokens[layer]), layer))

        with record(self.subject.encoder, attention=(), tokens=self.depths, sink=compare):
            self.subject.encoder.forward_features(views)
        last = self.subject.layers
        by_colour = nearest_colours(views, images, self.subject.block(last).grid)
        self.append("colour_match", shares(by_colour, last)[:, :2])

    def compute(self) -> Findings:
        """Rows of the first 32 pictures; arrays of the first eight.

        `flip_match`, `flip_match_within_one`, `flip_same_position`: `match_shares` at each depth. Without layer,
        `colour_match` and `colour_match_within_one`: the same with each patch's mean colour in place of its token,
        what can be had without a model. `silhouette`, `segment_coherence`: of the last layer's segments.

        Arrays `pixels`, uint8 [images, H, W, 3], `labels` [images]; `rgb{layer}`, uint8 [images, rows, columns, 3], and
        `explained{layer}` [3] of `principal_colours`; `segments`, uint8 [images, rows, columns]; `pairs` [pairs, 2]:
        pictures of one class, `matches{pair}` [matches, 4]: row and column in the one and in the other picture, and
        `cosines{pair}` [matches].
        """
        findings = Findings("dense")
        for layer in self.depths:
            shares = as_array(self.collected(f"flip{layer}")[:PICTURES])
            for i, name in enumerate(_FLIP):
                findings.add(name, shares[:, i : i + 1], [layer])
        colour = as_array(self.collected("colour_match")[:PICTURES])
        segmentation = as_array(self.collected("segmentation")[:PICTURES])
        for i, suffix in enumerate(("", "_within_one")):
            # rows alone: of pictures and grid, so models are not to be compared by it
            findings.rows += rows_of("dense", f"colour_match{suffix}", colour[:, i : i + 1], layers=[None])
        for i, name in enumerate(("silhouette", "segment_coherence")):
            findings.add(name, segmentation[:, i : i + 1], [self.subject.layers])
        self._add_pictures(findings)
        return findings

    def _add_pictures(self, findings: Findings) -> None:
        arrays, last = findings.arrays, self.subject.layers
        for name in ("pixels", "labels"):
            arrays[name] = self.collected(name)[:SHOWN].numpy()
        for layer in self.depths:
            colours, explained = principal_colours(
                self.collected(f"tokens{layer}")[:SHOWN], self.subject.block(layer).grid
            )
            arrays[f"rgb{layer}"], arrays[f"explained{layer}"] = colours.numpy(), explained.numpy()
        grid = self.subject.block(last).grid
        arrays["segments"] = self.collected("segments")[:SHOWN].view(-1, *grid).numpy()
        chosen = pairs_of_one_class(arrays["labels"].tolist())
        arrays["pairs"] = np.array(chosen, np.int64).reshape(-1, 2)
        for i, (a, b) in enumerate(chosen):
            tokens = self.collected(f"tokens{last}")
            matched, cosines = mutual_nearest(tokens[a], tokens[b])
            kept = spread(matched, grid, _MATCHES)
            places = torch.stack([matched[kept] // grid.width, matched[kept] % grid.width], dim=-1)
            arrays[f"matches{i}"], arrays[f"cosines{i}"] = places.flatten(1).numpy(), cosines[kept].numpy()


def pairs_of_one_class(labels: Sequence[int]) -> list[tuple[int, int]]:
    """The first two pictures of each class that has two, for two classes at most; else the first two of all.

    >>> pairs_of_one_class([5, 7, 5, 5, 7]), pairs_of_one_class([1, 2, 3]), pairs_of_one_class([1])
    ([(0, 2), (1, 4)], [(0, 1)], [])
    """
    by_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        by_class.setdefault(label, []).append(i)
    pairs = [(members[0], members[1]) for members in by_class.values() if len(members) > 1]
    return pairs[:_PAIRS] or [(0, 1)][: len(labels) // 2]
