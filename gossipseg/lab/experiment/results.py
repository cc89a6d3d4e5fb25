"""results.json: every run of a comparison, a row per algorithm, seed, split and site.

`runs` holds the measurements. All other figures are computed from it, and again by `gossiplab report`:

    summary        an entry an algorithm (statistics.Summary); `against` holds its claims by reference
    claims         the tested claims (statistics.Claim): algorithm, reference, mean difference, low and high
                   of its 95 % interval, cases, patients, repetitions, p, p_holm.
                   p_holm is Holm's correction over all entries; null where nothing can be tested.
                   A difference is shown where p_holm < 0.05.
    named_claims   [algorithm, reference] of those that --claim added
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from gossipseg import __version__
from gossipseg.errors import ConfigError
from gossipseg.lab.experiment.runs import SCHEMA, read_json, write_json

FILE = "results.json"
_PACKAGES = ("torch", "monai", "numpy")


def collect(
    documents: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    command: Sequence[str],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The document of these runs, in their order."""
    return {
        "schema": SCHEMA,
        "command": list(command),
        "settings": dict(settings),
        "versions": versions(),
        "written_at": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "algorithms": list(dict.fromkeys(d["algorithm"] for d in documents)),
        "seeds": list(dict.fromkeys(d["seed"] for d in documents)),
        "splits": list(dict.fromkeys(d.get("split", 0) for d in documents)),
        "sites": list(settings["sites"]),
        "failed": dict(failed),
        "run_seconds": {
            f"{d['algorithm']}, seed {d['seed']}, split {d.get('split', 0)}": d["seconds"] for d in documents
        },
        "runs": [row for d in documents for row in d["rows"]],
    }


def versions() -> dict[str, str]:
    """Versions of everything that numbers may depend on."""
    found = {"gossipseg": __version__, "python": platform.python_version()}
    return found | {name: metadata.version(name) for name in _PACKAGES}


def write(out: Path, document: Mapping[str, Any]) -> None:
    """Write the document into the comparison's folder."""
    write_json(out / FILE, document)


def read(out: Path) -> dict[str, Any]:
    """Raises ConfigError when there is none."""
    if not (out / FILE).is_file():
        raise ConfigError(
            "holds no results.json",
            file=out,
            remedy="Give the --out of a `gossiplab compare` that has finished.",
        )
    return read_json(out / FILE)
