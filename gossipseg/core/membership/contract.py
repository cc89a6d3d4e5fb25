"""Whether two sites may exchange weights: protocol, federation and contract compared, in words.

Pure functions over Hello values.
"""

from __future__ import annotations

from gossipseg.core.messages import Hello, HelloReply

SIGNATURE_KEY = "network.signature"
_UNKNOWN = ("", '""')
_NAMED = 3
_MAX_SHOWN = 200
"""Characters of a value that are shown: the other side may send any text, and it goes into logs."""


def refusal(ours: Hello | HelloReply, theirs: Hello | HelloReply) -> str:
    """ "" when weights may move (as far as is known), or what differs first, with both values.

    The network signature is left open while either side's worker has not reported it.
    """
    if ours.protocol_max < theirs.protocol_min or theirs.protocol_max < ours.protocol_min:
        return (
            f"protocol: {ours.protocol_min}-{ours.protocol_max} here, "
            f"{theirs.protocol_min}-{theirs.protocol_max} there"
        )
    if ours.federation != theirs.federation:
        return f"federation: {_short(ours.federation)!r} here, {_short(theirs.federation)!r} there"
    return _difference(dict(ours.contract), dict(theirs.contract))


def _difference(ours: dict[str, str], theirs: dict[str, str]) -> str:
    differing = [k for k in sorted({**ours, **theirs}) if ours.get(k) != theirs.get(k)]
    if SIGNATURE_KEY in differing and (
        ours.get(SIGNATURE_KEY, "") in _UNKNOWN or theirs.get(SIGNATURE_KEY, "") in _UNKNOWN
    ):
        differing.remove(SIGNATURE_KEY)
    named = [
        f"{_short(k)}: {_short(ours.get(k))} here, {_short(theirs.get(k))} there" for k in differing[:_NAMED]
    ]
    more = len(differing) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _short(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}…"
