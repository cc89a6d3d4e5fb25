"""Every command in README and docs, run page after page, as a newcomer would type it.

Changed for the test: `DIR`, ports and folders of the system get real values, budgets shrink, what a test
cannot run (make's whole targets, docker, systemctl, pip) is checked to exist.
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
from gossipseg.wire.control import ControlClient
from tests.e2e.federation import TASK, TRAINING, free_ports, write_data

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGES = (
    "README.md",
    "docs/admin/install.md",
    "docs/admin/join.md",
    "docs/ml/data.md",
    "docs/admin/operate.md",
    "docs/admin/troubleshooting.md",
    "docs/admin/monitoring.md",
    "docs/admin/security.md",
    "docs/ml/deployment.md",
    "docs/ml/algorithms.md",
    "docs/research/reproduce.md",
    "CONTRIBUTING.md",
    "docs/admin/upgrade-backup.md",
)
"""In the order in which a newcomer reads them; in the last one the site leaves."""
OF_THE_SYSTEM = ("/etc/gossipseg", "/etc/systemd/system", "/opt/gossipseg", "/var/lib/private/gossipseg")
"""Folders that the test has below its own."""


def blocks(page: Path, language: str) -> list[str]:
    """What stands in a page's blocks of code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Lines of a page's sh blocks."""
    return [line for block in blocks(ROOT / page, "sh") for line in block.splitlines() if line.strip()]


@dataclass
class Newcomer:
    """Types commands in a folder."""

    home: Path
    ports: list[int]
    federation: str
    """A peers.yaml without sites, with a task that fits the images."""
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
            case ["python3", "-m", "venv", *_]:
                words, cwd = [*words, "--without-pip"], self.home
            case [pip, "install", *wanted] if pip.endswith("/pip"):
                return self.install(wanted)
            case ["docker", "compose", "-f", file, *_]:
                assert (ROOT / file).is_file()
                return ""
            case ["systemctl", "daemon-reload"]:
                return ""
            case ["systemctl", *_, unit]:
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
        if "--federation" in words:  # "set name and task in the file so that they fit your images"
            (self.home / words[-1] / "peers.yaml").write_text(self.federation)
        return done.stdout

    def install(self, wanted: list[str]) -> str:
        """`-c constraints.txt .`, from the folder of the source."""
        match wanted:
            case ["-c", constraints, "."]:
                assert (ROOT / constraints).is_file() and (ROOT / "pyproject.toml").is_file()
                return ""
        raise AssertionError(f"pip install {wanted}")

    def adapt(self, line: str) -> str:
        line = line.replace("--data DIR", "--data hospitals").replace("--rounds 20", "--rounds 1 --steps 2")
        line = line.replace("--rounds 1 --steps 2 --seeds 0,1,2", "--rounds 2 --steps 2 --seeds 0")
        for i, port in enumerate(self.ports):
            line = line.replace(f":{7501 + i}", f":{port}")
        for folder in OF_THE_SYSTEM:
            line = line.replace(folder, f"{self.home}{folder}")
        return line.replace(" -C / ", f" -C {self.home} ")

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
    for i, hospital in enumerate(synthetic.hospitals(2)):
        for folders in ("hospitals/north", "hospitals/south"), ("north/data", "south/data"):
            write_data(tmp_path / folders[i], hospital, i)
    for folder in ("opt", "etc/systemd/system", "var/lib/private/gossipseg"):
        (tmp_path / folder).mkdir(parents=True)
    federation = {
        "federation": "readme",
        "task": TASK,
        "network": {"width": 4},
        "training": TRAINING,
        "membership": {"preset": "local"},
        "sites": [],
    }
    one = Newcomer(tmp_path, list(free_ports(3)), yaml.safe_dump(federation, sort_keys=False))
    yield one
    one.close()


@pytest.mark.e2e
@pytest.mark.slow
def test_every_command_in_readme_and_docs_works(newcomer: Newcomer) -> None:
    said = {line: newcomer.type(line) for page in PAGES for line in commands(page)}
    assert len(said) > 60
    assert "north" in said["gossipctl status --config north/site.yaml"]
    assert "south" in said["gossipctl peers --config north/site.yaml"]
    assert (newcomer.home / "predictions").is_dir()
    assert any((newcomer.home / "predictions").iterdir())
    assert (newcomer.home / "scores.csv").is_file()
    for made in ("model.pt", "model.safetensors"):
        assert list((newcomer.home / "exported").rglob(made)), made
    newcomer.daemons[0].wait(timeout=20)  # it left


def test_no_page_with_commands_is_left_out() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    missing = {str(p.relative_to(ROOT)) for p in pages if blocks(p, "sh")} - set(PAGES)
    assert not missing, f"run the commands of {sorted(missing)}, too"


def test_every_command_of_gossipctl_is_in_the_pages() -> None:
    from typer.main import get_command

    from gossipseg.ctl.main import build

    names = set(get_command(build([])).commands)  # type: ignore[attr-defined]
    text = "\n".join((ROOT / page).read_text() for page in PAGES)
    missing = {name for name in names if f"gossipctl {name}" not in text}
    assert not missing, f"tell the reader of {sorted(missing)}"


def test_the_compose_file_of_a_real_site_fits_the_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec", reason="no wheel for this Python")
    page = ROOT / "docs/admin/install.md"
    (text,) = [b for b in blocks(page, "yaml") if b.startswith("# compose.yaml")]
    compose_spec.PyCompose.from_yaml(text).to_spec()
