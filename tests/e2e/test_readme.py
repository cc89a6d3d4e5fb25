"""Every command in the README, run in its order, as a newcomer would type it.

Changed for the test: `DIR` and ports get real values, budgets shrink, what a test cannot run (make's whole
targets, docker, systemctl) is checked to exist.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from gossipseg.errors import GossipsegError
from gossipseg.testbed import synthetic
from gossipseg.testbed.layout import free_ports
from gossipseg.wire.control import ControlClient
from tests.e2e.federation import TASK, TRAINING, write_data

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent


def commands() -> list[str]:
    """Lines of the README's sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@dataclass
class Newcomer:
    """Types commands in a folder."""

    home: Path
    ports: tuple[int, int]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "GOSSIPSEG_DEVICE__THREADS": "1"}

    def type(self, line: str) -> str:
        """Run a command line; its output. Fails when it does."""
        words = shlex.split(self.adapt(line))
        match words:
            case ["make", target]:
                words, cwd = ["make", "-n", target], ROOT
            case ["docker", "compose", "-f", file, *_]:
                assert (ROOT / file).is_file()
                return ""
            case ["sudo", "systemctl", *_, unit]:
                assert (ROOT / "systemd" / f"{unit}.service").is_file()
                return ""
            case ["gossipsegd", *_]:
                return self.start(words)
            case ["gossipctl", "watch", *_]:
                return self.watch(words)
            case _:
                cwd = self.home
        done = subprocess.run(words, cwd=cwd, env=self.env, capture_output=True, text=True, timeout=300)
        # A status may honestly be "degraded" (1): a peer that is just starting may be suspect at first.
        allowed = (0, 1) if "status" in words else (0,)
        assert done.returncode in allowed, f"{line}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def adapt(self, line: str) -> str:
        line = line.replace("--data DIR", "--data hospitals").replace("--rounds 20", "--rounds 1 --steps 2")
        line = line.replace("--rounds 1 --steps 2 --seeds 0,1,2", "--rounds 2 --steps 2 --seeds 0")
        return line.replace(":7501", f":{self.ports[0]}").replace(":7502", f":{self.ports[1]}")

    def start(self, words: list[str]) -> str:
        with (self.home / f"daemon{len(self.daemons)}.log").open("wb") as log:
            self.daemons.append(subprocess.Popen(words, cwd=self.home, env=self.env, stdout=log, stderr=log))
        self.until_trained(self.home / Path(words[-1]).parent / "state" / "control.sock")
        return ""

    def until_trained(self, socket: Path) -> None:
        """predict, evaluate and export need a first checkpoint."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with ControlClient(socket) as client:
                    if client.status().round >= 1:
                        return
            except GossipsegError:
                assert self.daemons[-1].poll() is None, next(iter(self.home.glob("*.log"))).read_text()
            time.sleep(0.2)
        raise AssertionError(f"no round finished behind {socket}")

    def watch(self, words: list[str]) -> str:
        """Look for a moment, then press Ctrl-C."""
        process = subprocess.Popen(words, cwd=self.home, env=self.env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert first.strip()
        return first

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.poll() is None:
                daemon.kill()
            daemon.wait()


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    first, second = free_ports(2)
    for i, hospital in enumerate(synthetic.hospitals(2)):
        for folder in ("hospitals/north", "hospitals/south"), ("north/data", "south/data"):
            write_data(tmp_path / folder[i], hospital, i)
    federation = {
        "federation": "readme",
        "task": TASK,
        "network": {"width": 4},
        "training": TRAINING,
        "membership": {"preset": "local"},
        "sites": [],
    }
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(federation, sort_keys=False))
    one = Newcomer(tmp_path, (first, second))
    yield one
    one.close()


@pytest.mark.e2e
@pytest.mark.slow
def test_every_command_in_the_readme_works(newcomer: Newcomer) -> None:
    lines = commands()
    assert len(lines) > 30
    said = {line: newcomer.type(line) for line in lines}
    assert "north" in said["gossipctl status --config north/site.yaml"]
    assert "south" in said["gossipctl peers --config north/site.yaml"]
    assert (newcomer.home / "predictions").is_dir()
    assert any((newcomer.home / "predictions").iterdir())
    assert (newcomer.home / "scores.csv").is_file()
    for made in ("model.pt", "model.safetensors"):
        assert list((newcomer.home / "exported").rglob(made)), made
    newcomer.daemons[0].wait(timeout=20)  # it left


def test_every_command_of_gossipctl_is_in_the_readme() -> None:
    from typer.main import get_command

    from gossipseg.ctl.main import build

    names = set(get_command(build([])).commands) - {"demo"}  # type: ignore[attr-defined]
    missing = {name for name in names if f"gossipctl {name}" not in README}
    assert not missing, f"tell the reader of {sorted(missing)}"
