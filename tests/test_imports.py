"""The arrows of the design, as a test: who may import whom, and what must never be loaded where."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gossipseg"

# part → the parts it may import, beside itself. `*.params` modules are open to everybody.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "bounds": set(),
    "surroundings": set(),
    "children": {"surroundings"},
    "templates": set(),
    "homes": {"errors"},
    "yamlbounds": {"errors"},
    "console": {"errors", "ends"},
    "ends": {"errors"},
    "core": {"bounds", "errors"},
    "algos": {"core.types", "errors"},
    "nets": {"errors"},
    "store": {"core.types", "errors"},
    "certificates": {"core", "errors"},
    "trust": {"core", "errors", "certificates"},
    "learn": {"bounds", "algos", "nets", "core.types", "store", "errors", "ends"},
    "wire": {"bounds", "core", "errors", "trust", "certificates"},
    "discovery": {"core", "errors"},
    "config": {
        *(
            "bounds",
            "core",
            "errors",
            "trust",
            "certificates",
            "learn.data.flips",
            "learn.rates",
            "wire.addresses",
            "wire.pacing",
        ),
        *("homes", "yamlbounds"),
    },
    "bridge": {"config", "core", "errors", "learn.protocol", "store"},
    "testbed": {
        "children",
        "config",
        "errors",
        "learn.data.cases",
        "learn.data.datalist",
        "learn.data.formats",
        "learn.data.labels",
        "learn.data.lists",
        "learn.data.readers",
        "store",
        "templates",
        "trust",
        "wire.control",
        "wire.documents",
    },
    "daemon": {
        "bridge",
        "certificates",
        "children",
        "config",
        "core",
        "discovery",
        "ends",
        "errors",
        "learn.protocol",
        "learn.data.presence",
        "store",
        "surroundings",
        "trust",
        "wire",
    },
    "lab": {
        "bridge",
        "homes",
        "algos",
        "children",
        "config",
        "console",
        "core",
        "errors",
        "learn",
        "nets",
        "store",
        "surroundings",
        "templates",
        "testbed.dataset",
        "testbed.plots",
        "testbed.presets",
        "wire",
    },
    "ctl": {
        "templates",
        "children",
        "homes",
        "yamlbounds",
        "config",
        "console",
        "discovery",
        "errors",
        "learn.data.flips",
        "store",
        "surroundings",
        "testbed",
        "trust",
        "wire",
        "core",
        "certificates",
    },
}
# part → wing → the other wings of that part it may import. Modules beside the wings are open to all of them.
WINGS: dict[str, dict[str, set[str]]] = {
    "core": {
        "membership": set(),
        "gossip": {"membership"},
        "rounds": {"membership"},
        "personal": {"membership"},
    },
    "daemon": {
        "health": set(),
        "recording": set(),
        "observe": {"health"},
        "peers": {"observe"},
        "worker": {"health", "observe", "peers"},
        "control": {"health", "observe", "worker"},
    },
    "lab": {
        "plan": set(),
        "report": {"plan"},
        "simulation": {"plan", "report"},
        "experiment": {"plan", "report", "simulation"},
    },
    "learn": {
        "data": set(),
        "evaluation": {"data"},
        "oneshot": {"data", "evaluation"},
        "engine": {"data", "evaluation", "oneshot"},
        "privacy": {"engine"},
        "deploy": {"data", "engine", "evaluation", "oneshot"},
        "exchange": {"data", "engine", "evaluation", "privacy", "deploy"},
        "training": {"data", "engine", "evaluation", "privacy", "deploy", "exchange"},
        "worker": {"data", "engine", "training"},
        "commands": {"data", "engine", "evaluation", "oneshot", "deploy"},
    },
    "ctl": {"doctor": set()},
    "wire": {"codec": set(), "control": {"documents"}, "documents": set()},
}
CORE_FLOOR = {"budget", "context", "effects", "events", "manifests", "messages", "offences", "params"} | {
    "exchange_times",
    "site_pool",
    "types",
}
"""What core's wings stand on. The parts that join them (node, assembly, enforcement …) are above."""
MOST_MODULES = 22


def _modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "_pb2" not in p.name)


def _part(dotted: str) -> str:
    return dotted.split(".")[1] if "." in dotted else ""


