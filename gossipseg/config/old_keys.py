"""Keys of an earlier version's peers.yaml that this one no longer has: refused, or left out and told."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from gossipseg.algos.params import names, params_class
from gossipseg.algos.params.retired import (
    TRAINING_WITHOUT,
    droppable_settings,
    retired_problem,
    retired_training,
)
from gossipseg.config.reading import Source

log = logging.getLogger(__name__)
_told: set[str] = set()


def drop_retired(source: Source) -> None:
    """Take out the keys that change nothing, with a warning once a process. Raises ConfigError for others."""
    algorithm, training = source.raw.get("algorithm"), source.raw.get("training")
    if isinstance(algorithm, dict):
        _refuse(source, retired_problem(algorithm))
        _move_every_rounds(source, algorithm)
        _drop(source, "algorithm", algorithm, droppable_settings(algorithm.get("name")))
    if isinstance(training, dict):
        _refuse(source, retired_training(training))
        _drop(source, "training", training, TRAINING_WITHOUT)


def _move_every_rounds(source: Source, algorithm: dict[str, Any]) -> None:
    """Refuse algorithm.every_rounds, which has become exchange_at.every_rounds; 1 is still the default."""
    if "every_rounds" not in algorithm or not _is_old(algorithm.get("name")):
        return
    every = algorithm["every_rounds"]
    if every == 1 and not isinstance(every, bool):
        _drop(source, "algorithm", algorithm, {"every_rounds": 1})
        return
    problem = "has become a key beside `algorithm`, for gossip, too"
    remedy = f"Write exchange_at: {{every_rounds: {every}}} beside it, at all sites."
    raise source.error(problem, "algorithm.every_rounds", every, remedy)


def tell_idle(source: Source, found: tuple[str, object, str] | None) -> None:
    """Warn, once, of a key that counts only beside another value than the file has. `found`: the key, its
    value, and the value beside which it counts; None: there is no such key."""
    if found is None or found[0] in _told:
        return
    key, value, beside = found
    _told.add(key)
    log.warning("%s: %s = %s counts only with `%s`.", source.place(key), key, value, beside)


def _is_old(name: object) -> bool:
    """Whether an algorithm of that name has no key `every_rounds` of its own."""
    if name not in names():
        return False
    return all(f.name != "every_rounds" for f in dataclasses.fields(params_class(str(name))))


def _refuse(source: Source, found: tuple[str, str, object, str] | None) -> None:
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)


def _drop(source: Source, name: str, section: dict[str, Any], without: Mapping[str, object]) -> None:
    for key in sorted(without.keys() & section.keys()):
        _tell(source, f"{name}.{key}", section.pop(key))


def _tell(source: Source, key: str, value: object) -> None:
    if key not in _told:
        _told.add(key)
        written = str(value).lower() if isinstance(value, bool) else value
        log.warning(
            "%s: %s = %s is no longer a setting. As it stands it changes nothing: leave the key out.",
            source.place(key),
            key,
            written,
        )
