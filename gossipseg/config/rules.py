"""Consistency rules of peers.yaml, of site.yaml, and of the two together."""

from __future__ import annotations

import re

from gossipseg.algos.params.common import robust_problem
from gossipseg.config.address_rules import check_address, check_ip
from gossipseg.config.exchange import exchange_problem, together_problem
from gossipseg.config.files import FederationFile, ListedSite, MetricsParams, SiteFile
from gossipseg.config.problems import nearest
from gossipseg.config.ranges import check_ranges
from gossipseg.config.reading import Source
from gossipseg.config.task_rules import check_task
from gossipseg.errors import ConfigError
from gossipseg.learn.data.flips import flips_problem
from gossipseg.learn.params import (
    ONE_SHOT_NETWORK,
    PATTERN_REMEDY,
    DataParams,
    dp_problem,
    labels_problem,
    one_shot_problem,
    pattern_problem,
    personal_network_problem,
    personal_problem,
    unlearned_problem,
)
from gossipseg.nets.params import NetworkParams, network_names
from gossipseg.wire.addresses import is_loopback, join_address
from gossipseg.wire.pacing import Windows


def check_federation(federation: FederationFile, source: Source) -> None:
    """Check the consistency of peers.yaml. Raises ConfigError."""
    check_ranges(federation, source)
    check_task(federation.task, source)
    _check_network(federation.network, source)
    _check_one_shot(federation, source)
    _check_flips(federation, source)
    _check_personal(federation, source)
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
    _check_rounds(federation, source)
    _check_quorum(federation, source)
    for i, site in enumerate(federation.sites):
        check_address(site.address, f"sites.{i}.address", source, dialled=True)


def check_site(site: SiteFile, source: Source) -> None:
    """Check the consistency of site.yaml. Raises ConfigError."""
    check_ranges(site, source)
    check_address(site.listen, "listen", source)
    if site.privacy.noise_multiplier and site.privacy.clip_norm is None:
        raise source.error(
            "has no effect without privacy.clip_norm",
            "privacy.noise_multiplier",
            site.privacy.noise_multiplier,
            "Write privacy.clip_norm too: the noise is measured in it.",
        )
    if site.advertise is not None:
        check_address(site.advertise, "advertise", source, dialled=True)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", site.device.device):
        raise source.error(
            "is no device",
            "device.device",
            site.device.device,
            nearest(site.device.device, ("auto", "cpu", "cuda")) or "Write auto, cpu, cuda or cuda:1.",
        )
    _check_fractions(site.data, source)
    _check_pattern(site.data, source)
    for i, interface in enumerate(site.discovery.interfaces):
        check_ip(interface, f"discovery.interfaces.{i}", source)
    _check_metrics(site.metrics, source)
    _check_windows(site.transfers.windows, source)
    _check_text("data.path", site.data.path, source)
    _check_text("state_dir", site.state_dir, source)
    _check_named(site, source)


def check_private(site: SiteFile, site_source: Source, federation: FederationFile, peers: Source) -> None:
    """Refuse settings that contradict differentially private training. Raises ConfigError."""
    names = federation.algorithm.name, federation.network.norm, site.device.amp
    found = dp_problem(site.privacy, *names)
    if found is not None:
        problem, key, value, remedy = found
        raise (site_source if key.startswith("device.") else peers).error(problem, key, value, remedy)


def check_personal_network(site: SiteFile, source: Source, federation: FederationFile) -> None:
    """Check that a personal model of this network can stand beside the shared one. Raises ConfigError."""
    found = personal_network_problem(site.personal_network, federation.training, federation.algorithm)
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)


def check_labels(site: SiteFile, source: Source, federation: FederationFile) -> None:
    """Check that a site's label settings are about the task's labels, and that somebody teaches it those
    that it does not annotate. Raises ConfigError."""
    found = labels_problem(federation.task, site.data)
    found = found or unlearned_problem(
        federation.task, site.data, federation.algorithm, federation.network.name
    )
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)