def _imports(path: Path) -> list[str]:
    """Dotted names that a module imports, those under TYPE_CHECKING and inside functions included."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{a.name}" for a in node.names]
    return names


def _permitted(part: str, target: str) -> bool:
    inner = target.removeprefix("gossipseg.")
    if _part(target) in ("", part, "__version__") or ".params." in f"{inner}.":
        return True
    return any(inner == a or inner.startswith(f"{a}.") for a in ALLOWED[part])


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_arrows(path: Path) -> None:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    part = _part(dotted)
    if part == "":
        return
    assert part in ALLOWED, f"{part}: a new part; add it to the design and to this table"
    wrong = [n for n in _imports(path) if n.startswith("gossipseg.") and not _permitted(part, n)]
    assert not wrong, f"{dotted} must not import {wrong}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").rglob("*.py")), ids=lambda p: p.name)
def test_core_is_standard_library_only(path: Path) -> None:
    forbidden = {"asyncio", "logging", "time", "datetime", "os", "pathlib", "socket", "threading", "secrets"}
    roots = {n.split(".")[0] for n in _imports(path)} - {"gossipseg", "__future__"}
    assert roots <= set(sys.stdlib_module_names), roots
    assert not roots & forbidden, roots & forbidden


def test_arrows_between_wings() -> None:
    wrong = []
    for part, wings in WINGS.items():
        found = {p.name for p in (PACKAGE / part).iterdir() if (p / "__init__.py").exists()}
        assert found == set(wings), f"{part}: a new wing; add it to this table"
        for wing, others in wings.items():
            for path in (PACKAGE / part / wing).rglob("*.py"):
                targets = {n.removeprefix(f"gossipseg.{part}.").split(".")[0] for n in _imports(path)}
                wrong += [
                    f"{path.name} of {part}/{wing}: {t}" for t in targets & (set(wings) - others - {wing})
                ]
    assert not wrong


@pytest.mark.parametrize("wing", WINGS["core"])
def test_the_wings_of_core_stand_on_its_floor(wing: str) -> None:
    for path in (PACKAGE / "core" / wing).rglob("*.py"):
        inner = {n.removeprefix("gossipseg.core.").split(".")[0] for n in _imports(path) if ".core." in n}
        assert inner - set(WINGS["core"]) <= CORE_FLOOR, path


def _table(heading: str) -> dict[str, list[str]]:
    """Part → the names in the last cell of its row, from a table of the architecture page."""
    page = (ROOT / "docs" / "design" / "architecture.md").read_text()
    rows = page.split(f"\n{heading}\n")[1].split("\n\n")[0].splitlines()[1:]
    cells = [row.strip("| ").split(" | ") for row in rows]
    return {first.strip("`"): re.findall(r"`([\w.]+)`", last) for first, *_, last in cells}


def test_the_architecture_page_has_the_same_arrows() -> None:
    written = {part: {*names} for part, names in _table("| part | content | may import |").items()}
    assert written == {part: others - {"errors"} for part, others in ALLOWED.items()}


def test_the_architecture_page_names_the_wings_from_the_floor_up() -> None:
    written = _table("| part | wings, from the floor up |")
    assert {part: {*names} & set(WINGS[part]) for part, names in written.items()} == {
        part: set(wings) for part, wings in WINGS.items()
    }
    for part, names in written.items():
        order = [name for name in names if name in WINGS[part]]
        for wing, others in WINGS[part].items():
            assert all(order.index(other) < order.index(wing) for other in others), f"{part}/{wing}"


def test_no_folder_is_a_drawer() -> None:
    folders = Counter(p.parent for p in _modules() if p.name != "__init__.py")
    assert not {str(f.relative_to(PACKAGE)): n for f, n in folders.items() if n > MOST_MODULES}


@pytest.mark.parametrize(
    "module",
    [
        "gossipseg.bridge.orders",
        "gossipseg.daemon.main",
        "gossipseg.ctl.main",
        "gossipseg.config",
        "gossipseg.learn.data.flips",
        "gossipseg.learn.protocol",
        "gossipseg.learn.params",
        "gossipseg.testbed.run",
    ],
)
def test_no_torch_outside_the_worker(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'monai'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
