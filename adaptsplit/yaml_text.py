"""YAML as plain values by the safe loader, within bounds of size, depth and repetition."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import Composer

MAX_NODES = 20_000  # with what aliases repeat; the largest shipped file has some hundreds
MAX_DEPTH = 64
_MAX_INTEGER_BITS = 200
FAULTS = (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What PyYAML raises: ``!!int ""`` is an IndexError, ``!!bool x`` a KeyError, ``!!timestamp x`` an AttributeError."""


class _Bounded(Composer):
    """Counts what aliases repeat before it is built (ten lines can stand for 10^9 values), and refuses doubled keys."""

    _count = _depth = 0
    _sizes: dict[str, int]

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose one node; YAMLError beyond the bounds, or for an alias within its own anchor."""
        event: yaml.Event = self.peek_event()  # type: ignore[attr-defined]
        before = self._count
        self._count += self._sizes.get(event.anchor or "", MAX_NODES) if isinstance(event, yaml.AliasEvent) else 1
        self._depth += 1
        if self._count > MAX_NODES:
            problem = f"more than {MAX_NODES} values, or an alias of nothing or of what it stands in"
            raise yaml.YAMLError(f"{problem} {event.start_mark}")
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} levels {event.start_mark}")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            if isinstance(event, yaml.NodeEvent) and event.anchor:
                self._sizes[event.anchor] = self._count - before
            if isinstance(node, yaml.MappingNode):
                _refuse_twins(node)
        return node


def _refuse_twins(mapping: yaml.MappingNode) -> None:
    """YAMLError for a key that stands twice: YAML forbids it (1.2, 3.2.1.3), PyYAML lets the last one win."""
    seen = set()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(f"the key {key.value[:80]!r} stands twice {key.start_mark}")
            seen.add((key.tag, key.value))


class _PlainLoader(_Bounded, yaml.SafeLoader):
    """The safe loader, with the bounds."""

    def __init__(self, data: bytes) -> None:
        yaml.SafeLoader.__init__(self, data)
        self._sizes = {}


try:
    from yaml._yaml import CParser
except ImportError:  # PyYAML was built without libyaml
    _Loader: Any = _PlainLoader
else:

    class _FastLoader(_Bounded, CParser, yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
        """The same with libyaml's parser, six times as fast; what it composes is counted in Python, as above."""

        def __init__(self, data: bytes) -> None:
            CParser.__init__(self, data)
            Composer.__init__(self)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)
            self._sizes = {}

    _Loader = _FastLoader


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    value: int = loader.construct_yaml_int(node)
    if value.bit_length() > _MAX_INTEGER_BITS:  # Python refuses to write one of more than 4300 digits into any message
        raise yaml.YAMLError(f"an integer of more than 60 digits {node.start_mark}")
    return value


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def read(data: bytes) -> Any:
    """Return the one document in ``data``; one of ``FAULTS`` for anything else, or beyond the bounds."""
    return _Loader(data).get_single_data()
