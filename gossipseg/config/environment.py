"""GOSSIPSEG_ variables: which set a key, which belong to other software, and which are mistakes.

Kubernetes gives every pod variables named after each service of its namespace. Images define a version or a
home. A service or an image that happens to be called gossipseg must not stop a daemon.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gossipseg.errors import ConfigError

ENV_PREFIX = "GOSSIPSEG_"
RESERVED_ENV = frozenset({"GOSSIPSEG_DATA", "GOSSIPSEG_WORKER_SOCKET", "GOSSIPSEG_CONFIG"})
"""Variables that mean something else than a key of site.yaml."""

_SERVICE = re.compile(
    r"(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
"""Variables that Kubernetes and Docker's links derive from a service's name: GOSSIPSEG_… or
GOSSIPSEG_NORTH_…."""
_SERVICE_URL = re.compile(r"(?:[A-Z0-9_]+_)?PORT")
_URL = re.compile(r"(?:tcp|udp|sctp)://")
_NEAR, _NEAR_INNER = 0.6, 0.85
"""Similarity above which a name counts as a misspelt key: a key at the top, and one in a section."""


@dataclass(slots=True)
class Settings:
    """The settings of the environment, and the variables that were ignored."""

    overrides: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Dotted key → its text and where it comes from."""
    warnings: list[str] = field(default_factory=list)
    """A sentence for each variable that sets nothing and might have been meant to."""


def read_environment(env: Mapping[str, str], keys: Collection[str]) -> Settings:
    """GOSSIPSEG_DEVICE__THREADS=2 → {"device.threads": ("2", "environment variable …")}.

    `keys`: the dotted keys of site.yaml. A name similar to a top-level key is returned as it is, so that it
    is refused as an unknown key. Raises ConfigError for a name similar to a key in a section.
    """
    found = Settings()
    top = {k for k in keys if "." not in k} - {"version"}
    for name, text in env.items():
        if not name.startswith(ENV_PREFIX) or name in RESERVED_ENV:
            continue
        short = name.removeprefix(ENV_PREFIX)
        key = short.lower().replace("__", ".")
        if key == "version":
            found.warnings.append(
                f"environment variable {name} sets nothing: the version of site.yaml is set only in the file"
            )
        elif key in top or "__" in short:
            found.overrides[key] = (text, f"environment variable {name}")
        elif _of_a_service(short, text):
            continue
        elif meant := _inner_variable(key, keys):
            raise ConfigError(
                "unknown key", file=f"environment variable {name}", key=key, remedy=f"Did you mean `{meant}`?"
            )
        elif any(_like(key, known) >= _NEAR for known in top):
            found.overrides[key] = (text, f"environment variable {name}")
        else:
            found.warnings.append(f"environment variable {name} sets nothing: site.yaml has no key {key!r}")
    return found


def _of_a_service(short: str, text: str) -> bool:
    if _SERVICE.fullmatch(short):
        return True
    return _SERVICE_URL.fullmatch(short) is not None and bool(short == "PORT" or _URL.match(text))


def _inner_variable(key: str, keys: Collection[str]) -> str:
    """The intended variable of a key in a section: `device_threads` has one underscore too few."""
    for known in keys:
        if "." in known and _like(key, known.replace(".", "_")) >= _NEAR_INNER:
            return ENV_PREFIX + known.upper().replace(".", "__")
    return ""


def _like(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
