"""YAML text as plain data that remembers where each key was written, so that every complaint can name the line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import InputError


KeyPath = tuple[str | int, ...]


@dataclass
class Document:
    """
    Plain data and the place each of its keys came from.

    Args:
        name (`str`): What messages call the source: a file, or a built-in recipe.
        data (`Any`): Dictionaries, lists and scalars.
        sources (`dict[tuple, str]`):
            For the path of each key (`("base", "epochs")`), where it was written: `"demo.yaml, line 7"` or
            `"--set base.epochs=1"`.
    """

    name: str
    data: Any
    sources: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """Where `path`, or the nearest thing around it, was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.sources:
                return self.sources[path[:length]]
        return self.name

    def error(self, path: KeyPath, message: str) -> InputError:
        """The error to raise for what is wrong at `path`."""
        return InputError(f"{self.where(path)}: {message}")

    def get(self, path: KeyPath) -> Any:
        """The value at `path`; `KeyError` or `IndexError` where there is none."""
        value = self.data
        for key in path:
            if not isinstance(value, (dict, list)):
                raise KeyError(key)
            value = value[key]
        return value

    def set(self, path: KeyPath, value: Any, source: str) -> None:
        """Puts `value` at `path`, in place of what was there; missing dictionaries on the way are made."""
        parent = self.data
        for position, key in enumerate(path):
            if isinstance(parent, list):
                if not isinstance(key, int) or not 0 <= key < len(parent):
                    raise InputError(
                        f"{source}: '{dotted(path[:position])}' is a list of {len(parent)}; "
                        f"name one of its items by its number, from 0 to {len(parent) - 1}"
                    )
            elif not isinstance(parent, dict):
                raise InputError(f"{source}: '{dotted(path[:position])}' has no keys: its value is {parent!r}")
            if position == len(path) - 1:
                parent[key] = value
            else:
                if isinstance(parent, dict) and parent.get(key) is None:
                    parent[key] = {}
                parent = parent[key]
        self.sources = {known: text for known, text in self.sources.items() if known[: len(path)] != path}
        self.sources[path] = source

    def merge(self, other: Document, path: KeyPath) -> None:
        """Lays the dictionary at `path` of `other` over the data: dictionaries merge, all else is replaced."""
        for key_path, value in _leaves(other.get(path)):
            self.set(key_path, value, other.where(path + key_path))

    def copy(self) -> Document:
        return Document(self.name, _copy(self.data), dict(self.sources))


def parse(text: str, name: str, lines: bool = True) -> Document:
    """
    Reads YAML.

    Scalars follow YAML 1.2's core schema where YAML 1.1 surprises: `3e-5` is a number, `yes`, `no`, `on` and `off` are
    text, and so are dates and `1:30`.

    Args:
        text (`str`): The YAML text.
        name (`str`): What messages call it.
        lines (`bool`, *optional*, defaults to `True`): Whether messages name the line as well.

    Returns:
        `Document`: the data with the line of each key.

    Raises:
        `InputError`: for what is not YAML, with the line.
    """
    document = Document(name, None)

    def source(mark: yaml.Mark | None) -> str:
        return f"{name}, line {mark.line + 1}" if lines and mark else name

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            document.data = _construct(loader, node, (), document.sources, source, ())
    except yaml.MarkedYAMLError as error:
        where = source(error.problem_mark or error.context_mark)
        raise InputError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{name}: nested too deeply") from None
    return document


def read(path: Path, name: str | None = None) -> Document:
    """Reads a YAML file: [`parse`] with the file's name in the messages."""
    name = name or str(path)
    try:
        return parse(path.read_text(encoding="utf-8"), name)
    except UnicodeDecodeError:
        raise InputError(f"{name}: not a text file in UTF-8") from None
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None


def apply_override(document: Document, override: str) -> None:
    """
    Applies `key=value`: a dotted path (`training.epochs`, `path.0.task`) and a value in YAML.

    Raises:
        `InputError`: where there is no `=`, the value is not YAML, or the path leads through something without keys.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    source = f"--set {override}"
    if not equals or not key or not all(key.split(".")):
        raise InputError(f"{source}: expected key=value, for example --set training.epochs=1")
    path: KeyPath = ()
    for part in key.split("."):
        path += (int(part) if part.isdigit() and _is_list(document, path) else part,)
    document.set(path, parse(text, source, lines=False).data, source)


def dump(data: Any) -> str:
    """Plain data as YAML that [`parse`] reads back as the same data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def dotted(path: KeyPath) -> str:
    """`("base", "epochs")` as `base.epochs`."""
    return ".".join(str(key) for key in path)


def _is_list(document: Document, path: KeyPath) -> bool:
    try:
        return isinstance(document.get(path), list)
    except (KeyError, IndexError):
        return False


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, path + (key,))
    else:
        yield path, _copy(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}


class _Dumper(yaml.SafeDumper):
    # Text that any reader, of YAML 1.1 or 1.2, would take for something else is quoted.
    yaml_implicit_resolvers: dict = {
        first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


_NUMBERS = "-+.0123456789"
_SCALARS = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+", list(_NUMBERS)),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list(_NUMBERS),
    ),
]
for _class in (_Loader, _Dumper):
    for _tag, _pattern, _first in _SCALARS:
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def _construct(
    loader: _Loader,
    node: yaml.Node,
    path: KeyPath,
    sources: dict[KeyPath, str],
    source: Callable[[yaml.Mark], str],
    ancestors: tuple[yaml.Node, ...],
) -> Any:
    where = source(node.start_mark)
    if any(node is ancestor for ancestor in ancestors):
        raise InputError(f"{where}: the alias refers to something that holds it")
    ancestors += (node,)
    if isinstance(node, yaml.ScalarNode):
        try:
            return loader.construct_object(node)
        except ValueError as error:
            raise InputError(f"{where}: {node.value!r} is not a value: {error}") from None
    if isinstance(node, yaml.SequenceNode):
        items = []
        for number, item in enumerate(node.value):
            sources[path + (number,)] = source(item.start_mark)
            items.append(_construct(loader, item, path + (number,), sources, source, ancestors))
        return items
    data: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = source(key_node.start_mark)
        key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            shown = repr(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            raise InputError(f"{where}: a key must be text, not {shown}; quote it")
        if key in data:
            raise InputError(f"{where}: key '{key}' is given twice")
        sources[path + (key,)] = where
        data[key] = _construct(loader, value_node, path + (key,), sources, source, ancestors)
    return data
