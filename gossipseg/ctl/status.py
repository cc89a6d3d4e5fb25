"""`gossipctl status` and `gossipctl version`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from gossipseg import __version__
from gossipseg.ctl import context, rounds
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_FAILED, EXIT_OK, ConfigError, DaemonUnreachable

if TYPE_CHECKING:
    from gossipseg.wire.documents import StatusDoc


def register(app: typer.Typer) -> None:
    app.command("status")(status)
    app.command("version")(version)


def status(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """This site's state and activity, and why it is not well. Exit code 1 when degraded or failed."""
    with context.daemon(config, socket) as daemon:
        document = daemon.status()
    if json:
        out.print_json(document.to_dict())
    else:
        out.print_pairs(pairs(document))
    return EXIT_OK if document.state == "ok" else EXIT_FAILED


def pairs(s: StatusDoc) -> Iterator[tuple[str, str]]:
    """A status for people: label and text of each line."""
    yield "site", f"{s.site} of {s.federation}"
    yield "id", s.id or "none (insecure)"
    yield "state", s.state
    for reason in s.reasons:
        yield "", f"- {reason}"
    yield "phase", doing(s)
    yield "loss", out.number_text(s.loss, 4)
    yield "Dice", dice(s)
    if s.deployed:
        yield "deployed", deployed(s)
    if s.personal_held or s.personal_wanted:
        yield "peers'", peers_models(s)
    yield "cases", f"{s.splits.training} training, {s.splits.validation} validation, {s.splits.test} test"
    if s.splits_from:
        yield "splits", s.splits_from
    yield "learning", learning(s)
    if s.delta is not None:
        yield "privacy", privacy(s)
    yield "models", models(s)
    if text := swaps(s):
        yield "swaps", text
    if s.exchange == "rounds":
        yield "rounds", f"global model of round {s.committed or 0}; {under_way(s)}"
        for row in s.under_way.missing:
            yield "", rounds.missing_text(s.under_way, row)
    yield "bytes", f"{out.bytes_text(s.bytes_out)} out, {out.bytes_text(s.bytes_in)} in"
    yield "members", members(s)
    yield "worker", worker(s)
    yield "discovery", discovery(s)
    yield "listen", s.listen
    yield "control", s.control
    yield "contract", s.contract or "not known before the worker has reported"
    yield "disk", f"{out.bytes_text(s.disk_free_bytes)} free"
    yield "certificate", certificate(s.certificate_days_left)
    yield (
        "daemon",
        f"version {s.version}, up {out.duration_text(s.uptime_s)}, self-health {s.self_health} of 7",
    )


def doing(s: StatusDoc) -> str:
    """Phase, round, step and the present activity."""
    done = f"round {s.round}" + (f" of {s.rounds}" if s.rounds is not None else "") + " done"
    text = f"{s.phase}, {done}"
    if s.phase in ("training", "starting") and s.activity:
        text += f", now {s.activity}"
        if s.steps_per_round and s.activity == "training":
            text += f", step {s.step} of {s.steps_per_round}"
        elif s.fraction is not None:
            text += f" {out.share_text(s.fraction)}"
    return text


def dice(s: StatusDoc) -> str:
    """Validation Dice, and test Dice where it was asked for."""
    text = f"validation {out.number_text(s.dice_val)}"
    if s.dice_test_start is not None or s.dice_test is not None:
        text += f", test {out.number_text(s.dice_test_start)} at the start"
        text += f", {out.number_text(s.dice_test)} at the end" if s.dice_test is not None else ""
    return text


def deployed(s: StatusDoc) -> str:
    """Which models predict, and what that gains."""
    words = {
        "mix": "several models together",
        "personal": "the personal model alone",
        "shared": "the shared model alone",
    }
    return f"{words.get(s.deployed, s.deployed)}: {s.deployed_reason}"


def learning(s: StatusDoc) -> str:
    """Algorithm and device, and the personal model's network where that is another one."""
    own = f"; the personal model: {s.personal_network}" if s.personal_network else ""
    return f"{s.algorithm or out.NOTHING} on {s.device or out.NOTHING}{own}"


