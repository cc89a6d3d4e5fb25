"""A state directory that turns read-only, and checkpoints that rot."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gossipseg.store import Checkpoints
from tests.e2e.federation import Federation, Site, federation
from tests.faults.shims import SlowDisk

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.faults]
Seen = Callable[[str], None]


PAIRS = (("north", "south"), ("south", "north"))


def alive(f: Federation, name: str, other: str) -> bool:
    row = f[name].peer(other)
    return row is not None and row.state == "alive"


def reasons(f: Federation, name: str) -> str:
    status = f[name].status()
    return "(no answer)" if status is None else " ".join(status.reasons)


@contextmanager
def read_only(folder: Path) -> Iterator[Callable[[], None]]:
    """Cover the folder with a read-only view of itself; yields what takes the cover away."""
    mounted = ["mount", "--bind", str(folder), str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounted, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    covered = [True]

    def uncover() -> None:
        if covered:
            covered.clear()
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    try:
        how = "remount,bind,ro"
        subprocess.run(["mount", "-o", how, str(folder)], check=True, capture_output=True)
        yield uncover
    finally:
        uncover()


def test_training_outlives_a_state_directory_that_turns_read_only(tmp_path: Path, seen: Seen) -> None:
    with federation(tmp_path, ["north"]) as f:
        north = f["north"]
        north.start()
        f.until_round("north", 2)
        with read_only(north.folder / "state") as mend:
            at = f.round_of("north")
            f.until("status says so", lambda: "ead-only" in reasons(f, "north"))
            f.until_round("north", at + 2)
            said = reasons(f, "north")
            mend()
            f.until("all is well again", lambda: reasons(f, "north") == "")
        assert north.end() == 0
        seen(f"training went on; status said: {said[:100]!r}; well again after the mend")


def test_a_slow_fsync_is_told_and_makes_no_site_suspect(tmp_path: Path, seen: Seen) -> None:
    disk = SlowDisk(tmp_path / "shim")
    with federation(tmp_path, ["north", "south"]) as f:
        f["north"].env = disk.env
        for site in f.sites.values():
            site.start()
        f.until("both see each other", lambda: all(alive(f, a, b) for a, b in PAIRS))
        f.until_round("north", 1)
        began = time.time()
        disk.slow(4.0)
        at = f.round_of("south")
        f.until("status says so", lambda: "the disk is slow" in reasons(f, "north"))
        said = reasons(f, "north")
        f.until_round("south", at + 3)
        disk.slow(0.0)
        at = f.round_of("north")
        f.until_round("north", at + 1)
        suspected = [e for a, _ in PAIRS for e in f[a].events("member_suspect", "member_dead")]
        suspected = [e for e in suspected if e["t"] > began]
        assert suspected == [] and len(f["north"].events("disk_slow")) == 1
        assert [s.end() for s in f.sites.values()] == [0, 0]
        seen(f"nobody was suspected; status said: {said[:120]!r}")


def test_a_stderr_that_nobody_reads_stops_no_site(tmp_path: Path, seen: Seen) -> None:
    nobody, full = os.pipe()
    fcntl.fcntl(full, fcntl.F_SETPIPE_SZ, 4096)
    os.write(full, b"x" * 4096)
    try:
        with federation(tmp_path, ["north", "south"]) as f:
            north = f["north"]
            north.stderr = full
            for site in f.sites.values():
                site.start()
            f.until("both see each other", lambda: all(alive(f, a, b) for a, b in PAIRS))
            f.until("status says so", lambda: "standard error takes no log line" in reasons(f, "north"))
            said = reasons(f, "north")
            at_start = f["south"].events("member_suspect")  # two that start at once may miss a ping
            f.until_round("north", 2)
            os.read(nobody, 1 << 16)
            f.until("all is well again", lambda: reasons(f, "north") == "")
            os.set_blocking(full, False)
            with contextlib.suppress(BlockingIOError):
                while os.write(full, b"x" * 4096):
                    pass
            os.set_blocking(full, True)
            assert north.end() == 0, "SIGTERM is obeyed"
            assert f["south"].events("member_suspect", "member_dead") == at_start
            seen(f"trained on, and ended with 0; status said: {said[:120]!r}")
    finally:
        os.close(nobody)
        os.close(full)


def test_a_read_only_state_directory_is_refused_at_the_start(tmp_path: Path, seen: Seen) -> None:
    with (
        federation(tmp_path, ["north"]) as f,
        read_only(made(f["north"].folder / "state")),
    ):
        north = f["north"]
        north.start()
        assert north.process is not None
        code = north.process.wait(60)
        assert code not in (0, -signal.SIGKILL) and "ead-only" in north.log
        assert "Traceback" not in north.log
        seen(f"exit code {code}: {north.log.strip().splitlines()[-1][:110]!r}")
        north.process = None


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("damage", ["a flipped bit", "cut short", "zeros"])
def test_a_damaged_checkpoint_is_found_and_the_one_before_used(
    tmp_path: Path, seen: Seen, damage: str
) -> None:
    with federation(tmp_path, ["north"], algorithm={"name": "local"}) as f:
        north = f["north"]
        north.start()
        f.until_round("north", 3)
        north.end(signal.SIGKILL)
        newest, before = Checkpoints(north.folder / "state" / "checkpoint").newest()
        spoil(newest, damage)
        lives = 1
        north.start()
        f.until("the worker is back", lambda: len(north.events("worker_ready")) > lives)
        assert north.events("worker_ready")[-1]["round"] == Checkpoints.round_of(before)
        said = reasons(f, "north")
        assert newest.name in said and before.name in said, said
        aside = newest.with_name(newest.name + ".corrupt")
        assert aside.exists()
        f.until_round("north", Checkpoints.round_of(newest) + 1)
        assert ended_well(north)
        seen(f"went on from {before.name}; status: {said!r}")


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    match damage:
        case "a flipped bit":
            content[middle] ^= 1
        case "cut short":
            del content[middle:]
        case _:
            content[middle:] = bytes(len(content) - middle)
    path.write_bytes(content)


def ended_well(site: Site) -> bool:
    return site.end() == 0
