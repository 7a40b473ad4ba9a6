"""How a layer's features fill their space: do they collapse, and what do they vary with? (KAMIM, figures 3 and 10)."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from kamim_analysis.bootstrap import mean_interval
from kamim_analysis.encoders import patch_tokens

from ._analysis import Batch, Findings, PerImage, Site, Subject, as_array
from ._directions import direction
from .self_attention_tokens import mean_pairwise_cosine

QUESTION = "Do features collapse, and do they vary within images, between images or between classes?"
HOW_TO_READ = "Cosine or RankMe near 1: collapse. Share between classes: how much of all variance tells classes apart."
SOURCE = "Garrido et al., arXiv 2210.02885; Wang and Isola, arXiv 2005.10242"
COST = "a feature of each layer of up to 2,048 pictures, and singular values of the tokens of 64"
BY_DEFAULT = True
#: pictures looked at: features of every layer are kept, 40 kB a picture for ViT-B, and compared in pairs
FEATURES = 2048
#: pictures whose tokens' singular values are taken: for each layer they cost a tenth of a forward pass or more
SPECTRA = 64
#: least images for numbers over images
LEAST = 3
# singular values kept of a spectrum, evenly spaced in the logarithm of their rank
_POINTS = 24
# rows of the matrix of all images' distances that are held at a time
_ROWS = 128


def normalised_spectrum(vectors: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b k"]:
    """Singular values over their sum, in descending order: [..., N, C] -> [..., min(N, C)]; not centred.

    From the eigenvalues of the smaller Gram matrix in double precision: a third of the time of singular values, and
    what rounding puts in place of zeros is below 1e-7 of the greatest. NaN where all vectors are zero.

    >>> normalised_spectrum(torch.diag(torch.tensor([1.0, 3.0, 0.0])))
    tensor([0.7500, 0.2500, 0.0000])
    """
    vectors = vectors.double()
    gram = vectors @ vectors.mT if vectors.shape[-2] <= vectors.shape[-1] else vectors.mT @ vectors
    values: Float[Tensor, "*b k"] = torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0).sqrt()
    return (values / values.sum(-1, keepdim=True)).float()


def rankme(spectrum: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """Effective rank: the exponential of the entropy of normalised singular values, from 1 to their number.

    exp(-sum of p log p). 1: all vectors lie on one line; the number of vectors or of channels, whichever is smaller:
    all directions are used alike. Features are not centred, so a common offset counts as a direction. Garrido et al.
    add 1e-7 to each p, which avoids log 0 and changes nothing that can be read off.

    Source: Garrido et al., arXiv 2210.02885, equation 1.

    >>> rankme(normalised_spectrum(torch.eye(4))), rankme(normalised_spectrum(torch.ones(9, 4)))
    (tensor(4.), tensor(1.))
    """
    entropy: Float[Tensor, "*b"] = torch.special.entr(spectrum).sum(-1)
    return entropy.exp()


def cosine_to_others(features: Float[Tensor, "i d"]) -> Float[Tensor, " i"]:
    """Mean cosine of each image's feature to those of all other images, in [-1, 1]: [images, C] -> [images].

    NaN where features are zero, which have no direction.

    >>> cosine_to_others(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]))
    tensor([0.0000, 0.5000, 0.5000], dtype=torch.float64)
    """
    unit = direction(features.double())
    return (unit @ unit.sum(0) - unit.square().sum(-1)) / (len(unit) - 1)


def closeness_to_others(features: Float[Tensor, "i d"]) -> Float[Tensor, " i"]:
    """Mean of exp(-2 |x - y|^2) of each image's unit feature x to those of all other images y: [images].

    The logarithm of its mean is Wang and Isola's uniformity (arXiv 2005.10242, section 4.1.2, t = 2), from 0, where all
    are one point, to nearly -4 for points all over a sphere of many dimensions. NaN as `cosine_to_others`.
    """
    unit = direction(features.double())
    sums = [(4 * (part @ unit.T).clamp_max(1) - 4).exp_().sum(1) for part in unit.split(_ROWS)]
    own = (4 * unit.square().sum(-1).clamp_max(1) - 4).exp()
    return (torch.cat(sums) - own) / (len(unit) - 1)


def of_pairs(to_others: Float[Tensor, " i"]) -> Float[Tensor, " i"]:
    """Each image's part in a mean over pairs of images, given its own mean over its pairs: [images] -> [images].

    The jackknife's pseudo-values, m + 2 (n - 1) / (n - 2) (m_i - m). They have the mean over pairs as their mean, and
    resampling them gives the interval of another set of as many images. Resampling m_i themselves would give half its
    width: it would move one image of each pair and hold the other.

    >>> of_pairs(torch.tensor([0.1, 0.2, 0.6]).double())
    tensor([-0.5000, -0.1000,  1.5000], dtype=torch.float64)
    """
    mean = to_others.mean()
    return mean + 2 * (len(to_others) - 1) / (len(to_others) - 2) * (to_others - mean)


def ratio_parts(numerator: Float[Tensor, " i"], denominator: Float[Tensor, " i"]) -> Float[Tensor, " i"]:
    """Each image's part in the ratio of two means, to first order; the mean of the parts is the ratio exactly."""
    ratio = numerator.mean() / denominator.mean()
    return ratio + (numerator - ratio * denominator) / denominator.mean()


