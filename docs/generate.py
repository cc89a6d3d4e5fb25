"""Writes docs/reference/ from the code: settings, commands, events, reason codes, metrics, exit codes.

    python docs/generate.py            writes the pages
    python docs/generate.py --check    ends with 1 where a page is not what would be written

Settings are described at their fields, commands at their functions, metrics in their table. What codes and
kinds of events mean stands in meanings.yaml, whose keys must be those of the code. tests/test_reference.py
compares.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import inspect
import json
import math
import os
import re
import sys
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin
from unittest import mock

import typer
import yaml

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(__file__).resolve().parent / "reference"
PACKAGE = ROOT / "gossipseg"
NONE = type(None)
SHARED_BY = 10
"""Options that this many commands have are described once."""
WRITTEN = "<!-- Written by docs/generate.py from the code: change it there. -->"


def main() -> int:
    """Write the pages, or compare them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page differs")
    args = parser.parse_args()
    stale = [name for name, text in pages().items() if not _same(name, text)]
    if args.check:
        for name in stale:
            print(
                f"docs/reference/{name} is not what docs/generate.py writes: run `make docs`", file=sys.stderr
            )
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)
    return 0


def pages() -> dict[str, str]:
    """File name → text of every page."""
    meanings = yaml.safe_load((ROOT / "docs" / "meanings.yaml").read_text())
    return {
        "peers-yaml.md": peers_yaml(),
        "site-yaml.md": site_yaml(),
        "commands.md": commands(),
        "events.md": events(meanings),
        "reason-codes.md": reason_codes(meanings),
        "metrics.md": metrics(),
        "exit-codes.md": exit_codes(),
    }


def _same(name: str, text: str) -> bool:
    path = REFERENCE / name
    return path.is_file() and path.read_text() == text


# ---------------------------------------------------------------- Markdown


