"""timm's architecture names, read without importing timm: a mistyped name is refused at once, not after seconds."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from . import plugins
from .errors import UserError

#: the papers' encoders; in our hands they take 192 px unless told otherwise
SHORT_NAMES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
}
_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)


@cache
def architectures() -> list[str]:
    """Names of all architectures that timm registers, sorted."""
    spec = find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    files = Path(spec.origin).with_name("models").glob("*.py")
    return sorted({name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8"))})


def check_architecture(name: str) -> str:
    """The name, which may carry a pretrained tag (`NAME.TAG`). Raises UserError with the nearest for an unknown one."""
    known = architectures()
    if name.split(".")[0] not in known:
        near = plugins.nearest(name, [*SHORT_NAMES, *known])
        hint = f"did you mean {near!r}? " if near else ""
        raise UserError(f"timm has no architecture {name!r}; {hint}timm.list_models() lists all {len(known)} of them")
    return name
