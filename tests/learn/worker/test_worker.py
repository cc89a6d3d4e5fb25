"""The training process, driven through its real socket."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from gossipseg.algos.params import GcmlParams
from gossipseg.errors import EXIT_CONFIG, EXIT_DATA, EXIT_UNREACHABLE, AlreadyRunning
from gossipseg.learn import protocol
from gossipseg.learn.engine.checkpoint import contract_of, save_checkpoint
from gossipseg.learn.params import WorkerSpec
from gossipseg.store import Checkpoints, DirectoryLock, read_safetensors_header
from tests.learn.harness import make_spec, make_trainer, worker
from tests.learn.imagery import png_site

pytestmark = pytest.mark.slow


def checkpointed(spec: WorkerSpec, rounds: int) -> None:
    """Train in this process and leave the checkpoints that a worker would have left."""
    trainer = make_trainer(spec)
    contract = contract_of(trainer.settings, trainer.network_signature)
    for r in range(1, rounds + 1):
        trainer.run_round(protocol.StartRound(r))
        save_checkpoint(Checkpoints(Path(spec.state_dir) / "checkpoint"), trainer.state(), contract)


def test_a_life_with_local_rounds_and_visits(data: Path, tmp_path: Path) -> None:
    """Prepare, train alone, take visitors in, refuse bad ones, stop; then go on after a restart."""
    spec = make_spec(data, tmp_path / "state", report_test=True, rounds=7)
    with worker(spec) as w:
        ready = w.wait(protocol.Ready)
        assert isinstance(w.messages[0], protocol.Preparing)
        assert (ready.round, ready.steps, ready.cases, ready.device, ready.amp) == (0, 0, 2, "cpu", "off")
        assert ready.splits == {"training": 2, "validation": 2, "test": 2}
        assert (
            ready.dice_test_start is not None and ready.last_visit is None and len(ready.initial_hash) == 64
        )

        first = w.round(1, export=True)
        assert first.export is not None and first.export.steps == 4 and first.dice_val is not None
        assert {
            n: (i.dtype, i.shape) for n, i in read_safetensors_header(Path(first.export.path)).items()
        } == {n: (dtype, tuple(shape)) for n, (dtype, shape) in ready.tensors.items()}
        progress = [m for m in w.messages if isinstance(m, protocol.Progress)]
        assert progress and progress[0].step == 1 and progress[0].steps_per_round == 4

        good = protocol.Visit(first.export.path, "a" * 64, "south", 40, 9)
        done = w.round(2, good)
        assert done.visit == protocol.VisitDone("a" * 64, "merged", "", "", "south") and done.steps == 44

        tensors = load_file(first.export.path)
        for name, reason in (("nan", "not_finite"), ("names", "schema_mismatch")):
            bad = {n: t.clone() for n, t in tensors.items()}
            if name == "nan":
                bad["network.head.weight"][0] = float("nan")
            else:
                bad["other"] = bad.pop("network.head.weight")
            save_file(bad, tmp_path / f"{name}.safetensors")
            visit = msgspec.structs.replace(good, path=str(tmp_path / f"{name}.safetensors"), hash=name)
            done = w.round(3 if name == "nan" else 4, visit)
            assert done.visit is not None and (done.visit.outcome, done.visit.reason) == ("refused", reason)
        assert w.stop() == 0, w.stderr

    with worker(spec) as w:
        ready = w.wait(protocol.Ready)
        assert (ready.round, ready.last_visit, ready.visits) == (4, "names", 1)
        assert not Path(first.export.path).exists()  # nobody adopted it
        assert ready.dice_test_start is not None and ready.dice_val is not None
        assert not [m for m in w.messages if isinstance(m, protocol.Preparing) and m.activity == "testing"]
        for r in (5, 6):
            assert w.round(r).dice_test is None
        assert w.round(7).dice_test is not None


def test_a_paused_worker_holds_between_steps_and_can_be_stopped(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path, training={"steps_per_round": 40})
    with worker(spec) as w:
        w.send(protocol.SetPaused(True))
        w.wait(protocol.Ready)
        w.send(protocol.StartRound(1))
        with pytest.raises(AssertionError, match="no RoundDone"):
            w.wait(protocol.RoundDone, timeout_s=2.0)
        assert not [m for m in w.messages if isinstance(m, protocol.Progress)]
        w.send(protocol.SetPaused(False))
        w.wait(protocol.Progress)
        w.send(protocol.SetPaused(True))
        assert w.stop() == 0


def test_signals_are_the_daemons_business(data: Path, tmp_path: Path) -> None:
    with worker(make_spec(data, tmp_path)) as w:
        w.wait(protocol.Preparing)
        for number in (signal.SIGTERM, signal.SIGINT):
            w.process.send_signal(number)
        w.wait(protocol.Ready)
        w.process.send_signal(signal.SIGTERM)
        assert w.round(1).round == 1


def test_the_worker_dies_with_its_daemon(data: Path, tmp_path: Path) -> None:
    with worker(make_spec(data, tmp_path, training={"steps_per_round": 100_000})) as w:
        w.wait(protocol.Ready)
        w.send(protocol.StartRound(1))
        w.wait(protocol.Progress)
        w.hang_up()
        assert w.exit_code(timeout_s=20.0) == EXIT_UNREACHABLE


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(data: Path, tmp_path: Path) -> None:
    with worker(make_spec(data, tmp_path)) as w:
        w.wait(protocol.Ready)
        w.round(1)
        before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()}
        limits = resource.prlimit(w.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(w.process.pid, resource.RLIMIT_FSIZE, (100_000, limits[1]))
        done = w.round(2, export=True)
        assert "checkpoint not written" in done.warning and done.loss is not None
        assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()} == before
        resource.prlimit(w.process.pid, resource.RLIMIT_FSIZE, limits)
        w.send(protocol.HoldPersonal([]))
        w.wait(protocol.PersonalHeld)
        assert (tmp_path / "checkpoint" / "round-2.pt").exists(), "what was not saved is saved with it"
        done = w.round(3)
        assert done.warning == ""
        assert (tmp_path / "checkpoint" / "round-3.pt").exists()
        assert w.stop() == 0


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path)
    checkpointed(spec, rounds=2)
    (tmp_path / "checkpoint" / "round-2.pt").write_bytes(b"half a file")
    with worker(spec) as w:
        ready = w.wait(protocol.Ready)
        assert ready.round == 1 and "round-2.pt" in ready.warning
        assert "round-2.pt" in w.round(2).warning


def test_a_case_that_was_trained_on_does_not_become_a_test_case_unnoticed(tmp_path: Path) -> None:
    own = tmp_path / "own"
    png_site(own, {"training": 3, "validation": 1, "test": 1})
    spec = make_spec(own, tmp_path / "state")
    with worker(spec) as w:
        assert w.wait(protocol.Ready).warning == "" and w.round(1).warning == ""
        assert w.stop() == 0, w.stderr
    listed = json.loads((own / "dataset.json").read_text())
    listed["test"].append(listed["training"].pop())
    (own / "dataset.json").write_text(json.dumps(listed))
    with worker(spec) as w:
        name = Path(listed["test"][-1]["image"]).name.split(".")[0]
        assert (
            f"1 case that was trained on is now in validation or test ({name})"
            in w.wait(protocol.Ready).warning
        )
        assert name in w.round(2).warning and name in w.round(3).warning, "as long as it is so"
        assert w.stop() == 0, w.stderr


def test_after_a_restart_it_says_at_once_which_model_is_deployed(data: Path, tmp_path: Path) -> None:
    spec = make_spec(data, tmp_path, algorithm=GcmlParams())
    checkpointed(spec, rounds=1)
    with worker(spec) as w:
        ready = w.wait(protocol.Ready)
        assert ready.round == 1 and ready.deployed == "mix"
        assert ready.deployed_reason.startswith("alone 0.")


@pytest.mark.parametrize(
    ("spec_change", "kind", "code", "says"),
    [
        ({"network": {"name": "sanett"}}, "config", EXIT_CONFIG, "sanet"),
        ({"data": {"path": "/nowhere"}}, "away", EXIT_DATA, "/nowhere"),
        ({"data": {"path": "/etc", "list": "passwd"}}, "data", EXIT_DATA, "passwd"),
        ({"device": {"device": "cuda:99"}}, "local", 1, "CUDA"),
    ],
)
def test_what_is_wrong_is_said_before_the_end(
    data: Path, tmp_path: Path, spec_change: dict[str, Any], kind: str, code: int, says: str
) -> None:
    spec = make_spec(data, tmp_path)
    with worker(dataclasses.replace(spec, **spec_change)) as w:
        fatal = w.wait(protocol.Fatal)
        assert fatal.kind == kind and says in fatal.message
        assert w.exit_code() == code and says in w.stderr


def test_another_contract_than_the_checkpoints_is_fatal(data: Path, tmp_path: Path) -> None:
    checkpointed(make_spec(data, tmp_path), rounds=1)
    with worker(make_spec(data, tmp_path, network={"width": 4})) as w:
        fatal = w.wait(protocol.Fatal)
        assert (
            fatal.kind == "config" and "network.signature" in fatal.message and "state_dir" in fatal.message
        )
        assert w.exit_code() == EXIT_CONFIG


def test_one_worker_a_state_directory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gossipseg.learn.worker import session as loop

    class Mute:
        def check(self) -> None: ...

        def report(self, make: Any) -> None:
            assert "previous worker" in make().activity

    monkeypatch.setattr(loop, "LOCK_PATIENCE_S", 0.3)
    lock = DirectoryLock(tmp_path / "worker.lock")
    with lock, pytest.raises(AlreadyRunning, match=str(os.getpid())):
        loop.serve(Mute(), make_spec(data, tmp_path))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("env", "code", "says"),
    [
        ({}, EXIT_CONFIG, "started by gossipsegd"),
        ({protocol.SOCKET_ENV: "/nowhere/worker.sock"}, EXIT_UNREACHABLE, "/nowhere/worker.sock"),
        ({"RANK": "1", protocol.SOCKET_ENV: "/nowhere/worker.sock"}, 0, "rank 0"),
    ],
)
def test_without_a_daemon_it_says_so(env: dict[str, str], code: int, says: str) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", protocol.SOCKET_ENV)}
    done = subprocess.run(
        [sys.executable, "-m", "gossipseg.learn.worker"],
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code and says in done.stderr