def page(title: str, *parts: str) -> str:
    """A page of paragraphs, lists and tables."""
    return "\n\n".join([f"# {title}", WRITTEN, *(part.strip("\n") for part in parts if part)]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def code(text: object) -> str:
    """In the font of code; nothing for nothing."""
    return f"`{text}`" if text not in ("", None) else ""


def one_line(text: str) -> str:
    """A docstring as one line."""
    return " ".join(text.split())


def for_yaml(text: str) -> str:
    """A field's docstring in the words of the file: null for None, links for the pages it cites."""
    text = re.sub(r"\bNone\b", "`null`", one_line(text))
    return re.sub(r"docs/(\w+)/([\w-]+)\.md(?: (§\d))?", lambda m: _link(m[1], m[2], m[3] or ""), text)


def _link(folder: str, name: str, section: str) -> str:
    return f"[{name.replace('-', ' ')}{' ' + section if section else ''}](../{folder}/{name}.md)"


# ---------------------------------------------------------------- what the code says of itself


def defined(name: str, part: str) -> Any:
    """The value of a top-level name, wherever in a part of the package it stands: modules move."""
    for path in sorted((PACKAGE / part).rglob("*.py")):
        if re.search(rf"^{name}\b[^\n(]*=", path.read_text(), re.MULTILINE):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            return getattr(importlib.import_module(dotted), name)
    raise LookupError(f"gossipseg/{part} defines no {name}")


def field_docs(kind: type) -> dict[str, str]:
    """Field → the docstring below it, those of base classes included."""
    docs: dict[str, str] = {}
    for cls in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                text = after.value if isinstance(after, ast.Expr) else None
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[statement.target.id] = for_yaml(text.value)
    return docs


def _sources(*parts: str) -> list[str]:
    """The text of each module of these parts of the package."""
    return [path.read_text() for part in parts for path in sorted((PACKAGE / part).rglob("*.py"))]


def _noted() -> set[str]:
    """The kinds that calls of note() name outright."""
    found = set()
    for text in _sources("core", "daemon"):
        for node in ast.walk(ast.parse(text)) if "note" in text else ():
            if isinstance(node, ast.Call) and node.args and _called(node) in ("note", "note_seldom"):
                found |= set(_outright(node.args[0]))
    return found


def _called(call: ast.Call) -> str:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return str(name).lstrip("_")


def _outright(argument: ast.expr) -> Iterator[str]:
    """The strings that an argument may be: one, or either side of a condition."""
    if isinstance(argument, ast.IfExp):
        yield from _outright(argument.body)
        yield from _outright(argument.orelse)
    elif isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value


def _must_agree(what: str, in_code: Iterable[str], described: Iterable[str]) -> None:
    """Raise ValueError where meanings.yaml has other keys than the code."""
    here, there = set(in_code), set(described)
    if here != there:
        raise ValueError(
            f"docs/meanings.yaml, {what}: missing {sorted(here - there)}, too many {sorted(there - here)}"
        )


# ---------------------------------------------------------------- settings


@dataclasses.dataclass(frozen=True)
class Section:
    """One mapping of a YAML file: its dotted name, its class, and the text below its heading."""

    name: str
    kind: type
    text: str
    heading: str = ""
    keys: tuple[str, ...] | None = None
    """Those that are shown; None: all."""


def peers_yaml() -> str:
    """Every key of peers.yaml."""
    from gossipseg.config import FederationFile
    from gossipseg.core.params import MEMBERSHIP_PRESETS

    sections = list(_sections(FederationFile, "", "The keys at the top of the file."))
    parts = [_section(section) for section in sections if section.name != "algorithm"]
    at = (
        next(i for i, s in enumerate(s for s in sections if s.name != "algorithm") if s.name == "network") + 1
    )
    parts[at:at] = _algorithms(FederationFile)
    presets = [(code(name), code(json.dumps(delta)) if delta else "the defaults above") for name, delta in
               MEMBERSHIP_PRESETS.items()]  # fmt: skip
    membership = next(i for i, text in enumerate(parts) if text.startswith("## membership"))
    parts[membership] += (
        "\n\n`membership.preset` sets several of these keys; a key that is written beside it goes "
    )
    parts[membership] += "before it.\n\n" + table(("preset", "sets"), presets)
    intro = (
        "`peers.yaml` is the same at every site. `gossipctl init --federation` writes a commented example. "
        "A key that is left out takes its default. An unknown key is refused. "
        "[Architecture](../design/architecture.md#the-files-of-a-site) says how the file is read, and "
        "[the handshake](../design/protocol.md#the-handshake) which keys are part of the contract."
    )
    return page("peers.yaml", intro, _units(), *parts)


def site_yaml() -> str:
    """Every key of site.yaml."""
    from gossipseg.config import ENV_PREFIX, SiteFile

    intro = (
        "`site.yaml` is one site's own. `gossipctl init` writes it. A key that is left out takes its "
        "default. An unknown key is refused. Relative paths are relative to the file."
    )
    order = (
        "A flag of `gossipsegd` goes before an environment variable, and that before the file. "
        f"`{ENV_PREFIX}DEVICE__THREADS=2` sets `device.threads`."
    )
    sections = _sections(SiteFile, "", "The keys at the top of the file.")
    return page("site.yaml", intro, order, _units(), *(_section(s) for s in sections))


def _units() -> str:
    return (
        "A key ends with its unit: `_s` seconds, `_bytes` bytes, `_mm` millimetres, `_hu` Hounsfield units. "
        "`null` means nothing."
    )


def _sections(kind: type, name: str, text: str) -> Iterator[Section]:
    """The file's top, then each mapping in it, depth first."""
    yield Section(name, kind, text)
    for field in dataclasses.fields(kind):
        for inner in _mappings(typing.get_type_hints(kind)[field.name]):
            dotted = f"{name}.{field.name}" if name else field.name
            yield from _sections(inner, dotted, _about(inner))


def _about(kind: type) -> str:
    return for_yaml(inspect.getdoc(kind) or "")


def _mappings(hint: Any) -> list[type]:
    """The dataclasses that a field may hold; those of an algorithm are shown by themselves."""
    found = [x for x in _alternatives(hint) if dataclasses.is_dataclass(x)]
    found += [x for a in _alternatives(hint) for x in get_args(a) if dataclasses.is_dataclass(x)]
    return [] if len(found) > 1 else typing.cast("list[type]", found)


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) is typing.Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [x for a in get_args(hint) for x in _alternatives(a)]
    return [hint]