def rankme_parts(features: Float[Tensor, "i d"]) -> Float[Tensor, " i"]:
    """Each image's part in RankMe of a set of images, whose mean is its RankMe: [images, C] -> [images].

    The jackknife: R + (n - 1) (mean of R_j - R_i), with R_i the RankMe of all images but i. Resampling images would not
    do, since doubles lower the rank of a set; these parts give the interval of another set of as many images. RankMe
    grows with the number of images until that is far beyond the rank: compare it between sets of one size only.

    The n decompositions without one image are not made. Let X X' = U L U', t > 0. Leaving image i out takes
    sum_k u_ik^2 l_k / (l_k + t)^2 / sum_k u_ik^2 / (l_k + t) from sum_k l_k / (l_k + t) (of Schur complements), and
    sqrt(l) = 1/pi int l / (l + t) t^(-1/2) dt, sqrt(l) log l = 1/pi int l / (l + t) t^(-1/2) log t dt. So two integrals
    over t of what is taken give the change of the sum of singular values s and of s log s, of which RankMe is made.
    """
    squared, leverage = _principal(features.double())
    values: Float[Tensor, " k"] = squared.sqrt()
    one, entropic = values.sum(), torch.special.entr(values).sum()
    # in v = log t the trapezoidal rule is exact to 1e-8 for steps of 1; the integrand falls as exp(-|v| / 2)
    v = torch.arange(-40.0, 41.0, dtype=torch.float64)
    near = 1 / (squared[:, None] + v.exp())
    beyond = (1 - leverage.sum(1, keepdim=True)).clamp_min(0) / v.exp()
    taken = (leverage @ (squared[:, None] * near.square())) / (leverage @ near + beyond) * (v / 2).exp() / torch.pi
    less_one, less_entropic = one - taken.sum(1), entropic + (taken @ v) / 2
    rank = float((one.log() + entropic / one).exp())
    without: Float[Tensor, " i"] = (less_one.log() + less_entropic / less_one).exp()
    return rank + (len(features) - 1) * (without.mean() - without)


def _principal(features: Float[Tensor, "i d"]) -> tuple[Float[Tensor, " k"], Float[Tensor, "i k"]]:
    """Squared singular values over the greatest, and each image's share u_ik^2 in them."""
    images, channels = features.shape
    if images <= channels:
        squared, left = torch.linalg.eigh(features @ features.T)
        share = left.square()
    else:
        squared, right = torch.linalg.eigh(features.T @ features)
        # what rounding leaves of a direction that no image has is no image's
        share = torch.where(squared > squared[-1] * 1e-14, (features @ right).square() / squared, 0.0)
    return (squared / squared[-1]).clamp_min(0), share


def variance_parts(
    means: Float[Tensor, "i d"], within_images: Float[Tensor, " i"], labels: Int64[Tensor, " i"] | None
) -> dict[str, Float[Tensor, " i"]]:
    """Variance of patch tokens within images, between images of a class, and between classes, as parts by image.

    From each image's mean token [images, C] and the mean square of its tokens' distance from it [images]. Part means
    are the components of variance: d^2 n / (n - k) within classes, with d the distance of an image's mean from its
    class's, n images and k classes; and t^2 - d^2 (n - 1) / (n - k) between them, with t the distance from the mean of
    all. So the class means' own sampling error is not taken for a difference of classes, as it is in sums of squares,
    where random classes of a few images each seem to explain much; in return a share can fall below zero. Without
    labels, or with a single class, or as many as images, images are not told apart by class.
    """
    images = len(means)
    spread = (means - means.mean(0)).square().sum(1)
    if labels is not None:
        _, group = labels.unique(return_inverse=True)
        counts = group.bincount()
        if 1 < len(counts) < images:
            centres = means.new_zeros(len(counts), means.shape[1]).index_add_(0, group, means) / counts[:, None]
            inside = (means - centres[group]).square().sum(1)
            freedom = images - len(counts)
            between = spread - inside * ((images - 1) / freedom)
            return {
                "within_images": within_images,
                "within_classes": inside * (images / freedom),
                "between_classes": between,
            }
    return {"within_images": within_images, "between_images": spread * (images / (images - 1))}


def ranks_shown(count: int) -> NDArray[np.int64]:
    """Up to 24 ranks from 1 to `count`, evenly spaced in their logarithm as far as whole numbers are.

    >>> ranks_shown(384)[:10]
    array([ 1,  2,  3,  4,  5,  6,  8, 10, 13, 17])
    """
    return np.unique(np.geomspace(1, count, _POINTS).round().astype(np.int64))


