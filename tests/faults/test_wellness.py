"""Am I well? Real daemons behind a hole in the path's MTU or a one-way firewall; hung; without their socket.

`status` at the sites that suffer names the reason, and says so no more once it is mended.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.federation import Federation, federation
from tests.faults.rig import Lan, lan, needs_namespaces
from tests.faults.test_network import QUICK, joined, seconds_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.faults]
PAIR = ("north", "south")


def codes(f: Federation, site: str) -> set[str]:
    status = f[site].status()
    return {c.code for c in status.concerns} if status is not None else set()


def has(f: Federation, site: str, code: str) -> Callable[[], bool]:
    return lambda: code in codes(f, site)


def well(f: Federation, *sites: str) -> Callable[[], bool]:
    return lambda: all((s := f[site].status()) is not None and s.state == "ok" for site in sites)


def ctl(f: Federation, site: str, *arguments: str) -> tuple[int, str]:
    """gossipctl, where the site is."""
    command = [*f[site].prefix, sys.executable, "-m", "gossipseg.ctl.main", *arguments]
    done = subprocess.run(
        [*command, "--config", str(f[site].config)], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def running(root: Path, *names: str) -> AbstractContextManager[tuple[Federation, Lan]]:
    return joined(root, *names, membership=QUICK)


@pytest.mark.netns
@needs_namespaces
@pytest.mark.parametrize("most_bytes", [1400, 700])
def test_a_path_that_drops_full_size_packets_is_named(
    tmp_path: Path, seen: Callable[[str], None], most_bytes: int
) -> None:
    """1400: the sites see each other and no model gets through; 700: not even the TLS handshake does."""
    with lan(*PAIR) as net:
        net.shrink("south", most_bytes)
        with federation(
            tmp_path, PAIR, addresses=net.addresses, prefixes=net.prefixes, membership=QUICK
        ) as f:
            for name in PAIR:
                f[name].start()
            named_s = seconds_until(f, "named", lambda: all(has(f, n, "path_mtu")() for n in PAIR), 120)
            code, told = ctl(f, "north", "check", "--no-data", "--reach")
            assert code == 1 and "a hole in the path's MTU" in told and "ip link set dev IFACE mtu" in told
            net.heal("south")
            healed_s = seconds_until(
                f, "forgotten", lambda: not any(has(f, n, "path_mtu")() for n in PAIR), 300
            )
    seen(f"named at both sites after {named_s:.0f} s; forgotten {healed_s:.0f} s after the mend")


@pytest.mark.netns
@needs_namespaces
@pytest.mark.parametrize("names", [PAIR, ("north", "south", "east")])
def test_a_one_way_firewall_is_named_on_both_sides(
    tmp_path: Path, seen: Callable[[str], None], names: tuple[str, ...]
) -> None:
    with lan(*names) as net:
        net.bar("south")
        with federation(
            tmp_path, names, addresses=net.addresses, prefixes=net.prefixes, membership=QUICK
        ) as f:
            for name in names:
                f[name].start()
            barred_s = seconds_until(f, "it is told", has(f, "south", "cannot_be_reached"), 120)
            others_s = seconds_until(f, "others tell", has(f, "north", "calls_in_only"), 120)
            told = "; ".join((f["south"].status() or pytest.fail("gone")).reasons)
            assert f"north: it cannot reach this site at {net.addresses['south']}" in told
            assert "no answer to the connection: a firewall" in told
            net.heal("south")
            healed_s = seconds_until(
                f,
                "forgotten",
                lambda: not has(f, "south", "cannot_be_reached")() and not has(f, "north", "calls_in_only")(),
                300,
            )
    seen(f"named there after {barred_s:.0f} s, at the others {others_s:.0f} s later; "
         f"forgotten {healed_s:.0f} s after the mend")  # fmt: skip


def test_a_deleted_socket_and_a_deleted_state_directory_are_noticed(tmp_path: Path) -> None:
    with federation(tmp_path, ("north",)) as f:
        f["north"].start()
        f.until("it answers", lambda: f["north"].status() is not None)
        f["north"].socket.unlink()
        f.until("the socket is back", has(f, "north", "control_socket_gone"), 60)
        shutil.rmtree(f["north"].folder / "state")
        f.until("it is told", has(f, "north", "state_dir_gone"), 60)
        status = f["north"].status()
        assert status is not None and "was deleted under the running daemon" in "; ".join(status.reasons)
        assert f["north"].end() in (0, 1)


def test_a_daemon_that_hangs_is_told_from_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with federation(tmp_path, ("north",)) as f:
        f["north"].start()
        f.until("it answers", lambda: f["north"].status() is not None)
        lock = f["north"].folder / "state" / "daemon.lock"
        subprocess.run(["touch", "-d", "-10 minutes", str(lock)], check=True)
        f["north"].send(signal.SIGSTOP)
        try:
            code, told = ctl(f, "north", "check", "--no-data", "--no-peers")
            assert code == 1 and "it hangs, or is stopped" in told and str(f["north"].pid) in told
            assert ctl(f, "north", "status")[0] == 69
        finally:
            f["north"].send(signal.SIGCONT)
        assert f["north"].end() == 0
        code, told = ctl(f, "north", "check", "--no-data", "--no-peers")
        assert "not running" in told


def test_lists_that_differ_are_told_at_both_sites(tmp_path: Path) -> None:
    with federation(tmp_path, PAIR, membership=QUICK) as f:
        for name in PAIR:
            f[name].start()
        f.until("both are well", well(f, *PAIR))
        other = tmp_path / "other.yaml"

        def add(d: dict[str, Any]) -> None:
            d["sites"].append({**d["sites"][0], "name": "west", "address": "127.0.0.1:9"})

        whole = f.peers_file.read_text()
        from gossipseg import trust

        fresh = trust.create_identity("west", tmp_path / "west").certificate_pem.decode()
        f.edit(add)
        f.edit(lambda d: d["sites"][-1].update(certificate=fresh))
        other.write_text(f.peers_file.read_text())
        f.peers_file.write_text(whole)
        f["north"].edit(peers=str(other))
        assert ctl(f, "north", "reload")[0] == 0
        f.until("told", lambda: all(has(f, n, "lists_differ")() for n in PAIR), 60)
        assert f["south"].events("lists_differ")
        status = f["south"].status()
        assert status is not None and "lists 3 sites, this site's lists 2" in "; ".join(status.reasons)
        f["north"].edit(peers=str(f.peers_file))
        assert ctl(f, "north", "reload")[0] == 0
        f.until("forgotten", lambda: not any(has(f, n, "lists_differ")() for n in PAIR), 60)
