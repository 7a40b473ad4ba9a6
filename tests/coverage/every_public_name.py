"""A user's file that uses every public name: `make lint` checks it with mypy --strict against the wheel.

`assert_type` fails where a name's type has become Any. Nothing here is run.
"""

from contextlib import AbstractContextManager
from typing import assert_type

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

import kamim_analysis as ka


def look_inside(images: Tensor) -> Tensor:
    """Attention and tokens of an encoder, and what is measured on them."""
    encoder = assert_type(ka.load_encoder("random:vit_small", image_size=192), nn.Module)
    recorder: AbstractContextManager[ka.Recording] = ka.record(encoder, attention=[12])
    with recorder as recording:
        encoder(images)
    assert_type(recording.attention, dict[int, Tensor])
    attention = assert_type(ka.patch_attention(recording.attention[12], prefix_tokens=1), Tensor)
    tokens = recording.tokens[12][:, 1:]
    assert_type(ka.attention_distance(attention, grid=(12, 12), patch_size=16), Tensor)
    assert_type(ka.attention_nmi(attention), Tensor)
    assert_type(ka.attention_entropy(attention), Tensor)
    assert_type(ka.relative_log_amplitude(tokens, grid=(12, 12)), Tensor)
    assert_type(ka.mean_pairwise_cosine(tokens), Tensor)
    assert_type(ka.token_norms(tokens), Tensor)
    return assert_type(ka.rankme(assert_type(ka.normalised_spectrum(tokens), Tensor)), Tensor)


def weigh(image: NDArray[np.uint8], maps: Tensor) -> Tensor:
    """Keypoints and KAMIM's weights."""
    keypoints: NDArray[np.uint8] = ka.keypoint_map(image, detector="fast", style="points")
    keypoints.sum()
    return assert_type(ka.patch_weights(maps, patch_size=8, temperature=0.25), Tensor)


def compare(features: Tensor, labels: Tensor, pictures: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Numbers of features and predictions, with intervals."""
    right = assert_type(ka.knn_correct(features, labels, None, None, ks=[20]), dict[int, Tensor])
    mean, low, high = ka.mean_interval(right[20].numpy())
    assert_type(low, NDArray[np.float64])
    assert_type(ka.reconstruction_quality(pictures, pictures, mask).psnr_masked, NDArray[np.float64])
    assert_type(ka.linear_cka(pictures[0, :, :, 0], pictures[0, :, :, 1]), float)
    return float(mean[()] - high[()])


def read(directory: str) -> list[str]:
    """What an analysis has left."""
    try:
        results = assert_type(ka.Results.open(directory), ka.Results)
    except ka.UserError as mistake:
        return [str(mistake), assert_type(ka.__version__, str)]
    assert_type(ka.show(results, "attention_distance"), Figure | None)
    assert_type(ka.show(results), str | None)
    assert_type(ka.show(np.eye(3)), Figure | None)
    return results.models
