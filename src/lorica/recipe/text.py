"""Recipe text: YAML 1.2's plain values, with what lets a file mean two things refused.

Read     true false null, integers, decimals and `2e-4` as numbers; `yes`, `on` and `2026-01-01` stay text
Refused  duplicate keys (the second would win in silence), anchors and aliases, tags, keys that are not text
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode

from lorica.errors import RecipeError

CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", list("-+.0123456789")),
}


class Reader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (yaml declares it so)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):
            raise ConstructorError(None, None, "anchors and aliases are not read; write it out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if not isinstance(key, str):
                raise ConstructorError(None, None, f"the key {key!r} is not text; quote it", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: Any) -> int:
        return int(self.construct_scalar(node))


class Writer(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> Any:
        """Unprintable characters are escaped: some of them end a line in plain text."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


Writer.add_representer(str, Writer.represent_str)
Reader.add_constructor("tag:yaml.org,2002:int", Reader.construct_int)
for kind, (pattern, first) in CORE.items():
    for side in (Reader, Writer):
        side.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"^(?:{pattern})$"), first)


def read(text: str, where: str) -> Any:
    """The value of a YAML text.  Raises `RecipeError` naming `where` and the line."""
    try:
        return yaml.load(text, Loader=Reader)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise RecipeError(f"{place}: {error.problem or 'is not YAML'}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: is not YAML: {str(error).splitlines()[0]}") from error


def write(value: Any) -> str:
    """YAML that `read` gives back as the same value; one level of a mapping a line, lists of plain values inline."""
    return yaml.dump(value, Dumper=Writer, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
