"""How the house stands: folders, imports, names, functions, circles, sentences. One table; tests nothing.

python tests/bench/measure_house.py [--json] [ROOT]
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACKAGE = "gossipseg"
LONG_SENTENCE = 35  # words
GENERATED = ("_pb2.py", "_pb2_grpc.py", "_pb2.pyi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    private = private_reads(args.root)
    code = {**measure_code(args.root), "private reads of tests": [private.total(), len(private)]}
    found = {"code": code, "prose": measure_prose(args.root)}
    print(json.dumps(found, indent=2) if args.json else _table(found))


# ---------------------------------------------------------------- code


def measure_code(root: Path) -> dict[str, Any]:
    """Of the package without what protoc wrote."""
    files = sorted(p for p in (root / PACKAGE).rglob("*.py") if not p.name.endswith(GENERATED))
    trees = {p: ast.parse(p.read_text()) for p in files}
    lines = {p: len(p.read_text().splitlines()) for p in files}
    folders = Counter(str(p.parent.relative_to(root)) for p in files if p.name != "__init__.py")
    functions = [f for p in files for f in _functions(trees[p], p.relative_to(root))]
    imports = sum(_span(node) for tree in trees.values() for node in ast.walk(tree) if _is_import(node))
    classes = Counter(c for tree in trees.values() for c in _public_classes(tree))
    modules = Counter(p.name for p in files if p.name not in ("__init__.py", "__main__.py"))
    longest, where = max(functions)
    return {
        "modules": len(files),
        "lines": sum(lines.values()),
        "modules per folder": dict(folders.most_common(8)),
        "import lines, %": round(100 * imports / sum(lines.values()), 1),
        "class names used twice": sorted(c for c, n in classes.items() if n > 1),
        "file names used twice": sum(n > 1 for n in modules.values()),
        "longest file": max((n, str(p.relative_to(root))) for p, n in lines.items()),
        "longest function": [longest, where],
        "modules in circles": _circles(root, trees),
    }


def private_reads(root: Path) -> Counter[str]:
    """Reads and writes, file by file, of attributes that begin with `_` and are not a test's own.

    Two names count as its own: self and cls. Names in strings, as for monkeypatch, are not seen.
    """
    found: Counter[str] = Counter()
    for path in sorted((root / "tests").rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        if n := sum(_is_private(node) for node in nodes):
            found[str(path.relative_to(root))] = n
    return found


def _is_private(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
        return False
    return not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))


def _is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def _span(node: Any) -> int:
    return int(node.end_lineno - node.lineno + 1)


def _functions(tree: ast.Module, path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _span(node), f"{path}:{node.name}"


def _public_classes(tree: ast.Module) -> list[str]:
    return [n.name for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]


def _circles(root: Path, trees: dict[Path, ast.Module]) -> list[list[str]]:
    """Groups of modules that need each other, late imports and those for types alone counted in."""
    names = {_module(root, p): p for p in trees}
    arrows = {m: _needs(m, trees[p], set(names)) for m, p in names.items()}
    return sorted(sorted(group) for group in _strong(arrows) if len(group) > 1)


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _needs(module: str, tree: ast.Module, known: set[str]) -> set[str]:
    needed: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            needed |= {a.name for a in node.names if a.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{a.name}" for a in node.names} & known
            needed |= inner or ({node.module} & known)
    return needed - {module}


def _strong(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected groups: who reaches each other. Small graphs: by plain reachability."""
    reach = {m: _reachable(m, arrows) for m in arrows}
    groups: dict[frozenset[str], set[str]] = defaultdict(set)
    for m in arrows:
        groups[frozenset(o for o in reach[m] | {m} if o == m or m in reach[o])].add(m)
    return list(groups.values())


def _reachable(start: str, arrows: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for other in arrows[todo.pop()] - seen:
            seen.add(other)
            todo.append(other)
    return seen


# ---------------------------------------------------------------- prose


def measure_prose(root: Path) -> dict[str, dict[str, float]]:
    """Sentences of README.md and docs/**/*.md, without code, tables and headings."""
    files = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    return {str(p.relative_to(root)): measure_text(p.read_text()) for p in files if p.exists()}


def measure_text(text: str) -> dict[str, float]:
    """Words in all; mean words per sentence; share of long ones; words of the longest paragraph."""
    paragraphs = list(_paragraphs(text))
    lengths = [n for p in paragraphs for s in _sentences(p) if (n := len(s.split()))]
    return {
        "words": len(text.split()),
        "mean sentence": round(sum(lengths) / len(lengths), 1) if lengths else 0.0,
        "long, %": round(100 * sum(n > LONG_SENTENCE for n in lengths) / len(lengths)) if lengths else 0,
        "longest paragraph": max((len(p.split()) for p in paragraphs), default=0),
        "pictures": len(re.findall(r"!\[", text)),
    }


def _paragraphs(text: str) -> Iterator[str]:
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.S | re.M)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):
        line = block.strip()
        if line and not line.startswith(("#", "|", "!", "<")):
            yield re.sub(r"^(?:[-*]|\d+\.) ", "", " ".join(line.split()))


def _sentences(paragraph: str) -> list[str]:
    plain = re.sub(r"`[^`]*`", "code", paragraph)
    return re.split(r"(?<=[.!?:])\s+(?=[A-Z(\"*`\[]|code)", plain)


def _table(found: dict[str, Any]) -> str:
    rows = [f"{key:24} {_shown(value)}" for key, value in found["code"].items()]
    rows += ["", f"{'prose':44} {'words':>6} {'mean':>6} {'>35 %':>6} {'para':>6} {'pict.':>6}"]
    rows += [
        f"{name:44} " + " ".join(f"{v:6}" for v in each.values()) for name, each in found["prose"].items()
    ]
    return "\n".join(rows)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "; ".join(" ".join(group) for group in value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    main()
