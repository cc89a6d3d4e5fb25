"""Real daemons whose data or address come late: they wait, say so, and go on by themselves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from gossipseg import errors
from tests.e2e.federation import Federation, federation

pytestmark = pytest.mark.e2e


def reasons(f: Federation, name: str = "north") -> str:
    status = f[name].status()
    return " ".join(status.reasons) if status else ""


def state(f: Federation, name: str = "north") -> str:
    status = f[name].status()
    return status.worker.state if status else ""


def test_a_share_that_is_mounted_after_the_start_and_goes_away_again(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        data, share = f["north"].folder / "data", tmp_path / "share"
        data.rename(share)
        data.mkdir()
        f["north"].start()
        f.until("it waits", lambda: state(f) == "waiting")
        status = f["north"].status()
        assert status is not None and status.state == "degraded" and status.worker.pid is None
        assert f"data.path {data} is empty" in reasons(f) and "mounted" in reasons(f)
        data.rmdir()
        f["north"].send(signal.SIGHUP)
        f.until("it says what it sees", lambda: f"{data} is not there" in reasons(f))
        share.rename(data)
        f.until_round("north", 1)
        assert "data.path" not in reasons(f)
        assert [e["event"] for e in f["north"].events("worker_waiting", "worker_lost")] == 2 * [
            "worker_waiting"
        ]
        shutil.move(data, share)
        os.kill(worker_pid(f), signal.SIGKILL)
        f.until("it waits again", lambda: state(f) == "waiting")
        shutil.move(share, data)
        f["north"].send(signal.SIGHUP)
        f.until("it trains again", lambda: state(f) == "training")
        assert f["north"].end() == errors.EXIT_OK


def worker_pid(f: Federation) -> int:
    status = f["north"].status()
    assert status is not None and status.worker.pid is not None
    return status.worker.pid


def test_images_on_a_share_below_the_data_folder(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        data = f["north"].folder / "data"
        names = {Path(p).parent for p in data.rglob("*.png")}
        for folder in names:
            folder.rename(tmp_path / folder.name)
            folder.mkdir()
        f["north"].start()
        f.until("it waits", lambda: state(f) == "waiting")
        assert "is empty: waiting" in reasons(f)
        for folder in names:
            folder.rmdir()
            (tmp_path / folder.name).rename(folder)
        f["north"].send(signal.SIGHUP)
        f.until("it trains", lambda: state(f) == "training")


def test_a_port_that_is_left_while_the_daemon_waits(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f, socket.socket() as s:
        s.bind(("127.0.0.1", int(f["north"].address.rsplit(":", 1)[1])))
        s.listen()
        f["north"].start()
        f.until("it says who has the port", lambda: f"process {os.getpid()}" in reasons(f))
        s.close()
        f.until("it listens", lambda: f["north"].events("listening"))
        assert "listen" not in reasons(f)


LONE = ("unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")


@pytest.mark.netns
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("nsenter") or not shutil.which("ip"),
    reason="needs root, ip, nsenter",
)
@pytest.mark.parametrize("address", ["192.0.2.7:7443", "[2001:db8::7]:7443"])
def test_an_address_that_comes_late(tmp_path: Path, address: str) -> None:
    if subprocess.run([*LONE, "true"], capture_output=True).returncode:
        pytest.skip("no network namespace can be made here")
    host = address.rpartition(":")[0].strip("[]")
    with federation(tmp_path, ["north"], addresses={"north": address}) as f:
        f["north"].prefix = LONE
        f["north"].start()
        f.until("it waits", lambda: f"{address}: this site cannot listen there" in reasons(f))
        f.until("it trains meanwhile", lambda: state(f) == "training")
        add = ["ip", "addr", "add", f"{host}/{128 if ':' in host else 32}", "dev", "lo", "nodad"]
        command = ["nsenter", "-t", str(f["north"].pid), "-n", *(add if ":" in host else add[:-1])]
        subprocess.run(command, check=True)
        f.until("it listens", lambda: f["north"].events("listening"))
        f.until("all is well", lambda: f.well("north"))
        assert f["north"].end() == errors.EXIT_OK


def test_a_name_that_nobody_knows_yet(tmp_path: Path) -> None:
    with federation(tmp_path, ["north"]) as f:
        f["north"].edit(listen="north.invalid:7443")
        f["north"].start()
        f.until("it waits", lambda: "north.invalid:7443" in reasons(f))
        assert f["north"].end() == errors.EXIT_OK
