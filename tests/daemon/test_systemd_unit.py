"""The systemd unit: it verifies, it is hardened, and a site installed as its head says starts under it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipseg import errors, trust
from gossipseg.wire.listening import cannot_listen
from tests.e2e.federation import federation

UNIT = Path(__file__).parents[2] / "systemd" / "gossipsegd.service"
NOBODY = 65534


def settings(key: str) -> list[str]:
    """Values of a key of the unit, line by line."""
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.mark.skipif(not Path("/usr/bin/systemd-analyze").exists(), reason="no systemd-analyze here")
def test_the_unit_verifies_and_is_hardened(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/gossipseg/bin/gossipsegd", sys.executable))
    verify = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True
    )
    assert verify.returncode == 0 and UNIT.name not in verify.stderr, verify.stderr
    security = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", "--threshold=20", str(copy)],
        capture_output=True,
        text=True,
    )
    assert security.returncode == 0, security.stdout[-400:]


def test_the_unit_keeps_what_the_design_promises() -> None:
    text = UNIT.read_text()
    for line in ("Type=notify", "KillMode=mixed", "StateDirectory=gossipseg", "WatchdogSec="):
        assert line in text
    active = [line for line in text.splitlines() if not line.startswith("#")]
    for breaks_cuda in ("MemoryDenyWriteExecute", "PrivateDevices", "ProcSubset"):
        assert not any(line.startswith(breaks_cuda) for line in active)


def test_the_unit_gives_up_for_what_does_not_mend_itself_alone() -> None:
    (prevented,) = settings("RestartPreventExitStatus")
    never = {int(code) for code in prevented.split()}
    assert never == {errors.EXIT_USAGE, errors.EXIT_DATA, errors.EXIT_CONFIG}
    assert settings("StartLimitIntervalSec") == ["0"] and not settings("StartLimitBurst"), "never given up"
    assert settings("Restart") == ["on-failure"]
    passing = (errors.EXIT_FAILED, errors.EXIT_IO, errors.EXIT_TEMPFAIL)
    assert not never & set(passing)


def test_every_end_of_the_daemon_is_of_one_kind_or_the_other() -> None:
    """What may pass is started again, what an operator must mend is not: by the classes of errors.py."""
    never = {int(code) for code in settings("RestartPreventExitStatus")[0].split()}
    mends = {e: e.exit_code not in never for e in (errors.ConfigError, errors.DataError, errors.LocalError)}
    assert list(mends.values()) == [False, False, True]
    late, taken, refused = (
        cannot_listen("192.0.2.7:443", OSError(number, "x"))
        for number in (errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EACCES)
    )
    assert [e.exit_code in never for e in (late, taken, refused)] == [False, False, True]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach: pytest's own are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="gossipseg-unit-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def hand_over(etc: Path, credentials: Path) -> None:
    """As systemd does: what cannot be loaded is as it was set; where nothing was, the unit does not start."""
    credentials.mkdir()
    defaults = dict(text.split(":", 1) for text in settings("SetCredential"))
    for text in settings("LoadCredential"):
        name, _, path = text.partition(":")
        source = etc / Path(path).relative_to("/etc/gossipseg")
        given = source.read_bytes() if source.exists() else defaults[name].encode()
        (credentials / name).write_bytes(given)
        (credentials / name).chmod(0o400)


def as_installed(etc: Path, credentials: Path, state: Path) -> dict[str, str]:
    """The recipe in the unit's head, and what systemd adds; gives the environment of the daemon."""
    (recipe,) = re.findall(r"chmod (\d+) /etc/gossipseg\b", UNIT.read_text())
    assert [recipe] == settings("ConfigurationDirectoryMode"), "systemd would warn"
    etc.chmod(int(recipe, 8))
    assert (etc / "identity").stat().st_mode & 0o777 == 0o700, "as `gossipctl init` makes it"
    hand_over(etc, credentials)
    state.mkdir(mode=0o700)
    for path in (credentials, *credentials.iterdir(), state):
        os.chown(path, NOBODY, NOBODY)
    given = [word for line in settings("Environment") for word in line.split()]
    env = dict(word.replace("%d", str(credentials)).split("=", 1) for word in given)
    return env | {
        "CREDENTIALS_DIRECTORY": str(credentials),
        "HOME": str(state),
        "MPLCONFIGDIR": str(state / ".cache"),
    }


def test_a_rotation_broken_off_between_key_and_certificate_starts_under_the_unit(tmp_path: Path) -> None:
    identity = tmp_path / "etc" / "identity"
    present = trust.create_identity("north", identity)
    hand_over(tmp_path / "etc", tmp_path / "before")
    trust.create_next("north", present)
    next_key, _ = trust.next_paths(present.key_path, present.certificate_path)
    present.key_path.write_bytes(next_key.read_bytes())
    hand_over(tmp_path / "etc", tmp_path / "between")
    loaded = [
        trust.Identity.load(tmp_path / folder / "key.pem", tmp_path / folder / "cert.pem")
        for folder in ("before", "between")
    ]
    assert loaded[0].site_id == present.site_id != loaded[1].site_id


AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


@pytest.mark.e2e
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv")
def test_a_site_installed_as_the_unit_says_starts_as_a_user_of_its_own(open_folder: Path) -> None:
    """Its identity folder is root's alone: what the daemon needs of it comes as credentials. (The worker's
    start is not waited for: where Python lies in root's own folder it has none.)
    """
    look = [*AS_NOBODY, sys.executable, "-c", "import gossipseg"]
    if subprocess.run(look, capture_output=True).returncode != 0:
        pytest.skip("this Python is not for all to run")
    with federation(open_folder, ["north"]) as f:
        north = f["north"]
        north.env = as_installed(north.folder, open_folder / "credentials", north.folder / "state")
        north.prefix = AS_NOBODY
        north.start()
        f.until("a daemon of a user that may not read the identity", lambda: north.status() is not None)
        assert north.end() == 0
