"""`gossipctl check` on what a start of the daemon needs: folder, ports, locks and packages."""

from __future__ import annotations

import importlib.util
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from gossipseg.config import Config
from gossipseg.ctl.doctor.findings import Finding
from gossipseg.ctl.doctor.whereabouts import Whereabouts, whereabouts
from gossipseg.store.lock import holder_of
from gossipseg.wire.addresses import join_address, split_address
from gossipseg.wire.listen_address import listen_fault

EXTRAS = (
    ("tensorboard of site.yaml", "tensorboard", "tensorboard", "take tensorboard out of site.yaml"),
    ("privacy.dp of site.yaml", "opacus", "dp", "take privacy.dp out of site.yaml"),
    ("algorithm.name = 'fedcowpro' of peers.yaml", "skimage", "fedcowpro", "let all sites choose another"),
)
"""A setting, the package that it needs, the extra that brings it, the alternative."""
SCRAPE_TIMEOUT_S = 3.0


def check_whereabouts(config: Config) -> tuple[Whereabouts, Finding]:
    """Why no daemon answers on the control socket."""
    found = whereabouts(Path(config.site.state_dir), config.control_socket, config.site_path)
    state: dict[str, Literal["skipped", "warning", "failed"]] = {"none": "skipped", "starting": "warning"}
    return found, Finding("daemon", state.get(found.state, "failed"), found.text, found.remedy)


def check_worker_lock(config: Config) -> Iterator[Finding]:
    """Whether a worker of an earlier daemon runs, while no daemon does."""
    holder = holder_of(Path(config.site.state_dir) / "worker.lock")
    if holder is not None:
        yield Finding(
            "locks",
            "warning",
            f"process {holder}, a training worker of an earlier daemon, still runs: it holds worker.lock",
            f"It ends by itself when its daemon is gone; if it does not, end it: kill {holder}.",
        )


def check_port(config: Config) -> Iterator[Finding]:
    """Whether the daemon could listen at its address."""
    listen = config.site.listen
    if problem := _not_free(*split_address(listen)):
        remedy = "Stop what listens there, or choose another address in site.yaml (listen)."
        yield Finding("listen", "failed", f"{listen}: {problem}", remedy)
    elif (fault := next(check_listen(config), None)) is not None:
        yield fault
    else:
        yield Finding("listen", "ok", f"{listen} is free")


def check_listen(config: Config) -> Iterator[Finding]:
    """Whether others find this site where it listens; no finding without a reason for doubt."""
    site, me = config.site, config.me
    dialled = site.advertise or me.address
    if not dialled:
        return
    others = [s.address for s in config.others]
    fault = listen_fault(site.listen, dialled, others, any_port=site.discovery.mdns)
    if fault is not None:
        yield Finding("listen", "failed" if fault.certain else "warning", fault.text, fault.remedy)


def check_metrics(config: Config, *, running: bool) -> Iterator[Finding]:
    """The metrics' port: free, or this daemon's own."""
    wanted = config.site.metrics
    if not wanted.port:
        return
    where = join_address(wanted.host, wanted.port)
    if running:
        yield _scraped(config, where)
    elif problem := _not_free(wanted.host, wanted.port):
        remedy = "Set another metrics.port in site.yaml, or leave it out: the daemon would not start."
        yield Finding("metrics", "failed", f"{where}: {problem}", remedy)
    else:
        yield Finding("metrics", "ok", f"{where} is free")


def _scraped(config: Config, where: str) -> Finding:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{where}/metrics", timeout=SCRAPE_TIMEOUT_S) as answer:
            text = answer.read().decode(errors="replace")
    except (OSError, ValueError) as e:
        remedy = "What the file says counts from the next start; else look at the daemon's log."
        return Finding("metrics", "warning", f"the daemon does not answer at {where}: {e}", remedy)
    if f'site="{config.site.site}"' in text:
        return Finding("metrics", "ok", f"the daemon answers at {where}")
    remedy = "Set another metrics.port in site.yaml."
    return Finding("metrics", "warning", f"{where} is answered by something else", remedy)


def check_extras(config: Config) -> Iterator[Finding]:
    """Packages that only some settings need."""
    asked = {
        "tensorboard": config.site.tensorboard,
        "dp": config.site.privacy.dp is not None,
        "fedcowpro": config.federation.algorithm.name == "fedcowpro",
    }
    for setting, package, extra, otherwise in EXTRAS:
        if asked[extra] and importlib.util.find_spec(package) is None:
            yield Finding(
                "extras",
                "failed",
                f"{setting} needs the package {package}, which is not installed",
                f"pip install 'gossipseg[{extra}]', or {otherwise}.",
            )


def _not_free(host: str, port: int) -> str:
    """Why nothing could listen there; "" if it could."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with closing(socket.socket(family, kind, protocol)) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(address)
            s.listen()
    except (OSError, UnicodeError) as e:
        return str(getattr(e, "strerror", None) or e)
    return ""