def _algorithms(federation: type) -> list[str]:
    """A section for each algorithm that the package itself brings."""
    hints = _alternatives(typing.get_type_hints(federation, include_extras=True)["algorithm"])
    kinds = [kind for kind in hints if kind.__module__.startswith("gossipseg.")]
    field = next(f for f in dataclasses.fields(federation) if f.name == "algorithm")
    chosen = field.default_factory().name if callable(field.default_factory) else ""
    names = [kind.__dataclass_fields__["name"].default for kind in kinds]
    intro = (
        f"`algorithm.name` chooses one of: {', '.join(map(code, names))}. It is `{chosen}` unless set. "
        "[Equations](../design/equations.md) has what each computes. "
        "Installed packages may bring more ([extending](../ml/extending.md))."
    )
    coordinated = [kind for kind in kinds if kind.exchange == "rounds"]
    shared = _shared(coordinated)
    text = "These keys belong to every algorithm that exchanges under a coordinator: " + ", ".join(
        code(name) for name, kind in zip(names, kinds, strict=True) if kind in coordinated
    )
    first = Section("algorithm", coordinated[0], f"{text}.", "### Under a coordinator", tuple(shared))
    parts = ["## algorithm\n\n" + intro, _section(first)]
    for name, kind in zip(names, kinds, strict=True):
        exchange = {"none": "none", "gossip": "by gossip", "rounds": "under a coordinator"}
        text = f"{_about(kind)} Exchange: {exchange[kind.exchange]}."
        own = [
            f.name for f in dataclasses.fields(kind) if f.name != "name" and not _is_shared(f, kind, shared)
        ]
        parts.append(_section(Section("algorithm", kind, text, f"### {name}", tuple(own))))
    return parts


def _shared(kinds: Sequence[type]) -> dict[str, object]:
    """Key → default of the keys that all of these classes have; the default is the first one's."""
    every = [{f.name: f.default for f in dataclasses.fields(kind)} for kind in kinds]
    return {key: value for key, value in every[0].items() if key != "name" and all(key in x for x in every)}


def _is_shared(field: dataclasses.Field[Any], kind: Any, shared: Mapping[str, object]) -> bool:
    """Whether a key of an algorithm is as in the table of all coordinated ones."""
    return kind.exchange == "rounds" and field.name in shared and shared[field.name] == field.default


def _section(section: Section) -> str:
    heading = section.heading or ("## " + section.name if section.name else "## Top level")
    docs, hints = field_docs(section.kind), typing.get_type_hints(section.kind, include_extras=True)
    rows = []
    for field in dataclasses.fields(section.kind):
        hint, key = hints[field.name], field.name.removesuffix("_")
        if section.keys is not None and field.name not in section.keys:
            continue
        inner = _mappings(hint)
        text = docs.get(field.name) or (f"See [{key}](#{_anchor(section.name, key)})." if inner else "")
        if not text and key != "algorithm":
            raise ValueError(f"{section.kind.__name__}.{field.name} has no docstring below it")
        dotted = f"{section.name}.{key}" if section.name else key
        limits = _limits(hint)
        rows.append((code(dotted), _kind_of(hint), _default(field, bool(inner)), limits, text))
    if not rows:
        return f"{heading}\n\n{section.text} It has no keys of its own."
    return f"{heading}\n\n{section.text}\n\n{table(('key', 'type', 'default', 'bounds', 'meaning'), rows)}"


def _anchor(section: str, key: str) -> str:
    return f"{section}{key}".replace(".", "")


def _kind_of(hint: Any) -> str:
    """A type in words."""
    names = [_one_kind(x) for x in _alternatives(hint)]
    return " or ".join(dict.fromkeys(names))


def _one_kind(hint: Any) -> str:
    plain = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "true or false",
        NONE: "null",
        Any: "any",
    }
    if hint in plain:
        return plain[hint]
    if dataclasses.is_dataclass(hint):
        return "section"
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(code(value) for value in inner)
    if origin in (list, tuple):
        return "list of sections" if dataclasses.is_dataclass(inner[0]) else f"list of {_kind_of(inner[0])}s"
    if origin is dict:
        return f"map of {_kind_of(inner[0])} to {_kind_of(inner[1])}"
    raise TypeError(f"no word for {hint}")


def _default(field: dataclasses.Field[Any], section: bool) -> str:
    if field.default is not dataclasses.MISSING:
        return code(json.dumps(field.default, ensure_ascii=False))
    if field.default_factory is dataclasses.MISSING:
        return "**required**"
    made = field.default_factory()
    return "" if section or dataclasses.is_dataclass(made) else code(json.dumps(made))


