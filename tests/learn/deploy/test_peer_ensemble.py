"""Other sites' models predict beside this site's own where validation gains by it, and touch nothing else."""

from __future__ import annotations

import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from gossipseg.algos.params import FedAvgParams, GcmlParams, GossipEnsembleParams, LocalParams
from gossipseg.errors import ConfigError
from gossipseg.learn import protocol
from gossipseg.learn.bundle import inference_config, network_def
from gossipseg.learn.commands.export import export
from gossipseg.learn.deploy.deployment import load_deployment
from gossipseg.learn.deploy.ensemble import Ensemble
from gossipseg.learn.deploy.peer_ensemble import MOST_MEMBERS, better, loaded
from gossipseg.learn.evaluation.evaluate import CaseScore, Scores
from gossipseg.nets.output import NetOutput
from tests.learn.harness import make_spec, make_trainer, same, stored, write_png_site

GOSSIP_ENSEMBLE = GossipEnsembleParams()
ASKED = {"ensemble_peers": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with enough validation patients to choose by."""
    folder = write_png_site(tmp_path_factory.mktemp("site"), cases=7)
    entries = [{"image": f"images/case{i}.png", "label": f"masks/case{i}.png"} for i in range(7)]
    lists = {"training": entries[:2], "validation": entries[2:5], "test": entries[5:]}
    (folder / "dataset.json").write_text(json.dumps(lists))
    return folder


@pytest.fixture(scope="module")
def good(data: Path, tmp_path_factory: pytest.TempPathFactory) -> protocol.Visit:
    """The model of a site that has trained for much longer than the tests do."""
    spec = make_spec(data, tmp_path_factory.mktemp("east"), site="east", training={"steps_per_round": 150})
    done = make_trainer(spec).run_round(protocol.StartRound(1, export=True))
    return protocol.Visit(done.export.path, "e" * 64, "east", steps=6, cases=9)


@pytest.fixture(scope="module")
def blind(good: protocol.Visit, tmp_path_factory: pytest.TempPathFactory) -> protocol.Visit:
    """A model that sees background everywhere."""
    path = tmp_path_factory.mktemp("west") / "model.safetensors"
    tensors = load_file(good.path)
    last = max(name for name, t in tensors.items() if t.numel() == 2 and name.endswith("bias"))
    tensors[last] = torch.tensor([9.0, -9.0], dtype=tensors[last].dtype)
    save_file(tensors, path)
    return protocol.Visit(str(path), "w" * 64, "west", steps=6, cases=9)


def trainer_of(data: Path, state_dir: Path, algorithm: Any = GOSSIP_ENSEMBLE, **more: Any) -> Any:
    return make_trainer(make_spec(data, state_dir, algorithm=algorithm, **more))


def judge_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each merge is found harmful one round later."""
    monkeypatch.setattr("gossipseg.learn.exchange.guard.harmful", lambda *_: True)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.WINDOW", 1)


def validation(trainer: Any, model: torch.nn.Module) -> float:
    mean: float = trainer.site.score(model, "validation", lambda fraction: None).mean
    return mean


# ---------------------------------------------------------------- what it leaves alone, and what is sent


def test_the_sites_own_training_is_that_of_local_bit_by_bit(
    data: Path, tmp_path: Path, good: protocol.Visit, blind: protocol.Visit
) -> None:
    alone = trainer_of(data, tmp_path / "alone", LocalParams())
    trainer = trainer_of(data, tmp_path / "together")
    for round, visit in enumerate((None, good, blind, good), start=1):
        alone.run_round(protocol.StartRound(round))
        done = trainer.run_round(protocol.StartRound(round, visit))
        assert same(trainer.model_state.snapshot(), alone.model_state.snapshot())
        assert not trainer.guard.pending, "a model that touches nothing can do no harm to undo"
        if visit is not None:
            assert (done.visit.outcome, done.visit.reason) == ("held", "")


@pytest.mark.parametrize(
    ("algorithm", "average"),
    [(GOSSIP_ENSEMBLE, True), (GcmlParams(merge="none"), True), (GcmlParams(), False)],
)
def test_where_weights_are_not_mixed_the_average_is_sent(
    data: Path, tmp_path: Path, algorithm: Any, average: bool
) -> None:
    trainer = trainer_of(data, tmp_path, algorithm)
    trainer.run_round(protocol.StartRound(1))
    done = trainer.run_round(protocol.StartRound(2, export=True))
    sent = trainer.model_state.ema if average else trainer.model_state.model
    expected = {n: t.half() if t.ndim > 1 else t for n, t in sent.state_dict().items()}
    assert same(dict(load_file(done.export.path)), expected)
    assert not same(trainer.model_state.ema.state_dict(), trainer.model_state.model.state_dict())


# ---------------------------------------------------------------- the choice


def test_a_model_that_helps_is_let_in_and_one_that_does_not_is_left_out(
    data: Path, tmp_path: Path, good: protocol.Visit, blind: protocol.Visit
) -> None:
    trainer = trainer_of(data, tmp_path, report_test=True, rounds=3)
    trainer.run_round(protocol.StartRound(1))
    assert trainer.verdict.reason == "no model of another site was there at the last validation"
    done = trainer.run_round(protocol.StartRound(2, blind))
    assert done.deployed == "own" and "the one model of other sites does not raise" in done.deployed_reason
    assert trainer.deployed is trainer.model_state.ema

    done = trainer.run_round(protocol.StartRound(3, good))
    own = validation(trainer, trainer.model_state.ema)
    assert done.deployed == "ensemble" and done.dice_val > own
    assert done.deployed_reason == (
        f"validation Dice {done.dice_val:.4f} with the models of east, {own:.4f} alone"
    )
    verdict = trainer.verdict
    assert (verdict.members, verdict.held, verdict.dice) == (("east",), 2, own)
    east = loaded(trainer.model_state.ema, trainer.ensemble.members["east"].weights)
    together = Ensemble(trainer.model_state.ema, [east], "softmax")
    assert done.dice_val == verdict.dice_ensemble == validation(trainer, together)
    assert done.dice_test == trainer.site.score(together, "test", lambda fraction: None).mean
    assert trainer.ensemble.members["east"].dice == validation(trainer, east)


@pytest.mark.slow
def test_what_is_deployed_survives_a_restart_and_leaves_in_a_bundle(
    data: Path, tmp_path: Path, good: protocol.Visit, blind: protocol.Visit
) -> None:
    trainer = trainer_of(data, tmp_path)
    for round, visit in enumerate((None, blind, good), start=1):
        trainer.run_round(protocol.StartRound(round, visit))
    stored(trainer)
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = trainer.deployed(image).logits
    again = trainer_of(data, tmp_path)
    again.load(trainer.state())
    assert same(again.state(), trainer.state()) and again.verdict == trainer.verdict

    deployment = load_deployment(trainer.settings.spec)
    assert deployment.weights == "ensemble"
    plain, safe, root = export(deployment, tmp_path / "out")
    assert deployment.members == {"east": good.hash}
    with safe_open(safe, "pt") as file:
        assert json.loads(file.metadata()["members"]) == {"east": good.hash}
    assert "models of `east` besides" in (root / "docs/README.md").read_text()
    described = dict(inference_config(deployment.settings, beside=1)["network_def"])
    del described["_target_"]
    bundled = network_def(**described).eval()
    bundled.load_state_dict(torch.load(plain, weights_only=True))
    with torch.inference_mode():
        assert torch.equal(again.deployed(image).logits, expected)
        assert torch.equal(deployment.net(image).logits, expected)
        assert torch.equal(bundled(image), expected)

    reports = [each.run_round(protocol.StartRound(4)) for each in (again, trainer)]
    first, second = (replace(report, seconds=0) for report in reports)
    assert first == second and first.deployed == "ensemble"


@pytest.mark.parametrize(
    ("gains", "patients", "wanted"),
    [
        ([0.02, 0.01, 0.03], "abc", True),
        ([0.2, -0.15, 0.0], "abc", False),  # mean 0.017, standard error 0.101
        ([0.0, 0.0, 0.0], "abc", False),
        ([0.01], "a", False),
        ([0.02, 0.01, 0.03, 0.02], "aabb", False),  # two patients choose nothing
        # By case: mean 0.056, error 0.053. By patient (0.16, −0.025, 0.01): mean 0.048, error 0.057.
        ([0.26, 0.06, -0.02, 0.01, -0.03], "aabcb", False),
        ([], "", False),
    ],
)
def test_a_gain_must_exceed_its_standard_error_by_patient(
    gains: list[float], patients: str, wanted: bool
) -> None:
    def scores(values: list[float]) -> Scores:
        return Scores(None, {}, tuple(CaseScore(f"c{i}", {"disc": v}, {}) for i, v in enumerate(values)))

    assert better(scores([0.5 + g for g in gains]), scores([0.5] * len(gains)), patients) is wanted


def test_with_two_validation_patients_no_peer_is_let_in(tmp_path: Path, good: protocol.Visit) -> None:
    trainer = trainer_of(write_png_site(tmp_path / "few", cases=6), tmp_path / "state")
    assert len(trainer.site.patients("validation")) == 2
    trainer.run_round(protocol.StartRound(1))
    done = trainer.run_round(protocol.StartRound(2, good))
    assert done.deployed == "own" and list(trainer.ensemble.members) == ["east"]
    assert done.deployed_reason.endswith("alone; too few validation patients to choose by (2; it takes 3)")


# ---------------------------------------------------------------- who is held


def test_a_refused_model_is_not_held(data: Path, tmp_path: Path, good: protocol.Visit) -> None:
    path = tmp_path / "nan.safetensors"
    save_file({n: t * float("nan") for n, t in load_file(good.path).items()}, path)
    trainer = trainer_of(data, tmp_path)
    trainer.run_round(protocol.StartRound(1))
    done = trainer.run_round(protocol.StartRound(2, replace(good, path=str(path))))
    assert done.visit.outcome == "refused" and not trainer.ensemble.members


def test_one_whose_visit_is_undone_leaves_and_is_no_longer_deployed(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, good: protocol.Visit
) -> None:
    judge_at_once(monkeypatch)
    trainer = trainer_of(data, tmp_path, GcmlParams(lambda_=0), training=ASKED)
    trainer.run_round(protocol.StartRound(1))
    done = trainer.run_round(protocol.StartRound(2, good))
    assert done.visit.outcome == "merged" and "east" in trainer.ensemble.members
    done = trainer.run_round(protocol.StartRound(3))
    assert done.reverted == good.hash and not trainer.ensemble.members
    assert done.deployed == "own" and trainer.deployed is trainer.model_state.ema


def test_the_model_of_a_site_that_was_removed_leaves(
    data: Path, tmp_path: Path, good: protocol.Visit
) -> None:
    trainer = trainer_of(data, tmp_path)
    trainer.run_round(protocol.StartRound(1))
    assert trainer.run_round(protocol.StartRound(2, good, listed=["north", "east"])).deployed == "ensemble"
    stored(trainer)
    spec = trainer.settings.spec
    assert load_deployment(dataclasses.replace(spec, listed=["north"])).weights == "own"
    assert load_deployment(dataclasses.replace(spec, listed=["north", "east"])).weights == "ensemble"
    done = trainer.run_round(protocol.StartRound(3, listed=["north"]))
    assert not trainer.ensemble.members and done.deployed == "own"


def test_a_newer_model_must_be_judged_before_it_predicts(
    data: Path, tmp_path: Path, good: protocol.Visit, blind: protocol.Visit
) -> None:
    trainer = trainer_of(data, tmp_path, training={"validate_every_rounds": 2})
    trainer.run_round(protocol.StartRound(1))
    judged = trainer.run_round(protocol.StartRound(2, good)).dice_val
    assert trainer.verdict.members == ("east",)
    trainer.run_round(protocol.StartRound(3, replace(blind, frm="east")))
    assert trainer.ensemble.holds("east", blind.hash)
    assert validation(trainer, trainer.deployed) == pytest.approx(judged, abs=0.1)
    stored(trainer)
    deployment = load_deployment(trainer.settings.spec)
    assert deployment.members == {"east": good.hash}
    assert validation(trainer, deployment.net) == validation(trainer, trainer.deployed)
    assert trainer.run_round(protocol.StartRound(4)).deployed == "own"


def test_only_the_model_that_did_harm_leaves_not_a_newer_one_of_its_site(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path, good: protocol.Visit
) -> None:
    judge_at_once(monkeypatch)
    trainer = trainer_of(data, tmp_path, GcmlParams(lambda_=0), training=ASKED | {"validate_every_rounds": 2})
    trainer.run_round(protocol.StartRound(1))
    assert trainer.run_round(protocol.StartRound(2, good)).deployed == "ensemble"
    own = trainer.verdict.dice
    newer = replace(good, hash="n" * 64)
    done = trainer.run_round(protocol.StartRound(3, newer))
    assert done.reverted == good.hash and trainer.ensemble.holds("east", newer.hash)
    assert (done.visit.outcome, done.visit.reason) == ("held", "earlier_visit_reverted")
    assert done.deployed == "own" and "the model of east took part, and had to leave" in done.deployed_reason
    assert trainer.deployed is trainer.model_state.ema and trainer.history.dice_val == own


class Peak(TorchDispatchMode):
    """Counts the tensors that are alive at once, of those made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._alive = 0, weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self._alive.add(made.untyped_storage())
        self.most = max(self.most, len(self._alive))
        return made


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_memory_at_prediction_does_not_grow_with_the_number_of_models(output: str) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> NetOutput:
            return NetOutput(x * 2)

    def most(others: int) -> int:
        together = Ensemble(Net(), [Net() for _ in range(others)], output)
        with torch.no_grad(), Peak() as peak:
            together(torch.ones(1, 2, 3))
        return peak.most

    assert 1 < most(8) == most(2)


def test_who_comes_late_trains_alone_from_the_beginning(
    data: Path, tmp_path: Path, good: protocol.Visit
) -> None:
    alone = trainer_of(data, tmp_path / "alone", LocalParams())
    trainer = trainer_of(data, tmp_path / "late")
    alone.run_round(protocol.StartRound(1))
    done = trainer.run_round(protocol.StartRound(1, replace(good, steps=10**6)))
    assert done.visit.outcome == "held" and same(trainer.model_state.snapshot(), alone.model_state.snapshot())


def test_no_more_than_so_many_are_held_and_a_newer_one_replaces_its_elder(data: Path, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path)
    ensemble, model = trainer.ensemble, trainer.model_state.model
    for i in range(MOST_MEMBERS + 1):
        ensemble.take_in(f"site{i}", f"first {i}", model)
    assert list(ensemble.members) == [f"site{i}" for i in range(1, MOST_MEMBERS + 1)]
    ensemble.predicting = {"site1": ensemble.members["site1"]}
    ensemble.take_in("site2", "second 2", model)
    assert list(ensemble.members)[-1] == "site2" and not ensemble.holds("site2", "first 2")
    ensemble.take_in("new", "new", model)
    assert "site3" not in ensemble.members and "site1" in ensemble.members, "one that predicts stays"


def test_asked_for_no_longer_it_is_forgotten(data: Path, tmp_path: Path, good: protocol.Visit) -> None:
    trainer = trainer_of(data, tmp_path, GcmlParams(merge="none"), training=ASKED)
    trainer.run_round(protocol.StartRound(1))
    assert trainer.run_round(protocol.StartRound(2, good)).deployed == "ensemble"
    stored(trainer)
    spec = trainer.settings.spec
    off = dataclasses.replace(spec, training={**spec.training, "ensemble_peers": False})
    assert load_deployment(off).weights == "ema" and load_deployment(spec).weights == "ensemble"
    again = make_trainer(off)
    again.load(trainer.state())
    assert again.run_round(protocol.StartRound(3)).deployed == "" and "ensemble" not in again.state()
    trainer.load(again.state())  # and asked for again, it begins with nobody
    assert trainer.run_round(protocol.StartRound(4)).deployed == "own"


# ---------------------------------------------------------------- where it cannot be had


@pytest.mark.parametrize(
    ("algorithm", "training", "key", "remedy"),
    [
        (FedAvgParams(), ASKED, "training.ensemble_peers", "an algorithm of gossip"),
        (LocalParams(), ASKED, "training.ensemble_peers", "an algorithm of gossip"),
        (GcmlParams(), {**ASKED, "shadow_local": True}, "training.shadow_local", "remove training.ens"),
        (GOSSIP_ENSEMBLE, {"shadow_local": True}, "training.shadow_local", "another algorithm than"),
    ],
)
def test_where_it_cannot_be_had_it_is_refused(
    data: Path, tmp_path: Path, algorithm: Any, training: dict[str, Any], key: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as found:
        trainer_of(data, tmp_path, algorithm, training=training)
    assert found.value.key == key and remedy in found.value.remedy
