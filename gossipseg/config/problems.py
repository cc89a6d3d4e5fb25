"""pydantic's validation errors in the operator's words: key, value, nearest valid name, remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gossipseg.algos.params import names, why_broken
from gossipseg.config.files import FederationFile, SiteFile
from gossipseg.config.reading import Source
from gossipseg.errors import ConfigError

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument", "invalid_key")
_TAGS = {*names(), "str", "list[str]", "tuple[str, ...]"}
_FILES = {"peers.yaml": FederationFile, "site.yaml": SiteFile}

_WORDS = {
    "string_type": ("must be text", "Put it in quotes."),
    "int_type": ("must be a whole number", "Write a whole number."),
    "int_parsing": ("must be a whole number", "Write a whole number, without quotes or units."),
    "int_from_float": ("must be a whole number", "Write a whole number."),
    "float_type": ("must be a number", "Write a number."),
    "float_parsing": ("must be a number", "Write a number, without quotes or units."),
    "bool_type": ("must be true or false", "Write true or false."),
    "bool_parsing": ("must be true or false", "Write true or false."),
    "list_type": ("must be a list", "Write it as [a, b], or as lines that begin with `- `."),
    "tuple_type": ("must be a list", "Write it as [a, b]."),
    "too_short": ("has too few items", "Add what is missing."),
    "too_long": ("has too many items", "Remove what is too much."),
    "dict_type": ("must be a section of keys and values", "Write its keys indented below it."),
    "dataclass_type": ("must be a section of keys and values", "Write its keys indented below it."),
    "model_attributes_type": ("must be a section of keys and values", "Write its keys indented below it."),
    "union_tag_not_found": ("this key is missing", ""),
    "missing_argument": ("this key is missing", ""),
    "missing": ("this key is missing", ""),
}
_PATTERNS = {
    "name": "Use lower-case letters, digits, - and _; at most 63, the first a letter or digit.",
    "site": "Use lower-case letters, digits, - and _; at most 63, the first a letter or digit.",
    "federation": "Use at most 63 printable characters, with no blank at either end.",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """ "Did you mean `x`?", or nothing where no known name is near."""
    by_lower = {k.lower(): k for k in known}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"Did you mean `{by_lower[match[0]]}`?" if match else ""


def validate(kind: Any, source: Source) -> Any:
    """The file's values as `kind`. Raises ConfigError about the most important error."""
    try:
        return adapter(kind).validate_python(source.raw)
    except ValidationError as e:
        raise _translate(e, kind, source) from None


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's validator for a dataclass (building one takes milliseconds)."""
    return TypeAdapter(kind)


@cache
def keys_of(kind: Any) -> frozenset[str]:
    """Dotted keys of a file, two levels deep."""
    return frozenset(_all_keys(kind))


def takes_text(kind: Any, key: str) -> bool:
    """Whether the field at a dotted key holds text."""
    *parents, last = key.split(".")
    node = _resolve(_schema_at(kind, tuple(parents)), kind).get("properties", {}).get(last, {})
    options = node.get("anyOf", [node])
    return "string" in {o.get("type") for o in options} and not {"integer", "number", "boolean"} & {
        o.get("type") for o in options
    }