def _limits(hint: Any) -> str:
    """The bounds of a number, as its field states them."""
    if any(get_origin(x) is Literal for x in _alternatives(hint)):
        return ""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [
        f"{word} {_number(getattr(constraint, at))}"
        for constraint in _constraints(hint)
        for at, word in words.items()
        if _has(constraint, at)
    ]
    from gossipseg.bounds import Range

    for rule in (r for r in _constraints(hint) if isinstance(r, Range)):
        low, high = ("above" if rule.low_open else "at least"), ("below" if rule.high_open else "at most")
        found += [f"{low} {_number(rule.low)}"] if math.isfinite(rule.low) else []
        found += [f"{high} {_number(rule.high)}"] if math.isfinite(rule.high) else []
    return " and ".join(found)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _has(constraint: object, at: str) -> bool:
    return getattr(constraint, at, None) is not None


def _constraints(hint: Any) -> Iterator[object]:
    """What pydantic's Field() says at a field: its own metadata, whichever way it keeps them."""
    for extra in getattr(hint, "__metadata__", ()):
        yield from getattr(extra, "metadata", ()) or (extra,)


# ---------------------------------------------------------------- commands


def commands() -> str:
    """Every command and option of the three programs."""
    from gossipseg.ctl import main as ctl
    from gossipseg.lab import main as lab

    intro = "Three programs are installed. Each says the same of itself with `--help`."
    shared = (
        "A command ends with 0 where all is well; [exit codes](exit-codes.md) lists the others. "
        "With `--json` it prints one JSON document with `schema`, an error as well."
    )
    parts = ["## gossipsegd", *_daemon()]
    parts += ["## gossipctl", *_program("gossipctl", ctl.build([]), [ctl.build([name]) for name in ctl.APPS])]
    parts += ["## gossiplab", *_program("gossiplab", lab.app, [])]
    return page("Commands", intro, shared, *parts)


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: its name with that of its program, its text, its options and arguments."""

    name: str
    text: str
    rows: tuple[tuple[str, str, str], ...]
    """(option or argument, default, meaning)."""


def _program(name: str, app: typer.Typer, apps: Sequence[typer.Typer]) -> list[str]:
    """All of a typer application's commands. `apps`: those of its groups that it imports only when named."""
    groups = [*app.registered_groups, *(group for other in apps for group in other.registered_groups)]
    named = {group.name for group in groups}
    found = [_command(name, c) for c in app.registered_commands if c.name not in named]
    found += [command for group in groups for command in _group(name, group)]
    counts = Counter(row for command in found for row in command.rows)
    shared = [row for row, count in counts.items() if count >= SHARED_BY]
    parts = [one_line(inspect.getdoc(getattr(app.registered_callback, "callback", None)) or "")]
    head = ("option or argument", "default", "meaning")
    if shared:
        parts += ["Many commands take these; below they are named alone.", table(head, shared)]
    for command in found:
        own = [row for row in command.rows if row not in shared]
        parts += [f"### {command.name}", command.text, f"    {_usage(command)}"]
        parts += [table(head, own)] if own else []
        also = [row[0] for row in command.rows if row in shared]
        parts += [f"Also: {', '.join(also)}."] if also else []
    return parts


def _usage(command: Command) -> str:
    names = [row[0].strip("`") for row in command.rows]
    arguments = [name for name in names if not name.startswith("-")]
    return " ".join([command.name, *arguments, *(["[OPTIONS]"] if len(names) > len(arguments) else [])])


def _daemon() -> list[str]:
    """gossipsegd's options, from its own parser, caught as it begins to read the command line."""
    from gossipseg.daemon import main as daemon

    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, *args: object) -> None:
        caught.append(parser)
        raise StopIteration

    without = {name: value for name, value in os.environ.items() if not name.startswith("GOSSIPSEG_")}
    with (
        mock.patch.dict(os.environ, without, clear=True),
        mock.patch.object(argparse.ArgumentParser, "parse_args", catch),
        contextlib.suppress(StopIteration),
    ):
        daemon.parse([])
    rows = []
    for action in caught[0]._actions:
        value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
        shown = f"{', '.join(action.option_strings)} {value}".strip()
        default = (
            action.default if isinstance(action.default, str) and action.default != argparse.SUPPRESS else ""
        )
        help_text = (
            "show program's version number and exit" if action.dest == "version" else action.help or ""
        )
        rows.append((code(shown), code(default), one_line(help_text)))
    return [one_line(caught[0].description or ""), table(("option", "default", "meaning"), rows)]


