"""Edits the list of sites in peers.yaml as text, so that comments and layout stay.

A round trip through ruamel.yaml rewrites lines that nobody asked to change: aligned values, `null`, escapes,
other indents, a dash on its own line, blanks in brackets (6 lines of the example peers.yaml).

Every edit is checked twice before the file is replaced. The new text must be a valid peers.yaml, and only the
intended entry may differ from the old values.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from gossipseg import config as configuration
from gossipseg.certificates import ends_at
from gossipseg.config.reading import parse_yaml
from gossipseg.errors import ConfigError
from gossipseg.store.atomic import atomic_write

_FIELDS = ("name", "address", "id", "certificate")


def read_certificate(path: Path) -> str:
    """A PEM file's text. Raises ConfigError."""
    try:
        text = path.read_text(encoding="ascii").strip() + "\n"
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"cannot be read: {getattr(e, 'strerror', None) or 'it is no text'}",
            file=path,
            remedy="Give the path of the site's cert.pem.",
        ) from None
    if "-----BEGIN" not in text:
        raise ConfigError("is no PEM file", file=path, remedy="Give the path of the site's cert.pem.")
    if "PRIVATE KEY" in text:
        raise ConfigError(
            "holds a private key",
            file=path,
            remedy="Give cert.pem. A key that has left its site is worthless: make a new identity there.",
        )
    return text


def read_valid_certificate(path: Path) -> str:
    """The same of a certificate that other sites will accept today. Raises ConfigError."""
    text = read_certificate(path)
    ended = datetime.fromtimestamp(ends_at(text), UTC)
    if ended <= datetime.now(UTC):
        raise ConfigError(
            f"expired on {ended:%Y-%m-%d}: no site would accept it",
            file=path,
            remedy="Give the site's present cert.pem; `gossipctl rotate` there makes a new one.",
        )
    return text


def add_site(path: Path, entry: Mapping[str, str]) -> None:
    """Append an entry (name, address, certificate text, perhaps id). Raises ConfigError, changing nothing."""
    text = _read(path)
    listed = _values(text, path).get("sites") or []
    names = [s.get("name") for s in listed if isinstance(s, dict)]
    if entry["name"] in names:
        raise ConfigError(
            "this site is listed already",
            file=path,
            key=f"sites.{names.index(entry['name'])}.name",
            value=entry["name"],
            remedy=f"Take it off first (`gossipctl peers remove --name {entry['name']}`), "
            "or list its second certificate during a rotation (`gossipctl peers certify`).",
        )
    _replace(path, text, with_entry(text, entry, path), [*listed, dict(entry)])


def remove_site(path: Path, name: str) -> None:
    """Remove an entry. Raises ConfigError, changing nothing."""
    text = _read(path)
    listed = _values(text, path).get("sites") or []
    index = _index_of(name, listed, path)
    _replace(path, text, without_entry(text, index, path), [s for i, s in enumerate(listed) if i != index])


def set_certificates(path: Path, name: str, pems: Sequence[str], site_id: str | None) -> None:
    """Replace the certificates of an entry, and its `id` where it has one. Raises ConfigError, changing
    nothing."""
    text = _read(path)
    listed = _values(text, path).get("sites") or []
    index = _index_of(name, listed, path)
    wanted = {**listed[index], "certificate": pems[0] if len(pems) == 1 else list(pems)}
    new = _with_value(text, index, "certificate", wanted["certificate"], path)
    if site_id is not None and "id" in wanted:
        wanted["id"] = site_id
        new = _with_value(new, index, "id", site_id, path)
    _replace(path, text, new, [wanted if i == index else s for i, s in enumerate(listed)])


def _index_of(name: str, listed: Sequence[Any], path: Path) -> int:
    names = [s.get("name") for s in listed if isinstance(s, dict)]
    if name not in names:
        raise ConfigError(
            "this site is not listed",
            file=path,
            key="sites",
            value=name,
            remedy=f"Listed: {', '.join(map(str, names)) or 'none'}.",
        )
    return names.index(name)


# ---------------------------------------------------------------- text


def with_entry(text: str, entry: Mapping[str, str], path: Path) -> str:
    """The text with an entry behind the last one."""
    lines = text.splitlines()
    key, value = _sites(text)
    if key is None:
        return _join([*lines, "", "sites:", *_entry_lines(entry, 2)], text)
    if isinstance(value, yaml.SequenceNode) and value.value:
        _require_block(value, path)
        end = _content_end(lines, value, len(value.value) - 1)
        new = _entry_lines(entry, value.start_mark.column)
        if any(not line.strip() for line in lines[value.start_mark.line : end]):
            new.insert(0, "")  # the entries above are set apart by blank lines
        return _join(lines[:end] + new + lines[end:], text)
    start, stop = value.start_mark, value.end_mark  # `sites:` or `sites: []`
    if stop.line == start.line and stop.column > start.column:
        line = lines[start.line]
        lines[start.line] = (line[: start.column] + line[stop.column :]).rstrip()
    at = key.end_mark.line + 1
    return _join(lines[:at] + _entry_lines(entry, 2) + lines[at:], text)