def peers_models(s: StatusDoc) -> str:
    """Whose personal models are here, and whose are still to come."""
    text = f"personal models of {', '.join(s.personal_held)}" if s.personal_held else "no personal model yet"
    return text + (f"; still to come: {', '.join(s.personal_wanted)}" if s.personal_wanted else "")


def privacy(s: StatusDoc) -> str:
    """The privacy budget that training has spent; an ε of None is beyond all numbers."""
    spent = "no bound" if s.epsilon is None else f"{s.epsilon:.3g}"
    text = f"epsilon {spent} spent at delta {s.delta:g}"
    return text + (f", of {s.max_epsilon:g} at most" if s.max_epsilon is not None else ", no limit set")


def models(s: StatusDoc) -> str:
    """Models sent and accepted."""
    return (
        f"{s.sent} sent, {s.received} received: {s.accepted} accepted, {s.refused} refused, {s.inbox} waiting"
    )


def swaps(s: StatusDoc) -> str:
    """How the swaps ended, the open one, why none is made now, and who is set aside; "" for nothing."""
    words = {
        "mixed": "mixed",
        "copied": "taken over",
        "kept": "given only",
        "dropped": "dropped",
        "in_doubt": "dropped in doubt",
        "lost": "lost",
    }
    counts = [f"{n} {word}" for name, word in words.items() if (n := getattr(s.swaps, name))]
    if s.swap.state:
        waits = f" ({s.swaps_wait})" if s.swaps_wait else ""
        counts.append(f"one {s.swap.state} with {s.swap.peer} now{waits}")
    elif s.swaps_wait:
        counts.append(s.swaps_wait)
    if s.set_aside:
        counts.append(f"set aside: {', '.join(s.set_aside)}")
    return ", ".join(counts)


def under_way(s: StatusDoc) -> str:
    """The round under a coordinator. (An older daemon names the coordinator alone.)"""
    d = s.under_way
    if not d.round:
        return f"led by {s.coordinator or out.NOTHING} now"
    delivered = rounds.delivered_text(d, d.sites)
    text = f"round {rounds.leader_text(d)}; delivered: {delivered}; deadline: {rounds.deadline_text(d)}"
    return text + rounds.said_text(d)


def members(s: StatusDoc) -> str:
    """Number of other sites in each state."""
    counts = {n: getattr(s.members, n) for n in ("alive", "suspect", "dead", "left", "unseen", "refused")}
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "no other site is listed"


def worker(s: StatusDoc) -> str:
    """State of the training process, with its reason."""
    w = s.worker
    text = w.state + (f": {w.reason}" if w.reason else "")
    if w.pid is not None:
        text += f", process {w.pid}"
    return text + (f", restarted {w.restarts} times" if w.restarts else "")


def discovery(s: StatusDoc) -> str:
    """The sources of addresses, and unused announcements."""
    d = s.discovery
    sources = [name for name, on in (("listed addresses", d.static), ("mDNS", d.mdns)) if on]
    text = " and ".join(sources) or "off"
    text += f"; mDNS is off: {d.reason}" if d.reason else ""
    return text + (f"; ignored: {', '.join(d.foreign)}" if d.foreign else "")


def certificate(days_left: float | None) -> str:
    """The validity of the certificate."""
    if days_left is None:
        return "none (insecure)"
    return f"{days_left:.0f} days left" if days_left > 0 else "expired"


def version(
    config: context.ConfigOption = None, socket: context.SocketOption = None, json: context.JsonOption = False
) -> int:
    """Versions of gossipctl and, where it runs, of the daemon."""
    running, why = None, ""
    try:
        with context.daemon(config, socket) as daemon:
            running = daemon.status().version
    except (ConfigError, DaemonUnreachable) as e:
        if config is not None or socket is not None:
            raise
        why = str(e)
    python = ".".join(map(str, sys.version_info[:3]))
    if json:
        out.print_json(
            {"schema": 1, "kind": "version", "gossipctl": __version__, "daemon": running, "python": python}
        )
    else:
        daemon_text = running or f"not asked: {why}"
        out.print_pairs([("gossipctl", __version__), ("daemon", daemon_text), ("python", python)])
    return EXIT_OK