def _group(program: str, group: Any) -> list[Command]:
    """A command with commands of its own."""
    app, callback = group.typer_instance, group.typer_instance.registered_callback
    own = getattr(callback, "callback", None)
    found = [_described(f"{program} {group.name}", own, group.help)] if own is not None else []
    return found + [_command(f"{program} {group.name}", c) for c in app.registered_commands]


def _command(program: str, command: Any) -> Command:
    name = command.name or command.callback.__name__.replace("_", "-")
    return _described(f"{program} {name}", command.callback, command.help)


def _described(name: str, callback: Any, text: str | None) -> Command:
    hints = typing.get_type_hints(callback, include_extras=True)
    rows = []
    for parameter in inspect.signature(callback).parameters.values():
        hint = hints[parameter.name]
        info = next((x for x in getattr(hint, "__metadata__", ()) if hasattr(x, "param_decls")), None)
        if info is not None and not info.hidden:
            shown = _declared(parameter, hint, info)
            rows.append((code(shown), _value(parameter), one_line(info.help or "")))
    return Command(name, one_line(text or inspect.getdoc(callback) or ""), tuple(rows))


def _declared(parameter: inspect.Parameter, hint: Any, info: Any) -> str:
    """An option with its value, or an argument's name."""
    plain = get_args(hint)[0]
    if type(info).__name__ == "ArgumentInfo":
        shown = (info.metavar or parameter.name).upper()
        shown += "..." if get_origin(plain) is list else ""
        return shown if parameter.default is inspect.Parameter.empty else f"[{shown}]"
    flags = [x for x in (info.default, *info.param_decls) if isinstance(x, str) and x.startswith("-")]
    option = "--" + parameter.name.replace("_", "-")
    if bool in _alternatives(plain):
        return ", ".join(flags or [f"{option} / --no-{option[2:]}"])
    value = info.metavar or _value_name(plain)
    return f"{', '.join(flags or [option])} {value}"


