"""JSON and YAML of any origin as plain data: whatever stands there, reading ends, fits into memory, runs nothing."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

#: a complete recipe has about a hundred
_MOST_NODES = 100_000
#: what is written here has a handful
_MOST_LEVELS = 100
_NESTED = "it is nested too deep"


def json_of(text: str | bytes) -> Any:
    """What a JSON text holds. Raises ValueError, for more than 100 levels too: what writes it again would recurse."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_NESTED) from None
    level = [found]
    for _ in range(_MOST_LEVELS):
        level = [inner for one in level for inner in _parts(one)]
        if not level:
            return found
    raise ValueError(_NESTED)


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def digest_of(told: Mapping[str, Any], *, without: str) -> str:
    """SHA-256 of all that a mapping tells but the entry `without`, in which the digest itself may stand."""
    rest = {key: value for key, value in told.items() if key != without}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def yaml_of(text: str) -> Any:
    """What a YAML text holds, by yaml's safe loader: a tag that asks for an object of Python is an error.

    Aliases are followed, as long as the text without them would hold no more than 100,000 nodes: ten lines of aliases
    of aliases hold more than any memory. Raises yaml.YAMLError for whatever is wrong.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _nodes(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(_NESTED) from None
    except ValueError as error:  # a number of too many digits, a date that is none
        raise yaml.YAMLError(" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def _nodes(node: "yaml.Node", counted: dict[int, int]) -> int:
    """How many nodes there are below and with this one when each alias is written out."""
    import yaml

    known = counted.get(id(node))
    if known is not None:
        if not known:
            raise yaml.YAMLError("an alias leads into itself")
        return known
    counted[id(node)] = 0  # not known yet
    parts = node.value if isinstance(node, yaml.CollectionNode) else []
    inner = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
    total = 1 + sum(_nodes(one, counted) for one in inner)
    if total > _MOST_NODES:
        raise yaml.YAMLError(f"with its aliases written out it has more than {_MOST_NODES} nodes")
    counted[id(node)] = total
    return total
