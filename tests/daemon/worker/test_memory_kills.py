"""Who killed the worker: counters of a made-up kernel, and of the real one where it lets a group be made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg.daemon.worker import memory_kills
from gossipseg.daemon.worker.memory_kills import Kills, Recent, blamed, read


def machine(root: Path, *, groups: str, counters: dict[str, str], vmstat: int | None = None) -> Kills:
    """What is read on a machine with these files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(groups)
    if vmstat is not None:
        (root / "proc/vmstat").write_text(f"nr_free_pages 9\noom_kill {vmstat}\nother 1\n")
    for name, text in counters.items():
        (root / "cg" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cg" / name).write_text(text)
    return read(root / "proc", root / "cg")


V2 = "0::/system.slice/gossipsegd.service\n"
EVENTS = "low 0\nhigh 0\nmax 31\noom 1\noom_kill {n}\noom_group_kill 0\n"
OWN = "system.slice/gossipsegd.service"


def test_the_group_of_a_service(tmp_path: Path) -> None:
    files = {f"{OWN}/memory.events": EVENTS.format(n=2), f"{OWN}/memory.max": f"{3 << 30}\n"}
    assert machine(tmp_path, groups=V2, counters=files, vmstat=7) == Kills(2, 7, 3 << 30)


def test_a_container_sees_its_own_group_at_the_top(tmp_path: Path) -> None:
    files = {"memory.events": EVENTS.format(n=1), "memory.max": "max\n"}
    assert machine(tmp_path, groups="0::/\n", counters=files) == Kills(1)
    other = {"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"}
    assert machine(tmp_path / "v1", groups="4:memory:/docker/abc\n0::/\n", counters=other) == Kills(5)


def test_version_1_and_a_group_without_a_counter_of_its_own(tmp_path: Path) -> None:
    files = {
        "memory/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        "memory/a/b/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert machine(tmp_path, groups="5:cpu,memory:/a/b\n0::/\n", counters=files) == Kills(4)
    parent = {"user.slice/memory.events": EVENTS.format(n=6)}
    assert machine(tmp_path / "p", groups="0::/user.slice/x/../y\n", counters=parent) == Kills(6)


def test_without_counters_nothing_is_known(tmp_path: Path) -> None:
    assert read(tmp_path, tmp_path) == Kills()
    odd = {"memory.events": "oom_kill many\n"}
    assert machine(tmp_path, groups="0::/\n", counters=odd, vmstat=3) == Kills(None, 3)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (Kills(1, 1), Kills(2, 2, 4 << 30), "for lack of memory (of its control group, limit 4 GiB)"),
        (Kills(1, 1), Kills(2, 1), "the kernel killed it for lack of memory"),
        (Kills(1, 1), Kills(1, 9), "by somebody"),
        (Kills(None, 1), Kills(None, 2), "most likely the kernel killed it for lack of memory"),
        (Kills(None, 1), Kills(None, 1), "by somebody"),
        (Kills(None, None), Kills(3, 3), "by somebody"),
        (Kills(), Kills(), "by somebody"),
    ],
)
def test_what_is_said(before: Kills, after: Kills, says: str) -> None:
    text = blamed(before, after)
    assert says in text
    assert (memory_kills.REMEDY in text) == ("memory" in says), "a remedy goes with it"


def test_what_was_killed_long_ago_says_nothing() -> None:
    """Another container's process, hours before; and a kill that is counted before its process is gone."""
    recent = Recent(Kills(None, 1), 0.0)
    assert not recent.due(9.0) and recent.due(10.0)
    recent.read(Kills(None, 2), 10.0)
    assert "most likely" in blamed(recent.kills, Kills(None, 2)), "it may just be dying"
    recent.read(Kills(None, 2), 20.0)
    assert "by somebody" in blamed(recent.kills, Kills(None, 2))
    assert "most likely" in blamed(recent.kills, Kills(None, 3))


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of 32 MiB below this process's own."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    paths = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines)}
    v1 = next((path for kinds, path in paths.items() if "memory" in kinds.split(",")), None)
    top = Path("/sys/fs/cgroup/memory" if v1 is not None else "/sys/fs/cgroup")
    group = top / (v1 or paths.get("", "/")).lstrip("/") / f"gossipseg-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as e:
        pytest.skip(f"no control group can be made here: {e}")
    try:
        (group / ("memory.limit_in_bytes" if v1 is not None else "memory.max")).write_text(str(32 << 20))
        yield group
    except OSError as e:
        pytest.skip(f"no memory limit can be set here: {e}")
    finally:
        group.rmdir()


EATER = """
import os, signal, sys
from gossipseg.daemon.worker import memory_kills
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
before = memory_kills.read()
child = os.fork()
if not child:
    if sys.argv[2] == "eat":
        kept = [bytearray(os.urandom(1 << 20)) for _ in range(200)]
    os.kill(os.getpid(), signal.SIGKILL)
_, status = os.waitpid(child, 0)
print(os.WTERMSIG(status), memory_kills.blamed(before, memory_kills.read()))
"""


@pytest.mark.faults
@pytest.mark.parametrize(("what", "says"), [("eat", "for lack of memory"), ("die", "by somebody")])
def test_a_real_kernel_says_so(small_group: Path, what: str, says: str) -> None:
    command = [sys.executable, "-c", EATER, str(small_group), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"{int(signal.SIGKILL)} "), done.stderr
    assert says in done.stdout
    assert ("limit 0.031 GiB" in done.stdout) == (what == "eat")