def without_entry(text: str, index: int, path: Path) -> str:
    """The text without the entry of that index, and without the comment lines right above it."""
    lines = text.splitlines()
    key, value = _sites(text)
    assert key is not None
    _require_block(value, path)
    start, end = _dash_line(lines, value.value[index]), _content_end(lines, value, index)
    if len(value.value) == 1:
        head = lines[key.end_mark.line]
        lines[key.end_mark.line] = head[: key.end_mark.column] + ": []" + head[key.end_mark.column + 1 :]
    elif index > 0:
        while _is_comment(lines[start - 1]) and _indent(lines[start - 1]) == value.start_mark.column:
            start -= 1
    if not lines[start - 1].strip() and (end == len(lines) or not lines[end].strip()):
        start -= 1  # the blank line before it
    return _join(lines[:start] + lines[end:], text)


def _with_value(text: str, index: int, field: str, value: str | list[str], path: Path) -> str:
    """The text with another value for one key of an entry; a key that is not there comes last."""
    lines = text.splitlines()
    _, sites = _sites(text)
    _require_block(sites, path)
    item = sites.value[index]
    _require_block(item, path)
    column, end = item.start_mark.column, _content_end(lines, sites, index)
    place = next((i for i, (key, _) in enumerate(item.value) if key.value == field), None)
    if place is None:
        return _join(lines[:end] + _field_lines(field, value, column) + lines[end:], text)
    start = item.value[place][0].start_mark.line
    if place + 1 < len(item.value):
        end = item.value[place + 1][0].start_mark.line
        while not lines[end - 1].strip() or _is_outer_comment(lines[end - 1], column):
            end -= 1
    new = _field_lines(field, value, column)
    new[0] = lines[start][:column] + new[0][column:]  # the dash, where this key is the entry's first
    return _join(lines[:start] + new + lines[end:], text)


def _field_lines(field: str, value: str | list[str], column: int) -> list[str]:
    pad = " " * column
    if isinstance(value, str):
        return [pad + line[4:] for line in _entry_lines({field: value}, 2)]
    texts = [[pad + "  - |", *(f"{pad}    {line}" for line in text.splitlines())] for text in value]
    return [f"{pad}{field}:", *(line for one in texts for line in one)]


def _entry_lines(entry: Mapping[str, str], indent: int) -> list[str]:
    lines = []
    for field in (f for f in _FIELDS if f in entry):
        value = entry[field]
        if "\n" in value:
            lines += [f"{field}: |", *[f"  {line}" for line in value.splitlines()]]
        else:
            scalar = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
            lines.append(f"{field}: {scalar.removesuffix('...' + chr(10)).strip()}")
    pad = " " * indent
    return [pad + ("- " if i == 0 else "  ") + line for i, line in enumerate(lines)]


def _sites(text: str) -> tuple[Any, Any]:
    """Key and value nodes of the top-level `sites`, or (None, None)."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return next(((k, v) for k, v in pairs if k.value == "sites"), (None, None))


def _require_block(value: Any, path: Path) -> None:
    if value.flow_style:
        raise ConfigError(
            "is written in brackets; gossipctl edits lists of lines that begin with `- ` only",
            file=path,
            key="sites",
            remedy="Edit this list by hand, or write it as lines first.",
        )


def _content_end(lines: list[str], items: Any, index: int) -> int:
    """Number of the line after the last one of an entry."""
    if index + 1 < len(items.value):
        end = _dash_line(lines, items.value[index + 1])
    else:
        end = min(items.end_mark.line + (1 if items.end_mark.column else 0), len(lines))
    dash = items.start_mark.column
    while not lines[end - 1].strip() or _is_outer_comment(lines[end - 1], dash):
        end -= 1  # comments further to the right than the dash belong to the entry
    return end


def _dash_line(lines: list[str], item: Any) -> int:
    line: int = item.start_mark.line
    while not lines[line].lstrip().startswith("-"):
        line -= 1  # the entry begins on the line behind its dash
    return line


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _is_outer_comment(line: str, column: int) -> bool:
    return _is_comment(line) and _indent(line) <= column


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _join(lines: list[str], like: str) -> str:
    newline = "\r\n" if "\r\n" in like else "\n"
    return newline.join(lines) + newline


# ---------------------------------------------------------------- the file


def _read(path: Path) -> str:
    return configuration.read_text(path)


def _values(text: str, path: Path) -> dict[str, Any]:
    configuration.load_federation(path, text=text)  # an edit of a file with a mistake would hide it
    values = parse_yaml(text)
    return values if isinstance(values, dict) else {}


def _replace(path: Path, old: str, new: str, sites: list[Any]) -> None:
    configuration.load_federation(path, text=new)
    wanted = {**_values(old, path), "sites": sites}
    if parse_yaml(new) != wanted:
        raise ConfigError(
            "is laid out in a way that gossipctl cannot edit safely",
            file=path,
            key="sites",
            remedy="Edit the list by hand. Nothing was changed.",
        )
    target = path.resolve()  # a link to a file that is under version control stays a link
    with target.open("rb") as file:
        mark = codecs.BOM_UTF8 if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else b""
    atomic_write(target, mark + new.encode())