def _translate(e: ValidationError, kind: Any, source: Source) -> ConfigError:
    errors = e.errors(include_url=False)
    first = next((x for x in errors if x["type"] in _UNKNOWN), errors[0])
    loc = tuple(first["loc"])
    shown = [_documented(str(p)) for i, p in enumerate(loc) if not (i > 0 and str(p) in _TAGS)]
    shown = [p for p in shown if p != "[key]"]
    if first["type"] == "union_tag_not_found":
        shown.append("name")
    key = ".".join(shown)
    if first["type"] in _UNKNOWN:
        return source.unknown(key, _unknown_remedy(shown, loc, kind))
    value = first.get("input")
    if first["type"].startswith(("missing", "union_tag_not_found")):
        return source.error("this key is missing", key, None, _missing_remedy(first))
    if value is None:
        return source.error(
            "has no value", key, None, "Give it one; a key that has a default may also be removed."
        )
    options = _options(first)
    if options:
        listed = ", ".join(options)
        remedy = nearest(str(value), options)
        if first["type"] == "union_tag_invalid":
            key, value = f"{key}.name", value.get("name") if isinstance(value, dict) else value
            remedy = nearest(str(value), options)
            if why := why_broken(str(value)):
                problem = f"the package that brings this algorithm cannot be loaded: {why}"
                return source.error(problem, key, value, "Correct or update that package.")
        return source.error(f"is not one of {listed}", key, value, remedy or f"Choose one of {listed}.")
    if first["type"] == "string_pattern_mismatch":
        return source.error("is not a valid name", key, value, _PATTERNS.get(shown[-1], "Correct the name."))
    if bound := _bound(first):
        return source.error(f"must be {bound}", key, value, "Correct the number.")
    problem, remedy = _WORDS.get(first["type"], (first["msg"], "Correct the value."))
    return source.error(problem, key, value, remedy)


def _bound(error: Any) -> str:
    """The violated bound of a number, in the words of ranges.Range; empty for other errors."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [f"{words[name]} {limit:g}" for name, limit in error.get("ctx", {}).items() if name in words]
    return "finite" if error["type"] == "finite_number" else " and ".join(found)


def _documented(name: str) -> str:
    """The key in the file: `lambda` is a Python keyword, so the field is lambda_."""
    return name.removesuffix("_")


def _options(error: Any) -> list[str]:
    context = error.get("ctx", {})
    text = context.get("expected_tags") or (
        context.get("expected", "") if error["type"] == "literal_error" else ""
    )
    return [word.strip("'") for word in re.findall(r"'[^']*'|[\w.]+", text.replace(" or ", " "))]


def _missing_remedy(error: Any) -> str:
    if error["type"] == "union_tag_not_found":
        return f"Name the algorithm: {', '.join(names())}."
    return "Add it; docs/reference says what it means."


def _unknown_remedy(shown: list[str], loc: tuple[Any, ...], kind: Any) -> str:
    here = [_documented(k) for k in _known_keys(kind, loc[:-1])]
    if loc[:-1] == ("membership",):
        here.append("preset")
    near = nearest(shown[-1], here)
    if near:
        return near
    for file, other in _FILES.items():
        for key in _all_keys(other):
            if key.rsplit(".", 1)[-1] == shown[-1]:
                where = "" if other is kind else f" in {file}"
                return f"Did you mean `{key}`{where}?"
    return f"Known keys here: {', '.join(here)}."


# ---------------------------------------------------------------- walking the schema


@cache
def _schema(kind: Any) -> Any:
    return adapter(kind).json_schema()


def _resolve(node: Any, kind: Any) -> Any:
    """What a reference leads to, be it that of a section which may be missing."""
    sections = [option for option in node.get("anyOf", ()) if "$ref" in option]
    if len(sections) == 1:
        node = sections[0]
    while "$ref" in node:
        node = _schema(kind)["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _schema_at(kind: Any, loc: tuple[Any, ...]) -> Any:
    node: Any = _schema(kind)
    for part in loc:
        node = _resolve(node, kind)
        if isinstance(part, int):
            node = node.get("items", {})
        elif "discriminator" in node:
            reference = node["discriminator"]["mapping"].get(part)
            node = {"$ref": reference} if reference else {}
        else:
            node = node.get("properties", {}).get(part, {})
    return node


def _known_keys(kind: Any, loc: tuple[Any, ...]) -> Iterator[str]:
    """Names of the fields of the dataclass reached from `kind` by the path `loc`."""
    yield from _resolve(_schema_at(kind, loc), kind).get("properties", {})


def _all_keys(kind: Any) -> Iterator[str]:
    """Dotted keys of a file, two levels deep."""
    for name, node in _schema(kind)["properties"].items():
        yield name
        for inner in _resolve(node, kind).get("properties", {}):
            yield f"{name}.{_documented(inner)}"
