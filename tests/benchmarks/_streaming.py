"""The analyses that reduce within the hooks, in the one pass over the pictures."""

STREAMING = (
    "attention_distance",
    "attention_keypoints",
    "attention_nmi",
    "cls_attention",
    "fourier",
    "geometry",
    "self_attention_tokens",
    "similarity",
    "token_norms",
)
