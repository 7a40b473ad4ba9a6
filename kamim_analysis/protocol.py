"""The protocol of a number, carried beside it: what a reader must know to compare it with another.

Keys, in this order where they apply: `evaluation`, `pooling`, `norm` (none, final, trained), `resolution` (px), `crop`,
`interpolation`, `train` (pictures learned from, or "leave one out"), `test` (pictures judged), `seeds` (how many), then
what is the evaluation's own.
"""


def protocol(**items: object) -> str:
    """One line, `key=value; key=value`; items that are None are left out.

    >>> protocol(evaluation="knn", pooling="mean", seeds=None, temperature=0.07)
    'evaluation=knn; pooling=mean; temperature=0.07'
    """
    kept = {key: str(value).replace(";", ",") for key, value in items.items() if value is not None}
    return "; ".join(f"{key}={value}" for key, value in kept.items())


def items(text: str) -> dict[str, str]:
    """The keys and values of a protocol's line; empty for numbers that carry none.

    >>> items("evaluation=knn; pooling=mean")
    {'evaluation': 'knn', 'pooling': 'mean'}
    """
    return dict(part.split("=", 1) for part in text.split("; ")) if text else {}
