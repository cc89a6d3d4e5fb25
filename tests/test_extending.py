"""docs/ml/extending.md, its package is installed, found, and run by trainer, lab and daemons."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gossipseg import trust
from tests.learn.harness import write_png_site

DEADLINE_S = 300.0
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "ml" / "extending.md").read_text()
TASK = {
    "name": "discs",
    "channels": 1,
    "labels": {0: "background", 1: "disc"},
    "patch_size": [32, 32],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install .` makes of the page's files, in a folder of its own; no network is needed."""
    project, target = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("installed")
    for text in blocks("toml") + blocks("python"):
        file = project / text.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def package(installed: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may damage, beside a peers.yaml that asks for it and a site's images."""
    shutil.copytree(installed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "peers.yaml").write_text(
        yaml.safe_dump({"version": 1, "federation": "extended", "task": TASK}) + blocks("yaml")[0]
    )
    write_png_site(tmp_path / "data")
    return tmp_path


@pytest.fixture
def hospitals(package: Path) -> Path:
    """A folder with the images of two sites."""
    for seed, name in enumerate(("north", "south")):
        write_png_site(package / "sites" / name, seed=seed)
    return package / "sites"


def call(package: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in a process that finds the package."""
    env = {**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=package, env=env, capture_output=True, text=True, timeout=DEADLINE_S)


def run(package: Path, code: str) -> subprocess.CompletedProcess[str]:
    return call(package, "-c", code)


_CONFIGURED = """
import sys
from pathlib import Path
from gossipseg import config
f = config.load_federation(Path("peers.yaml"))
a = f.algorithm
print(a.name, a.exchange, a.finetune_rounds, f.network.name, "torch" in sys.modules)
"""

_TRAINED = """
import dataclasses, json
from pathlib import Path
from gossipseg import config
from gossipseg.learn import protocol
from gossipseg.learn.params import WorkerSpec
from tests.learn.harness import make_spec, make_trainer

f = config.load_federation(Path("peers.yaml"))
spec = make_spec(Path("data"), Path("state"), algorithm=f.algorithm)
spec = dataclasses.replace(spec, network=dataclasses.asdict(f.network))
trainer = make_trainer(spec)
files = []
for r in (1, 2, 3):
    done = trainer.run_round(protocol.StartRound(r, export=True))
    files.append(protocol.UpdateFile(f"site{r}", done.export.path, 1, r))
made = trainer.aggregate(protocol.Aggregate(1, 0, files))
print(json.dumps([type(trainer.algorithm).__name__, type(trainer.model_state.model.network).__name__,
                  made.contributors, made.export is not None]))
"""


def test_the_settings_are_read_without_torch(package: Path) -> None:
    done = run(package, _CONFIGURED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fedmedian", "rounds", "0", "plainnet", "False"]


def test_it_trains_and_combines(package: Path) -> None:
    done = run(package, _TRAINED)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["FedMedian", "PlainNet", ["site1", "site2", "site3"], True]


@pytest.mark.slow
def test_the_lab_runs_it(package: Path, hospitals: Path) -> None:
    wanted = ["--data", hospitals, "--peers", "peers.yaml", "--algorithms", "fedmedian", "--out", "lab"]
    small = ["--rounds", "2", "--steps", "1", "--json"]
    done = call(package, "-m", "gossipseg.lab.main", "compare", *wanted, *small)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert [(r["algorithm"], r["site"], r["rounds"]) for r in runs] == [
        ("fedmedian", "north", 2),
        ("fedmedian", "south", 2),
    ]
    assert runs[0]["merged"] == 1, "the median of round 1, from which round 2 began"


@pytest.mark.e2e
@pytest.mark.slow
def test_real_daemons_run_it(package: Path, hospitals: Path) -> None:
    """Chosen by --algorithm; the network stands in the --peers file."""
    peers = package / "peers.yaml"
    peers.write_text(peers.read_text().replace("algorithm: {name: fedmedian}\n", ""))
    wanted = ["--data", hospitals, "--peers", peers, "--algorithm", "fedmedian", "--workdir", "bed"]
    small = ["--rounds", "2", "--steps", "1", "--json"]
    done = call(package, "-m", "gossipseg.ctl.main", "testbed", "run", *wanted, *small)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["algorithm"] == "fedmedian"
    assert [(s["site"], s["rounds"], s["accepted"]) for s in document["sites"]] == [
        ("north", 2, 2),
        ("south", 2, 2),
    ], document


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
    text = _CONFIGURED.replace("a.finetune_rounds", "1")
    assert run(package, text).returncode == 0, "nobody asked for it"


def write_site(package: Path) -> None:
    """site.yaml, and the same site in peers.yaml."""
    identity = trust.create_identity("north", package / "identity")
    listed = {"name": "north", "address": "127.0.0.1:1", "certificate": identity.certificate_pem.decode()}
    peers = package / "peers.yaml"
    peers.write_text(peers.read_text() + yaml.safe_dump({"sites": [listed]}))
    site = {"site": "north", "peers": "peers.yaml", "data": {"path": "data"}, "listen": "127.0.0.1:0"}
    (package / "site.yaml").write_text(yaml.safe_dump({**site, "device": {"device": "cpu"}}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("params.py", "the package that brings this algorithm cannot be loaded"),
        ("fedmedian.py", "the package that brings this algorithm cannot make it"),
        ("plainnet.py", "the package that brings this network cannot be loaded"),
    ],
)
def test_the_doctor_names_what_is_broken(package: Path, file: str, text: str) -> None:
    write_site(package)
    check = ("-m", "gossipseg.ctl.main", "check", "--no-peers", "--config", "site.yaml")
    (package / "trimmed" / file).write_text("raise ImportError('out of date')")
    done = call(package, *check)
    said = done.stdout + done.stderr
    assert done.returncode and text in said and "ImportError: out of date" in said, said