def check_budget(site: SiteFile, source: Source, federation: FederationFile) -> None:
    """Check that a site's budget ends no later than the federation's, and leaves rounds to learn together.

    Raises ConfigError.
    """
    of_all = federation.training.rounds
    if site.rounds is not None and of_all is not None and site.rounds > of_all:
        raise source.error(
            f"is more than the federation's budget, training.rounds ({of_all}) in peers.yaml",
            "rounds",
            site.rounds,
            f"Write {of_all} or fewer, remove the key, or agree on another training.rounds at all sites.",
        )
    found = together_problem(federation, site.rounds) if site.rounds is not None else None
    if found is not None:
        problem, key, least = found
        remedy = f"Give {least} rounds or more, or lower {key} in peers.yaml."
        raise source.error(problem, "rounds", site.rounds, remedy)


def _check_rounds(federation: FederationFile, source: Source) -> None:
    """Check when models are exchanged, and that the budget leaves some rounds to learn together."""
    wrong = exchange_problem(federation)
    if wrong is not None:
        raise source.error(*wrong)
    rounds = federation.training.rounds
    found = together_problem(federation, rounds) if rounds is not None else None
    if found is not None:
        problem, key, least = found
        remedy = f"Give {least} rounds or more, or lower {key}."
        raise source.error(problem, "training.rounds", rounds, remedy)


def _check_personal(federation: FederationFile, source: Source) -> None:
    found = personal_problem(federation.training, federation.algorithm)
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)


def check_loopback(site: SiteFile, site_source: Source, federation: FederationFile, peers: Source) -> None:
    """Refuse plaintext on other than loopback addresses. Raises ConfigError."""
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
            "is not a loopback address",
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


def _check_named(site: SiteFile, source: Source) -> None:
    """Check that the personal model's network has a name, which is known: no default stands for it."""
    network = site.personal_network
    if network is None:
        return
    if source.given("personal_network.name") is None:
        raise source.error(
            "this key is missing",
            "personal_network.name",
            None,
            f"Name the network: {', '.join(network_names())}.",
        )
    _check_network(network, source, "personal_network")


def _check_text(key: str, value: str, source: Source) -> None:
    if not value.strip():
        raise source.error("is empty", key, value, "Give the path of a folder.")


def _check_fractions(data: DataParams, source: Source) -> None:
    if data.test_fraction + data.validation_fraction >= 1:
        raise source.error(
            f"with data.validation_fraction ({data.validation_fraction:g}) leaves nothing to train on",
            "data.test_fraction",
            data.test_fraction,
            "The two must stay below 1 together.",
        )


def _check_pattern(data: DataParams, source: Source) -> None:
    problem = pattern_problem(data.patient_pattern)
    if problem is not None:
        raise source.error(problem, "data.patient_pattern", data.patient_pattern, PATTERN_REMEDY)


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
    """Check that the network has the parts that the algorithm needs, and that there are enough sites."""
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
    """Check that two quorums have a site in common: otherwise two global models could be committed for one
    round."""
    quorum, listed = federation.rounds.quorum, len(federation.sites)
    if quorum is None or not listed or listed // 2 < quorum <= listed:
        return
    raise source.error(
        f"must be more than half of the {listed} listed sites, and not more than all",
        "rounds.quorum",
        quorum,
        f"Write a number from {listed // 2 + 1} to {listed}, or remove the key: then it is a majority.",
    )


def _check_network(network: NetworkParams, source: Source, section: str = "network") -> None:
    known = network_names()
    if network.name not in known:
        raise source.error(
            f"is not one of {', '.join(known)}",
            f"{section}.name",
            network.name,
            nearest(network.name, known) or f"Choose one of {', '.join(known)}.",
        )


def _check_one_shot(federation: FederationFile, source: Source) -> None:
    names = federation.algorithm.name, federation.network.name
    found = one_shot_problem(*names, federation.task, federation.training)
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)


def _check_flips(federation: FederationFile, source: Source) -> None:
    found = flips_problem(federation.task, federation.training)
    if found is not None:
        problem, key, value, remedy = found
        raise source.error(problem, key, value, remedy)
