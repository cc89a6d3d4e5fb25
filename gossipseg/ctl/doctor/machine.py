"""`gossipctl check` on this machine, and the order of all checks."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gossipseg import trust
from gossipseg.certificates import WARN_DAYS, parse_certificate
from gossipseg.config import Config
from gossipseg.ctl import output as out
from gossipseg.ctl.doctor.data import check_data
from gossipseg.ctl.doctor.findings import Finding, State
from gossipseg.ctl.doctor.peers import check_peers
from gossipseg.ctl.doctor.reach import check_reach
from gossipseg.ctl.doctor.start import (
    check_extras,
    check_listen,
    check_metrics,
    check_port,
    check_whereabouts,
    check_worker_lock,
)
from gossipseg.errors import DaemonUnreachable, GossipsegError
from gossipseg.learn.data.flips import resolve
from gossipseg.learn.params import FINAL_SHARE, ONE_SHOT_ALGORITHM, cosine_rate
from gossipseg.wire.control import ControlClient
from gossipseg.wire.documents import StatusDoc

DAY_S = 86_400
_TIME_ERROR = 5
"""adjtimex(2): the clock is not synchronised."""
HIGH_SHARE = 0.1
"""Share of the learning rate above which a cosine schedule is far from its end."""


def examine(
    config: Config, *, data: bool, peers: bool, timeout_s: float, reach: bool = False
) -> Iterator[Finding]:
    """All checks, in an order where a mistake in one makes the next pointless."""
    yield Finding("config", "ok", f"{config.site_path} and {config.federation_path}")
    yield from check_finetuning(config)
    yield from check_flips(config)
    yield check_schedule(config)
    identity, findings = check_identity(config)
    yield from findings
    yield from check_clock(config)
    yield from check_disk(config)
    status, findings, running = check_daemon(config)
    yield from findings
    yield from check_listen(config) if running else check_port(config)
    if not running:
        yield from check_worker_lock(config)
    yield from check_metrics(config, running=running)
    yield from check_extras(config)
    yield from check_data(config) if data else [Finding("data", "skipped", "not asked for")]
    if peers:
        yield from check_peers(config, identity, status, timeout_s)
    if reach:
        yield from check_reach(config, identity, status)


def check_finetuning(config: Config) -> Iterator[Finding]:
    """Rounds trained alone at the end need an end."""
    algorithm = config.federation.algorithm
    alone = getattr(algorithm, "finetune_rounds", 0)
    if alone and config.rounds is None:
        yield Finding(
            "rounds",
            "warning",
            f"without a budget the last {alone} rounds, which {algorithm.name} trains alone, never come",
            "Write training.rounds in peers.yaml (at all sites), `rounds` in site.yaml, or "
            "algorithm.finetune_rounds: 0 in peers.yaml.",
        )


def check_flips(config: Config) -> Iterator[Finding]:
    """Which axes of the training patches are mirrored, and why."""
    federation = config.federation
    training, found = federation.training, resolve(federation.task, federation.training)
    slices = federation.algorithm.name == ONE_SHOT_ALGORITHM
    if slices or training.augment == "none":
        reason = f"{ONE_SHOT_ALGORITHM} draws views of its own" if slices else found.reason
        detail, remedy = f"training mirrors nothing: {reason}", "Remove training.flip_axes."
        unused = training.flip_axes not in ("auto", "none", ())
        problem = "training.flip_axes has no effect" if unused else ""
    else:
        detail = f"training mirrors {' and '.join(found.names) or 'nothing'}: {found.reason}"
        problem, remedy = found.doubt, "Write training.flip_axes: auto in peers.yaml, at all sites."
    if problem:
        yield Finding("flips", "warning", f"{detail}; {problem}", remedy)
    else:
        yield Finding("flips", "ok", detail)


def check_schedule(config: Config) -> Finding:
    """A cosine without an end is no cosine."""
    training = config.federation.training
    rate, rounds, schedule = training.learning_rate, training.cosine_rounds, training.schedule_in_force
    if schedule == "cosine":
        assert rounds is not None
        return _cosine(config, rate, rounds)
    if schedule == "step_decay":
        every, factor = training.decay_every_steps, training.decay_factor
        return Finding("schedule", "ok", f"{rate:g}, times {factor:g} after every {every} steps")
    if training.schedule == "constant":
        return Finding("schedule", "ok", f"constant at {rate:g}")
    return Finding(
        "schedule",
        "warning",
        f"the learning rate stays at {rate:g}: a cosine needs to know over how many rounds it falls",
        "Write training.rounds in peers.yaml (the round that training ends with; the same at all sites), "
        "training.schedule_rounds, or training.schedule: constant if that is meant.",
    )


def _cosine(config: Config, rate: float, rounds: int) -> Finding:
    """The end of the cosine, and of the site's training; rounds of fine-tuning have their own rate."""
    alone, trained = getattr(config.federation.algorithm, "finetune_rounds", 0), config.rounds
    if trained is None or trained - alone >= rounds:
        return Finding(
            "schedule", "ok", f"cosine from {rate:g} to {FINAL_SHARE * rate:g} over {rounds} rounds"
        )
    end = cosine_rate(rate, trained - alone, rounds)
    detail = f"cosine from {rate:g} over {rounds} rounds; this site trains {trained}, and "
    detail += f"fine-tunes in the last {alone}, after {end:.3g}" if alone else f"ends at {end:.3g}"
    if end <= HIGH_SHARE * rate or alone:
        return Finding("schedule", "ok", detail)
    return Finding(
        "schedule",
        "warning",
        f"{detail}, more than a tenth of where it began",
        f"Write training.schedule_rounds: {trained} in peers.yaml (at all sites), or let this site train all "
        f"{rounds} rounds of the cosine (training.rounds in peers.yaml, `rounds` in site.yaml).",
    )


