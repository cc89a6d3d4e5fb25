"""Keys of an earlier version's peers.yaml that this one no longer has: refused, or left out and told."""

from __future__ import annotations

import logging

from gossipseg.algos.params.retired import retired_problem, retired_settings
from gossipseg.config.reading import Source

log = logging.getLogger(__name__)
_told: set[str] = set()


def drop_retired(source: Source) -> None:
    """Take out the keys that change nothing, with a warning once a process. Raises ConfigError for others."""
    section = source.raw.get("algorithm")
    if not isinstance(section, dict):
        return
    found = retired_problem(section)
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)
    for key in sorted(retired_settings(section.get("name")).keys() & section.keys()):
        _tell(source, f"algorithm.{key}", section.pop(key))


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
