"""How the features of a frozen encoder were taken, for the protocol that every number carries."""

from typing import Any

from torch import nn

from kamim_analysis.encoders import anatomy


def feature_items(encoder: Any, pooling: str, *, final_norm: bool) -> dict[str, object]:
    """pooling, norm (final or none), resolution in pixels, crop and interpolation, in the order of a protocol.

    `final_norm`: whether the layer's tokens went through the encoder's own; an encoder without one has none. The
    transform is timm's for the encoder, that of every picture it is shown.
    """
    import timm.data

    height, width = anatomy(encoder).image_size
    config = timm.data.resolve_data_config({"input_size": (3, height, width)}, model=encoder)
    own = getattr(encoder, "norm", None)
    return {
        "pooling": pooling,
        "norm": "final" if final_norm and own is not None and not isinstance(own, nn.Identity) else "none",
        "resolution": height if height == width else f"{height} x {width}",
        "crop": config["crop_pct"],
        "interpolation": config["interpolation"],
    }