def _value_name(hint: Any) -> str:
    kinds = [x for x in _alternatives(hint) if x is not NONE]
    inner = get_args(kinds[0])[0] if get_origin(kinds[0]) is list else kinds[0]
    return {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(inner, "TEXT")


def _value(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return "**required**"
    if parameter.default is True:
        return "on"
    return code(parameter.default) if parameter.default not in (None, False, "") else ""


# ---------------------------------------------------------------- events, reasons, metrics, exit codes


def events(meanings: Mapping[str, Any]) -> str:
    """Kinds of the event log and of the audit log."""
    log, audit = meanings["event log"], meanings["audit log"]
    described = {kind for group in log.values() for kind in group}
    if unknown := _noted() - described:
        raise ValueError(f"docs/meanings.yaml, event log: missing {sorted(unknown)}")
    made = {f"member_{x}" for x in ("alive", "suspect", "dead", "left")}
    made |= {f"visit_{x}" for x in ("merged", "refused", "kept_out")}
    everything = "".join(_sources("core", "daemon"))
    if gone := {kind for kind in described - made if f'"{kind}"' not in everything}:
        raise ValueError(f"docs/meanings.yaml, event log: too many {sorted(gone)}")
    kept = {*defined("NOTES", "daemon").values(), *defined("OWN_NOTES", "daemon")}
    own = {"audit_torn", "audit_gap", "audit_dropped"}
    _must_agree("audit log", kept | own, [kind for group in audit.values() for kind in group])
    return page(
        "Events",
        "## The event log",
        "`state_dir/events.jsonl` has one JSON object a line: `seq`, `t` (seconds), `event`, and what "
        "belongs to it, such as `site` and `reason`. `gossipctl events` shows the newest. Two files are "
        "kept, 8 MiB together.",
        *_groups(log, "event"),
        "## The audit log",
        "`state_dir/audit/audit.jsonl` has one line for each model sent, received, refused, merged or "
        "undone. Each line holds the hash of the one before. `gossipctl audit verify` checks the chain, "
        "`gossipctl audit show` reads it. [Monitoring](../admin/monitoring.md) says what the chain shows.",
        *_groups(audit, "event"),
    )


def reason_codes(meanings: Mapping[str, Any]) -> str:
    """Reasons of concern, and reasons of refusals."""
    from gossipseg.core.offences import verdict_is_offence

    remedies, concerns = defined("REMEDIES", "daemon"), meanings["concerns"]
    _must_agree("concerns", remedies, concerns)
    reasons, refusals = defined("REASONS", "daemon"), meanings["refusals"]
    _must_agree("refusals", reasons, [reason for group in refusals.values() for reason in group])
    offences, of_values = defined("OFFENCES", "core"), "The model's values"
    rows = [(code(name), concerns[name], remedy) for name, remedy in remedies.items()]
    parts = []
    for title, group in refusals.items():
        held = [r for r in group if r in offences or (title == of_values and verdict_is_offence(r))]
        lines = [(code(r), text, "yes" if r in held else "") for r, text in group.items()]
        parts += [f"### {title}", table(("code", "meaning", "offence"), lines)]
    return page(
        "Reason codes",
        "Codes are stable: scripts and alerts may rely on them.",
        "## Why a site is not well",
        "`gossipctl status` names these with a remedy, and ends with code 1. They stand under `concerns` in "
        "`gossipctl status --json`, and are the label of the metric `gossipseg_concern`. "
        "[Troubleshooting](../admin/troubleshooting.md) has the causes.",
        table(("code", "meaning", "what to do"), rows),
        "## Why a model or message is refused or lost",
        "`gossipctl exchanges`, both logs and the metric `gossipseg_refusals_total` name these. What a peer "
        "makes up counts as `other` in the metric. An *offence* counts against its sender; repeated ones "
        "lead to quarantine. A model that merely does worse here, or has grown away, is none: other sites' "
        "images differ.",
        *parts,
    )


def metrics() -> str:
    """Every metric of the endpoint."""
    described = defined("METRICS", "daemon")
    rows = [
        (code(name), m.kind, ", ".join(map(code, m.labels)), for_yaml(m.help))
        for name, m in described.items()
    ]
    return page(
        "Metrics",
        "With `metrics.port` in `site.yaml` the daemon serves these at `/metrics` on a loopback address. "
        "[Monitoring](../admin/monitoring.md) has the set-up, a dashboard and alert rules.",
        "Labels are bounded: `peer` and `site` are listed sites, `reason` is a code of "
        "[reason codes](reason-codes.md), or `other`.",
        table(("metric", "kind", "labels", "meaning"), rows),
        "Beside them stand the `process_…` metrics of the daemon's process; the worker is another one.",
    )


def _groups(groups: Mapping[str, Mapping[str, str]], head: str) -> Iterator[str]:
    for title, kinds in groups.items():
        yield f"### {title}"
        yield table((head, "meaning"), [(code(kind), text) for kind, text in kinds.items()])


def exit_codes() -> str:
    """Exit codes of the three programs."""
    from gossipseg import ends, errors

    known = {
        "EXIT_OK": "All is well.",
        "EXIT_USAGE": "The command line is wrong.",
        "EXIT_FAILED": "An error that nobody expected. `gossipctl status`: a reason for concern.",
    }
    texts: dict[int, list[str]] = {}
    for name, text in known.items():
        texts.setdefault(getattr(errors, name), []).append(text)
    for kind in _tree(errors.GossipsegError):
        if kind is not errors.GossipsegError and ("exit_code" in vars(kind) or kind is errors.LocalError):
            texts.setdefault(kind.exit_code, []).append(one_line(inspect.getdoc(kind) or ""))
    texts[ends.EXIT_INTERRUPTED] = ["Ended by Ctrl-C (`gossipctl`, `gossiplab`)."]
    names = {value: name for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert set(names) <= set(texts), "an exit code without a meaning"
    rows = [(code(number), " ".join(texts[number])) for number in sorted(texts)]
    return page(
        "Exit codes",
        "All programs use the same codes. An error says whose fault it was, and what to do next.",
        table(("code", "meaning"), rows),
        "The systemd unit does not start the daemon again after 2, 65 and 78, which do not mend themselves.",
    )


def _tree(kind: type[Any]) -> Iterator[Any]:
    """A class, and all that derive from it."""
    yield kind
    for inner in type.__subclasses__(kind):
        yield from _tree(inner)


if __name__ == "__main__":
    sys.exit(main())