class Geometry(PerImage):
    """Cosines, RankMe, spectra, uniformity and shares of variance at each layer, from the embedding on.

    Image features are mean-pooled patch tokens; those of the last layer also as k-NN takes them, after the final norm.
    """

    SITES: ClassVar[frozenset[Site]] = frozenset({"tokens"})
    FILE: ClassVar[str] = "geometry"
    LEAST_LAYER: ClassVar[int] = 0
    MOST: ClassVar[int | None] = FEATURES

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._pending_spectra: dict[str, Tensor] = {}
        self.add_lists("final", "labels", *(f"spectrum{layer}" for layer in self._layers()))

    def _layers(self) -> range:
        return range(self.subject.layers + 1)

    def keys(self) -> list[str]:
        """Two states for each layer."""
        return [f"{what}{layer}" for what in ("mean", "token") for layer in self._layers()]

    def observe(self, site: Site, layer: int, values: Tensor) -> None:
        """Reduce a layer's tokens to their mean, their cosine and variance, and for some pictures their spectrum."""
        if site not in self.SITES:
            return
        tokens = patch_tokens(values, self.subject.block(layer).prefix_tokens).float()
        mean = tokens.mean(1)
        # in double, where no square overflows
        variance = torch.linalg.vector_norm(tokens - mean[:, None], dim=-1, dtype=torch.float64).square().mean(1)
        self.put(f"mean{layer}", mean)
        self.put(f"token{layer}", torch.stack([mean_pairwise_cosine(tokens).double(), variance], dim=1))
        room = SPECTRA - self.count(f"spectrum{layer}")
        if room > 0:
            self._pending_spectra[f"spectrum{layer}"] = _rank_and_spectrum(tokens[:room])

    def update(self, batch: Batch) -> None:
        """Close a batch."""
        super().update(batch)
        self.append("final", batch.features.float())
        self.append("labels", batch.labels)
        for key, values in self._pending_spectra.items():
            self.append(key, values)
        self._pending_spectra = {}

    def compute(self) -> Findings:
        """Rows of tokens, of images and of variance; arrays of spectra, each a column of numbers for each rank shown.

        `token_spectrum{layer}` [4, points]: rank, normalised singular value (mean over images), low and high end of its
        interval. `image_spectrum{layer}` [2, points]: rank and value. It has no interval: singular values are put in
        order before they are numbered, and sampling error is what draws the small ones apart.
        """
        findings = Findings("geometry")
        for layer in self._layers():
            self._add_tokens(findings, layer)
            means = self.collected(f"mean{layer}").double()
            if len(means) >= LEAST:
                _add_images(findings, means, layer, "")
                self._add_variance(findings, means, layer)
        final = self.collected("final")
        if len(final) >= LEAST:
            _add_images(findings, final, self.subject.layers, "_final")
        return findings

    def _add_tokens(self, findings: Findings, layer: int) -> None:
        findings.add("token_cosine", self.values(f"token{layer}")[:, :1], [layer])
        spectra = self.values(f"spectrum{layer}")[:SPECTRA]
        findings.add("token_rankme", spectra[:, :1], [layer])
        block = self.subject.block(layer)
        count = min(block.grid.area, self.collected(f"mean{layer}").shape[1])
        findings.arrays[f"token_spectrum{layer}"] = np.stack([ranks_shown(count), *mean_interval(spectra[:, 1:])])

    def _add_variance(self, findings: Findings, means: Tensor, layer: int) -> None:
        within = self.collected(f"token{layer}")[:, 1].double()
        parts = variance_parts(means, within, self.collected("labels"))
        whole = torch.stack(list(parts.values())).sum(0)
        for name, part in parts.items():
            findings.add(f"share_{name}", as_array(ratio_parts(part, whole))[:, None], [layer])
        if "between_classes" in parts:
            between = parts["between_classes"] + parts["within_classes"]
            share = ratio_parts(parts["between_classes"], between)
            findings.add("class_share_of_images", as_array(share)[:, None], [layer])


def _rank_and_spectrum(tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b r"]:
    """RankMe of each image's tokens, then its spectrum at the ranks shown."""
    spectrum = normalised_spectrum(tokens)
    shown = torch.from_numpy(ranks_shown(spectrum.shape[1]) - 1).to(spectrum.device)
    return torch.cat([rankme(spectrum)[:, None], spectrum[:, shown]], dim=1)


def _add_images(findings: Findings, features: Tensor, layer: int, suffix: str) -> None:
    """Rows and spectrum of a set of image features."""
    closeness = closeness_to_others(features)
    found = {
        "image_cosine": of_pairs(cosine_to_others(features)),
        "image_rankme": rankme_parts(features),
        "uniformity": closeness.mean().log() + of_pairs(closeness) / closeness.mean() - 1,
    }
    for name, values in found.items():
        findings.add(name + suffix, as_array(values)[:, None], [layer])
    spectrum = normalised_spectrum(features)
    ranks = ranks_shown(len(spectrum))
    findings.arrays[f"image_spectrum{suffix}{layer}"] = np.stack([ranks, as_array(spectrum[ranks - 1])])
