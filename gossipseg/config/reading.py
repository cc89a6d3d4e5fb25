"""YAML text to plain values, with the overrides of environment and flags."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from gossipseg.errors import ConfigError
from gossipseg.yamlbounds import MAX_DEPTH, TooLarge, check_bounds, check_key, read_bounded

FILE_VERSION = 1
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """YAML 1.2's plain values: `off` and `no` are text, `1e-3` is a number, `10:30` is text."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$",
        list("-+0123456789."),
    ),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass(frozen=True)
class Source:
    """The origin of values: a file, and what overrides it. Makes the errors that name the origin."""

    path: Path
    raw: dict[str, Any]
    overridden: Mapping[str, str] = field(default_factory=dict)
    """Dotted key → the variable or flag that set it."""

    def error(
        self, problem: str, key: str | None = None, value: object = None, remedy: str = ""
    ) -> ConfigError:
        """A ConfigError that names the variable or flag that set the value, else the file."""
        return ConfigError(problem, file=self.place(key), key=key, value=value, remedy=remedy)

    def place(self, key: str | None) -> str:
        """The origin of a key's value."""
        return self.overridden.get(key or "", str(self.path))

    def unknown(self, key: str, remedy: str) -> ConfigError:
        """The error about an unknown key; FOO__BAR=1 sets foo.bar, and foo is unknown."""
        within = (origin for name, origin in self.overridden.items() if name.startswith(f"{key}."))
        place = self.overridden.get(key) or next(within, str(self.path))
        return ConfigError("unknown key", file=place, key=key, remedy=remedy)

    def given(self, key: str) -> Any:
        """The value as it was written, or None where the key is missing."""
        node: Any = self.raw
        for part in key.split("."):
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict):
                node = node.get(part, node.get(part + "_"))
            else:
                return None
        return node


class _DuplicateKey(Exception):
    def __init__(self, key: str, first_line: int, line: int) -> None:
        super().__init__(key)
        self.key, self.first_line, self.line = key, first_line, line


def _refuse_duplicates(node: Any, prefix: str = "") -> None:
    """Refuse equal keys: PyYAML silently keeps the last one, but an operator means one of them."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _refuse_duplicates(item, f"{prefix}{i}.")
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        mark = (key.tag, key.value)
        line = key.start_mark.line + 1
        check_key(key.tag, key.value, line)
        if mark in lines:
            raise _DuplicateKey(f"{prefix}{key.value}", lines[mark], line)
        lines[mark] = line
        _refuse_duplicates(value, f"{prefix}{key.value}.")


def parse_yaml(text: str) -> Any:
    """Plain values of one YAML document. Raises yaml.YAMLError, TooLarge or _DuplicateKey."""
    check_bounds(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        _refuse_duplicates(node)
        return None if node is None else loader.construct_document(node)
    except (AttributeError, LookupError, TypeError, ArithmeticError):  # `!!bool maybe`, `!!timestamp soon`
        raise ValueError("a tag (!!) on a value that is none of its kind") from None
    finally:
        loader.dispose()


def read_text(path: Path) -> str:
    """The file as UTF-8 text (a byte-order mark is dropped). Raises ConfigError."""
    try:
        data = read_bounded(path)
    except TooLarge as e:
        raise ConfigError(e.problem, file=path, remedy=e.remedy) from None
    except FileNotFoundError:
        raise ConfigError(
            "no such file",
            file=path,
            remedy="`gossipctl init` writes a site.yaml, and --config gives its path. peers.yaml is the "
            "federation's, the same at all sites; its path is the key `peers` of site.yaml, and "
            "`gossipctl init --federation` begins a new one.",
        ) from None
    except IsADirectoryError:
        raise ConfigError(
            "is a folder, not a file", file=path, remedy="Give the path of the file inside it."
        ) from None
    except OSError as e:
        raise ConfigError(
            f"cannot be read: {e.strerror}", file=path, remedy="Check its owner and permissions."
        ) from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError("is UTF-16 text", file=path, remedy="Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ConfigError(
            f"is not UTF-8 text: byte 0x{data[e.start]:02x} in line {line}",
            file=path,
            remedy="Save it as UTF-8.",
        ) from None


def read_mapping(path: Path, text: str | None = None) -> dict[str, Any]:
    """The file's top-level mapping; `text` replaces its contents. Raises ConfigError."""
    text = read_text(path) if text is None else text
    try:
        raw = parse_yaml(text)
    except _DuplicateKey as e:
        raise ConfigError(
            f"this key appears twice (lines {e.first_line} and {e.line})",
            file=path,
            key=e.key,
            remedy="Remove one of the two.",
        ) from None
    except TooLarge as e:
        raise ConfigError(e.problem, file=path, remedy=e.remedy) from None
    except (yaml.YAMLError, ValueError) as e:  # ValueError: an explicit tag on a bad value
        raise _yaml_error(e, path, text) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            "is empty" if raw is None else "is not a YAML mapping of keys to values",
            file=path,
            remedy="See peers.yaml in the source of gossipseg for an example.",
        )
    version = raw.get("version", FILE_VERSION)
    if version != FILE_VERSION or isinstance(version, bool):
        raise ConfigError(
            "this gossipseg reads file version 1 only",
            file=path,
            key="version",
            value=version,
            remedy="Upgrade gossipseg, or write version: 1.",
        )
    return raw


def _yaml_error(e: Exception, path: Path, text: str) -> ConfigError:
    mark = getattr(e, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    problem = str(getattr(e, "problem", None) or e)
    remedy = "Mend that line."
    line = text.splitlines()[mark.line] if mark is not None and mark.line < len(text.splitlines()) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        remedy = "Indent with spaces; YAML allows no tabs."
    elif "not allowed" in problem or "could not find expected ':'" in problem:
        remedy = "Check its indentation, and put text that holds `: ` or `#` in quotes."
    return ConfigError(f"is not valid YAML{where}: {problem}", file=path, remedy=remedy)


def set_dotted(raw: dict[str, Any], key: str, text: str, origin: str, *, is_text: bool) -> None:
    """Set a dotted key. The text is read as YAML, unless the key holds text: then `7` is no number."""
    *parents, last = key.split(".")
    if len(parents) >= MAX_DEPTH:
        raise ConfigError(
            f"names a key {len(parents)} sections deep",
            file=origin,
            remedy="Correct the name of the key.",
        )
    node = raw
    for part in parents:
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise ConfigError(
                f"{part} is a plain value, not a section",
                file=origin,
                key=key,
                value=text,
                remedy="Correct the name of the key.",
            )
    if is_text and text:
        node[last] = text
        return
    try:
        node[last] = parse_yaml(text)
    except TooLarge as e:
        raise ConfigError(e.problem, file=origin, key=key, remedy=e.remedy) from None
    except (yaml.YAMLError, ValueError, _DuplicateKey):
        node[last] = text
