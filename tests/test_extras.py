"""What an installation without the extras does: all that does not draw, and an error that names the extra."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gossipseg.errors import ConfigError
from gossipseg.learn.oneshot import pseudolabels

ROOT = Path(__file__).parent.parent
PLAIN = "import sys; sys.modules.update(dict.fromkeys(('matplotlib', 'skimage')))\n"
"""Both are as good as not installed."""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PLAIN + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_daemon_the_worker_and_the_commands_load() -> None:
    done = run(
        "import gossipseg.ctl.main, gossipseg.ctl.testbed, gossipseg.daemon.main, gossipseg.lab.main\n"
        "import gossipseg.learn.worker.session, gossipseg.learn.commands.cli, gossipseg.testbed.experiment"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("ctl", ["demo", "--out"]),
        ("ctl", ["testbed", "run", "--workdir"]),
        ("lab", ["compare", "--data", "nowhere", "--out"]),
        ("lab", ["report", "--out"]),
    ],
)
def test_what_draws_names_the_extra_before_it_begins(
    program: str, arguments: list[str], tmp_path: Path
) -> None:
    done = run(f"from gossipseg import ends; ends.{program}()", *arguments, tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "needs the package matplotlib" in done.stderr and "'gossipseg[lab]'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_pseudo_labels_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pseudolabels.need_skimage()
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ConfigError, match=r"fedcowpro.*scikit-image.*gossipseg\[fedcowpro\]"):
        pseudolabels.need_skimage()


def test_the_tests_install_what_the_extras_bring() -> None:
    """`make demo` and `make test` install the extra `test` alone."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in ("dicom", "lab", "fedcowpro", "tensorboard", "dp"):
        assert set(extras[extra]) <= set(extras["test"]), extra
