"""Pretrain masked-image-modelling vision transformers and see why their features do or do not separate classes."""

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__

if TYPE_CHECKING:
    from .analyses.attention_distance import attention_distance
    from .analyses.attention_nmi import attention_nmi
    from .analyses.cls_attention import attention_entropy
    from .analyses.fourier import relative_log_amplitude
    from .analyses.geometry import normalised_spectrum, rankme
    from .analyses.knn import knn_correct
    from .analyses.reconstruction import reconstruction_quality
    from .analyses.self_attention_tokens import mean_pairwise_cosine
    from .analyses.token_norms import token_norms
    from .attention import patch_attention
    from .bootstrap import mean_interval
    from .cka import linear_cka
    from .density import patch_weights
    from .errors import UserError
    from .figures._show import show
    from .keypoint_maps import keypoint_map
    from .opening import load_encoder
    from .recorder import Recording, record
    from .results import Results

# public names and the modules that hold them, imported when first used: importing the package stays light
_PUBLIC = {
    "Recording": "recorder",
    "Results": "results",
    "UserError": "errors",
    "attention_distance": "analyses.attention_distance",
    "attention_entropy": "analyses.cls_attention",
    "attention_nmi": "analyses.attention_nmi",
    "keypoint_map": "keypoint_maps",
    "knn_correct": "analyses.knn",
    "linear_cka": "cka",
    "load_encoder": "opening",
    "mean_interval": "bootstrap",
    "mean_pairwise_cosine": "analyses.self_attention_tokens",
    "normalised_spectrum": "analyses.geometry",
    "patch_attention": "attention",
    "patch_weights": "density",
    "rankme": "analyses.geometry",
    "reconstruction_quality": "analyses.reconstruction",
    "record": "recorder",
    "relative_log_amplitude": "analyses.fourier",
    "show": "figures._show",
    "token_norms": "analyses.token_norms",
}

__all__ = [
    "Recording",
    "Results",
    "UserError",
    "__version__",
    "attention_distance",
    "attention_entropy",
    "attention_nmi",
    "keypoint_map",
    "knn_correct",
    "linear_cka",
    "load_encoder",
    "mean_interval",
    "mean_pairwise_cosine",
    "normalised_spectrum",
    "patch_attention",
    "patch_weights",
    "rankme",
    "reconstruction_quality",
    "record",
    "relative_log_amplitude",
    "show",
    "token_norms",
]

# hidden from type checkers, which would take any misspelt name for one that is found when first used
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
