"""What the values must satisfy beyond their types: ranges, addresses, and what must fit together.

What belongs here: one rule for every number, and checks across keys. What must not: reading files.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gossipseg.algos.params.common import robust_problem
from gossipseg.config.files import FederationFile, ListedSite, MetricsParams, SiteFile
from gossipseg.config.problems import nearest
from gossipseg.config.reading import Source
from gossipseg.core.params import GossipParams, MembershipParams, QuarantineParams, RoundsParams
from gossipseg.errors import ConfigError
from gossipseg.learn.params import (
    ONE_SHOT_NETWORK,
    AdmissionParams,
    DataParams,
    DeviceParams,
    DpParams,
    PrivacyParams,
    TaskParams,
    TrainingParams,
    dp_problem,
    one_shot_problem,
)
from gossipseg.nets.params import NetworkParams, network_names
from gossipseg.wire.addresses import is_loopback, join_address, split_address
from gossipseg.wire.pacing import Windows
from gossipseg.wire.params import TransferParams, WireParams


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values of a number; the bounds belong to it unless open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        parts = []
        if math.isfinite(self.low):
            parts.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if math.isfinite(self.high):
            parts.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(parts) or "finite"


COUNT = Range(1)
NATURAL = Range(0)
POSITIVE = Range(0, low_open=True)
SHARE = Range(0, 1)
SHARE_BELOW_1 = Range(0, 1, high_open=True)
ANY = Range()

RANGES: dict[type, dict[str, Range]] = {
    # Ranges of algorithms and networks stand at their fields; the core's params know no pydantic.
    MembershipParams: {
        "probe_interval_s": POSITIVE,
        "probe_timeout_s": POSITIVE,
        "indirect_checks": NATURAL,
        "suspicion_multiplier": COUNT,
        "push_pull_interval_s": POSITIVE,
        "dead_kept_s": NATURAL,
        "gossip_records_per_message": COUNT,
        "max_self_health": NATURAL,
    },
    GossipParams: {
        "sender_rate": SHARE,
        "warmup_rounds": NATURAL,
        "retries": NATURAL,
        "max_age_rounds": COUNT,
        "offer_timeout_s": POSITIVE,
        "transfer_timeout_s": POSITIVE,
        "max_parallel_transfers": COUNT,
    },
    RoundsParams: {
        "quorum": COUNT,
        "deadline_s": NATURAL,
        "patience_s": POSITIVE,
        "alone_after_s": POSITIVE,
        "poll_interval_s": POSITIVE,
        "request_timeout_s": POSITIVE,
        "transfer_timeout_s": POSITIVE,
        "max_parallel_transfers": COUNT,
    },
    QuarantineParams: {
        "offences": COUNT,
        "window_s": POSITIVE,
        "first_s": POSITIVE,
        "factor": COUNT,
        "max_s": POSITIVE,
        "decay_s": POSITIVE,
        "dice_run": COUNT,
    },
    TaskParams: {
        "channels": COUNT,
        "spatial_dims": Range(2, 3),
        "patch_size": COUNT,
        "spacing_mm": POSITIVE,
        "ct_window_hu": ANY,
        "slice_axis": Range(0, 2),
    },
    TrainingParams: {
        "steps_per_round": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "weight_decay": NATURAL,
        "clip_grad_norm": POSITIVE,
        "schedule_rounds": COUNT,
        "decay_every_steps": COUNT,
        "decay_factor": Range(0, 1, low_open=True),
        "foreground_patches": SHARE,
        "ema_decay": SHARE_BELOW_1,
        "guard_drop": NATURAL,
        "window_overlap": SHARE_BELOW_1,
        "validate_every_rounds": COUNT,
    },
    DataParams: {"test_fraction": SHARE_BELOW_1, "validation_fraction": SHARE_BELOW_1},
    DeviceParams: {"threads": COUNT, "stuck_after_s": POSITIVE},
    PrivacyParams: {"clip_norm": POSITIVE, "noise_multiplier": NATURAL, "seed": Range(0, 2**63 - 1)},
    DpParams: {
        "noise_multiplier": Range(0.1),
        "max_grad_norm": POSITIVE,
        "delta": Range(0, 1, low_open=True, high_open=True),
        "max_epsilon": POSITIVE,
    },
    AdmissionParams: {
        "factor": COUNT,
        "least_change": POSITIVE,
        "least_norm_ratio": COUNT,
        "without_history": COUNT,
        "history_min": COUNT,
        "history_kept": COUNT,
    },
    MetricsParams: {"port": Range(0, 65535)},
    WireParams: {"max_model_bytes": COUNT},
    TransferParams: {"max_bytes_per_s": Range(1000)},
    FederationFile: {"version": COUNT, "seed": Range(0, 2**32 - 1)},
    SiteFile: {
        "version": COUNT,
        "rounds": COUNT,
        "max_parallel_transfers": COUNT,
        "disk_reserve_bytes": NATURAL,
    },
}


# ---------------------------------------------------------------- checks


def check_ranges(value: Any, source: Source, prefix: str = "") -> None:
    """Every number of a dataclass and of those inside it. Raises ConfigError about the first outside."""
    rules = RANGES.get(type(value), {})
    for f in dataclasses.fields(value):
        item, key = getattr(value, f.name), prefix + f.name.removesuffix("_")
        if dataclasses.is_dataclass(item):
            check_ranges(item, source, f"{key}.")
        else:
            _check_number(item, rules.get(f.name, ANY), key, source)


def _check_number(value: Any, rule: Range, key: str, source: Source) -> None:
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return  # not a number, or nothing
    given = source.given(key)
    if isinstance(given, bool):
        raise source.error("must be a number", key, given, "Write a number.")
    if not all(n in rule for n in numbers):
        shown = list(value) if isinstance(value, tuple) else value
        raise source.error(f"must be {rule}", key, shown, "Correct the number.")


def check_federation(federation: FederationFile, source: Source) -> None:
    """What must fit together in peers.yaml. Raises ConfigError."""
    check_ranges(federation, source)
    _check_task(federation.task, source)
    _check_network(federation.network, source)
    _check_one_shot(federation, source)
    m = federation.membership
    if m.probe_timeout_s > m.probe_interval_s:
        raise source.error(
            f"is longer than membership.probe_interval_s ({m.probe_interval_s:g})",
            "membership.probe_timeout_s",
            m.probe_timeout_s,
            "Make the time-out the shorter of the two.",
        )
    _check_unique(federation.sites, source)
    _check_algorithm(federation, source)
    _check_quorum(federation, source)
    for i, site in enumerate(federation.sites):
        _check_address(site.address, f"sites.{i}.address", source, dialled=True)


def check_site(site: SiteFile, source: Source) -> None:
    """What must fit together in site.yaml. Raises ConfigError."""
    check_ranges(site, source)
    _check_address(site.listen, "listen", source)
    if site.privacy.noise_multiplier and site.privacy.clip_norm is None:
        raise source.error(
            "has no effect without privacy.clip_norm",
            "privacy.noise_multiplier",
            site.privacy.noise_multiplier,
            "Write privacy.clip_norm too: the noise is measured in it.",
        )
    if site.advertise is not None:
        _check_address(site.advertise, "advertise", source, dialled=True)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", site.device.device):
        raise source.error(
            "is no device",
            "device.device",
            site.device.device,
            nearest(site.device.device, ("auto", "cpu", "cuda")) or "Write auto, cpu, cuda or cuda:1.",
        )
    _check_fractions(site.data, source)
    for i, interface in enumerate(site.discovery.interfaces):
        _check_ip(interface, f"discovery.interfaces.{i}", source)
    _check_metrics(site.metrics, source)
    _check_windows(site.transfers.windows, source)
    _check_text("data.path", site.data.path, source)
    _check_text("state_dir", site.state_dir, source)


def check_private(site: SiteFile, site_source: Source, federation: FederationFile, peers: Source) -> None:
    """What does not go with differentially private training. Raises ConfigError."""
    names = federation.algorithm.name, federation.network.norm, site.device.amp
    found = dp_problem(site.privacy, *names)
    if found is not None:
        problem, key, value, remedy = found
        raise (site_source if key.startswith("device.") else peers).error(problem, key, value, remedy)


def check_loopback(site: SiteFile, site_source: Source, federation: FederationFile, peers: Source) -> None:
    """Plaintext is for loopback addresses only. Raises ConfigError."""
    listed = [(peers, f"sites.{i}.address", s.address) for i, s in enumerate(federation.sites)]
    for source, key, address in [
        (site_source, "listen", site.listen),
        (site_source, "advertise", site.advertise),
        *listed,
    ]:
        if address is not None and not is_loopback(address):
            raise source.error(
                "insecure: true is allowed on loopback addresses only",
                key,
                address,
                "Remove `insecure`, or use 127.0.0.1 addresses.",
            )


def _check_metrics(metrics: MetricsParams, source: Source) -> None:
    try:
        local = is_loopback(join_address(metrics.host, metrics.port or 0))
    except ConfigError:
        local = False
    if not local:
        raise source.error(
            "is no address of this machine alone",
            "metrics.host",
            metrics.host,
            "Write 127.0.0.1 or ::1: the endpoint has no password. A Prometheus on another machine reaches "
            "it through an agent or a proxy on this one.",
        )


def _check_windows(windows: list[str], source: Source) -> None:
    for i, text in enumerate(windows):
        try:
            Windows.parse([text])
        except ConfigError as e:
            raise source.error(e.problem, f"transfers.windows.{i}", text, e.remedy) from None


def _check_text(key: str, value: str, source: Source) -> None:
    if not value.strip():
        raise source.error("is empty", key, value, "Give the path of a folder.")


def _check_address(address: str, key: str, source: Source, *, dialled: bool = False) -> None:
    try:
        host, port = split_address(address)
    except ConfigError as e:
        problem, remedy = _address_problem(address)
        raise source.error(problem or e.problem, key, address, remedy or e.remedy) from None
    if dialled and (host in ("0.0.0.0", "::") or port == 0):
        raise source.error(
            "cannot be dialled by other sites",
            key,
            address,
            "Give the name or address, and the port, under which the others reach this site.",
        )


def _address_problem(address: str) -> tuple[str, str]:
    """What is wrong with an address that cannot be read, and the remedy; empty where it is not plain."""
    remedy = "Write host:port, 192.0.2.7:7443 or [2001:db8::7]:7443."
    if "/" in address:
        return "is a URL, not host:port", remedy
    if address.count(":") > 1 and not address.startswith("["):
        return "is an IPv6 address without brackets", f"Write [{address}]:7443, where 7443 is the port."
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        return "has no port", f"Write {address or 'host'}:7443, where 7443 is the port."
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        return "has a bad port: a whole number up to 65535 is needed", remedy
    return ("has no host name" if not host else "has no valid host name"), remedy


def _check_ip(text: str, key: str, source: Source) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise source.error(
            "is no IP address", key, text, "Write the interface's IP address, such as 192.168.1.5."
        ) from None


def _check_fractions(data: DataParams, source: Source) -> None:
    if data.test_fraction + data.validation_fraction >= 1:
        raise source.error(
            f"with data.validation_fraction ({data.validation_fraction:g}) leaves nothing to train on",
            "data.test_fraction",
            data.test_fraction,
            "The two must stay below 1 together.",
        )


def _check_unique(sites: list[ListedSite], source: Source) -> None:
    for field, noun in (("name", "name"), ("address", "address")):
        seen: dict[str, int] = {}
        for i, site in enumerate(sites):
            value = getattr(site, field)
            if value in seen:
                raise source.error(
                    f"two sites have this {noun} (entries {seen[value]} and {i}, counted from 0)",
                    f"sites.{i}.{field}",
                    value,
                    f"Each site needs its own {noun}; correct or remove one of them.",
                )
            seen[value] = i


def _check_algorithm(federation: FederationFile, source: Source) -> None:
    """The network has the parts that the algorithm needs, and there are enough sites for it."""
    algorithm, network, listed = federation.algorithm, federation.network.name, len(federation.sites)
    suited = getattr(algorithm, "networks", None)
    if suited is not None and network not in suited and network != ONE_SHOT_NETWORK:
        raise source.error(
            f"{algorithm.name} needs a network with parts of a site's own",
            "network.name",
            network,
            f"Write one of {', '.join(suited)}, or another algorithm.",
        )
    least = getattr(algorithm, "min_sites", 1)
    if 0 < listed < least:
        raise source.error(
            f"needs {least} sites or more, and {listed} is listed",
            "algorithm.name",
            algorithm.name,
            "List the other sites (`gossipctl peers add`), or choose `local`.",
        )
    found = robust_problem(algorithm, listed)
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)


def _check_quorum(federation: FederationFile, source: Source) -> None:
    """Two quorums must have a site in common, or two common models could be committed for one round."""
    quorum, listed = federation.rounds.quorum, len(federation.sites)
    if quorum is None or not listed or listed // 2 < quorum <= listed:
        return
    raise source.error(
        f"must be more than half of the {listed} listed sites, and not more than all",
        "rounds.quorum",
        quorum,
        f"Write a number from {listed // 2 + 1} to {listed}, or remove the key: then it is a majority.",
    )


def _check_network(network: NetworkParams, source: Source) -> None:
    known = network_names()
    if network.name not in known:
        raise source.error(
            f"is not one of {', '.join(known)}",
            "network.name",
            network.name,
            nearest(network.name, known) or f"Choose one of {', '.join(known)}.",
        )


def _check_one_shot(federation: FederationFile, source: Source) -> None:
    names = federation.algorithm.name, federation.network.name
    found = one_shot_problem(*names, federation.task, federation.training)
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)


# ---------------------------------------------------------------- the task


def _check_task(task: TaskParams, source: Source) -> None:
    for problem, key, value, remedy in _task_problems(task):
        raise source.error(problem, f"task.{key}", value, remedy)


def _task_problems(task: TaskParams) -> Iterator[tuple[str, str, object, str]]:
    if task.slice_axis is not None and task.spatial_dims != 2:
        yield "is for 2-D networks", "slice_axis", task.slice_axis, "Remove it, or write spatial_dims: 2."
    for key, dims in (("patch_size", task.spatial_dims), ("spacing_mm", task.image_dims)):
        value = getattr(task, key)
        if value is not None and len(value) != dims:
            yield (
                f"needs {dims} numbers, one for each spatial dimension",
                key,
                list(value),
                "Give one number per axis, or change task.spatial_dims.",
            )
    if len(task.labels) < 2 or sorted(task.labels) != list(range(len(task.labels))):
        yield (
            "labels must be numbered 0, 1, 2 … with 0 the background",
            "labels",
            task.labels,
            "Use task.label_map to translate the values in the files.",
        )
    if len(set(task.labels.values())) != len(task.labels):
        yield "two labels have one name", "labels", task.labels, "Give each label its own name."
    stray = sorted(set(task.label_map.values()) - set(task.labels))
    if stray:
        yield (
            f"maps to {stray[0]}, which is not in task.labels",
            "label_map",
            task.label_map,
            f"Map file values to {', '.join(map(str, sorted(task.labels)))}.",
        )
    yield from _intensity_problems(task)


def _intensity_problems(task: TaskParams) -> Iterator[tuple[str, str, object, str]]:
    if task.intensity == "rgb" and task.channels != 3:
        yield "rgb needs task.channels: 3", "channels", task.channels, "Write 3, or another task.intensity."
    if task.convert_grey_to_rgb and task.channels != 3:
        yield (
            "is for tasks of 3 channels",
            "convert_grey_to_rgb",
            task.convert_grey_to_rgb,
            f"Remove it, or change task.channels ({task.channels}) to 3.",
        )
    if task.ct_window_hu[0] >= task.ct_window_hu[1]:
        yield (
            "the lower end must be below the upper end",
            "ct_window_hu",
            list(task.ct_window_hu),
            "Write [low, high] in Hounsfield units.",
        )
    if task.orientation is not None and not _is_orientation(task.orientation):
        yield (
            "is no orientation",
            "orientation",
            task.orientation,
            "Write three letters, one of R/L, A/P and S/I each, such as RAS.",
        )
    if task.orientation is not None and task.image_dims == 2:
        yield "is for 3-D images", "orientation", task.orientation, "Remove it, or write spatial_dims: 3."


def _is_orientation(text: str) -> bool:
    axes = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
    return len(text) == 3 and {axes.get(c) for c in text} == {0, 1, 2}
