"""docs/extending.md, as it stands: its package is put on the path, found, configured, and trained with."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.learn.harness import write_png_site

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text()
TASK = {
    "name": "discs",
    "channels": 1,
    "labels": {0: "background", 1: "disc"},
    "patch_size": [32, 32],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """What `pip install .` would leave: the modules, and the entry points in a dist-info folder."""
    for text in blocks("python"):
        name = text.splitlines()[0].removeprefix("# ")
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    project = tomllib.loads(blocks("toml")[0])["project"]
    info = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    (tmp_path / "peers.yaml").write_text(
        yaml.safe_dump({"version": 1, "federation": "extended", "task": TASK}) + blocks("yaml")[0]
    )
    write_png_site(tmp_path / "data")
    return tmp_path


def run(package: Path, code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=package, env=env, capture_output=True, text=True, timeout=300
    )


_CONFIGURED = """
import sys
from pathlib import Path
from gossipseg import config
f = config.load_federation(Path("peers.yaml"))
a = f.algorithm
print(a.name, a.exchange, a.every_rounds, f.network.name, "torch" in sys.modules)
"""

_TRAINED = """
import dataclasses, json
from pathlib import Path
from gossipseg import config
from gossipseg.learn import jobs
from gossipseg.learn.params import WorkerSpec
from tests.learn.harness import make_spec, make_trainer

f = config.load_federation(Path("peers.yaml"))
spec = make_spec(Path("data"), Path("state"), algorithm=f.algorithm)
spec = dataclasses.replace(spec, network=dataclasses.asdict(f.network))
trainer = make_trainer(spec)
files = []
for r in (1, 2, 3):
    done = trainer.run_round(jobs.StartRound(r, export=True))
    files.append(jobs.UpdateFile(f"site{r}", done.export.path, 1, r))
made = trainer.aggregate(jobs.Aggregate(1, 0, files))
print(json.dumps([type(trainer.algorithm).__name__, type(trainer.student.model.network).__name__,
                  made.contributors, made.export is not None]))
"""


def test_the_settings_are_read_without_torch(package: Path) -> None:
    done = run(package, _CONFIGURED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fedmedian", "rounds", "1", "plainnet", "False"]


def test_it_trains_and_combines(package: Path) -> None:
    done = run(package, _TRAINED)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["FedMedian", "PlainNet", ["site1", "site2", "site3"], True]


def test_a_coordinated_algorithm_that_cannot_combine_is_refused_at_its_start(package: Path) -> None:
    module = package / "trimmed" / "fedmedian.py"
    text = module.read_text().replace("import FedAvg", "import Algorithm as FedAvg")
    text = text.replace("algos.fedavg", "algos.base").replace("def aggregate", "def combine")
    module.write_text(text.replace("FedMedian(params.weighting)", "FedMedian()"))
    done = run(package, _TRAINED)
    assert done.returncode != 0
    assert "FedMedian is coordinated and has no `aggregate`" in done.stderr.strip().splitlines()[-1]


def test_a_broken_package_is_named_where_it_is_asked_for(package: Path) -> None:
    (package / "trimmed" / "params.py").write_text("raise RuntimeError('out of date')")
    done = run(package, _CONFIGURED)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "the package that brings this algorithm cannot be loaded" in last
    assert "trimmed.params:FedMedianParams: RuntimeError: out of date" in last
    (package / "peers.yaml").write_text((package / "peers.yaml").read_text().replace("fedmedian", "gcml"))
    text = _CONFIGURED.replace("a.every_rounds", "1")
    assert run(package, text).returncode == 0, "nobody asked for it"