# ---------------------------------------------------------------- identity, clock


def check_identity(config: Config) -> tuple[trust.Identity | None, list[Finding]]:
    """Key and certificate: readable, private, a pair, valid, and listed for this site."""
    if config.site.insecure:
        return None, [
            Finding(
                "identity",
                "warning",
                "insecure: true, so this site has none",
                "For experiments on loopback only.",
            )
        ]
    paths = config.site.identity
    try:
        identity = trust.Identity.load(Path(paths.key), Path(paths.certificate))
    except GossipsegError as e:
        return None, [Finding("identity", "failed", str(e))]
    try:
        trust.check_own_certificate(identity, config.me, config.federation_path)
    except GossipsegError as e:
        return identity, [Finding("identity", "failed", str(e))]
    found = [Finding("identity", "ok", f"{config.site.site} is {identity.site_id}")]
    days = identity.days_left(time.time())
    if days < WARN_DAYS:
        found.append(
            Finding(
                "certificate",
                "warning",
                f"expires in {days:.0f} days, on {identity.not_after:%Y-%m-%d}",
                "Begin its rotation with `gossipctl rotate`: it says what the other sites must list.",
            )
        )
    else:
        found.append(Finding("certificate", "ok", f"valid until {identity.not_after:%Y-%m-%d}"))
    return identity, found


def check_clock(config: Config) -> Iterator[Finding]:
    """The clock against NTP, and every listed certificate against the clock."""
    now, bad = datetime.now(UTC), False
    for site in config.federation.sites:
        for pem in trust.certificates_of(site):
            since = parse_certificate(pem.encode()).not_valid_before_utc
            if now < since:
                bad = True
                yield Finding(
                    "clock",
                    "failed",
                    f"it is {now:%Y-%m-%d} here; {site.name}'s certificate begins on {since:%Y-%m-%d}",
                    "Set the clock (timedatectl set-ntp true), or ask whether that site's clock was wrong.",
                )
    for ending in _endings(config, now):
        bad = bad or ending.check == "clock"
        yield ending
    if bad:
        return
    if synchronised() is False:
        yield Finding(
            "clock",
            "warning",
            f"{now:%Y-%m-%d %H:%M} UTC; the kernel says that it is not synchronised",
            "Turn on NTP: timedatectl set-ntp true.",
        )
    else:
        yield Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC")


def _endings(config: Config, now: datetime) -> Iterator[Finding]:
    """Other sites whose last listed certificate has ended, or soon will."""
    for site, end_s in trust.last_ends(config.others).items():
        until = datetime.fromtimestamp(end_s, UTC)
        if now > until:
            yield Finding(
                "clock",
                "warning",
                f"{site}'s certificate expired on {until:%Y-%m-%d} (it is {now:%Y-%m-%d} here)",
                f"Ask {site} for its new certificate.",
            )
        elif until - now < timedelta(days=WARN_DAYS):
            yield Finding(
                "certificate",
                "warning",
                f"{site}'s certificate expires on {until:%Y-%m-%d}",
                f"Ask {site} for its next one (`gossipctl rotate` there).",
            )


def synchronised() -> bool | None:
    """Whether the kernel's clock is disciplined by NTP; None where it cannot be asked."""
    try:
        buffer = ctypes.create_string_buffer(512)  # struct timex, modes = 0: only ask
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR


# ---------------------------------------------------------------- disk, daemon


def check_disk(config: Config) -> Iterator[Finding]:
    """State directory: exists or can be made, writable, with room."""
    state_dir = Path(config.site.state_dir)
    there = next(p for p in (state_dir, *state_dir.parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding(
            "disk",
            "failed",
            f"state_dir {state_dir} cannot be written ({there} is not a folder this user may write to)",
            "Choose another state_dir, or change the folder's owner.",
        )
        return
    free = shutil.disk_usage(there).free
    text = f"{out.bytes_text(free)} free for {state_dir}"
    reserve = config.site.disk_reserve_bytes
    if free < reserve:
        yield Finding(
            "disk",
            "failed",
            f"{text}, less than disk_reserve_bytes ({out.bytes_text(reserve)}): every model would be refused",
            "Free some space, or lower disk_reserve_bytes.",
        )
    elif free < 4 * reserve:
        yield Finding("disk", "warning", text, "That is little for checkpoints and models.")
    else:
        yield Finding("disk", "ok", text)


def check_daemon(config: Config) -> tuple[StatusDoc | None, list[Finding], bool]:
    """The daemon's own report, the findings, and whether a daemon runs, even a silent one."""

    try:
        with ControlClient(config.control_socket) as client:
            status = client.status()
    except DaemonUnreachable as e:
        where, finding = check_whereabouts(config)
        if where.state == "none" and "Permission denied" in str(e):
            finding = Finding("daemon", "failed", str(e))
        return None, [finding], where.state != "none"
    except GossipsegError as e:
        return None, [Finding("daemon", "failed", str(e))], True
    state: dict[str, State] = {"ok": "ok", "degraded": "warning"}
    detail = f"{status.state}, {status.phase}, round {status.round}" + "".join(
        f"; {r}" for r in status.reasons
    )
    found = [Finding("daemon", state.get(status.state, "failed"), detail)]
    if status.site != config.site.site:
        found.append(
            Finding("daemon", "failed", f"it is {status.site}'s daemon that answers", "Check --config.")
        )
    return status, found, True
