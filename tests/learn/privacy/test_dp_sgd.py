"""Differentially private training with real Opacus on a tiny site: bounds, noise, the account, refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gossipseg.algos.params import (
    DittoParams,
    FedAvgFinetuneParams,
    FedAvgParams,
    FedProxParams,
    GcmlParams,
    GossipAverageParams,
    LocalParams,
)
from gossipseg.errors import ConfigError, LocalError
from gossipseg.learn import protocol
from gossipseg.learn.params import DpParams
from gossipseg.learn.privacy import dp_sgd
from gossipseg.learn.privacy.csprng import secret_generator
from tests.learn.harness import make_spec, make_trainer, same, worker, write_png_site

pytest.importorskip("opacus")
SEED = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_png_site(tmp_path_factory.mktemp("site"), cases=10)


def private(data: Path, state: Path, algorithm: Any = None, seed: int | None = None, **settings: Any) -> Any:
    """A trainer under privacy.dp; SGD-like steps are of no matter here."""
    privacy = {"dp": settings, "seed": seed}
    spec = make_spec(data, state, algorithm=algorithm or FedAvgParams(), privacy=privacy, rounds=90)
    return make_trainer(spec)


def account(folder: Path, cases: int = 20, batch: int = 4, **settings: Any) -> dp_sgd.PrivateTraining:
    return dp_sgd.PrivateTraining(DpParams(**settings), None, "north", cases, batch, folder / dp_sgd.FILE)


# ---------------------------------------------------------------- one step


def one_step(trainer: Any, cases: list[int], seed: int = SEED) -> dict[str, torch.Tensor]:
    """The parameters' change by one private step of plain SGD (rate 1) on these cases."""
    model = trainer.model_state.model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer.model_state.learner.optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer.settings = dataclasses.replace(
        trainer.settings, training=dataclasses.replace(trainer.settings.training, learning_rate=1.0)
    )
    drawn = [(i, np.random.default_rng([seed, i]), seed + i) for i in cases]
    trainer.private.draw = lambda round, step: drawn
    trainer.private_steps.step(trainer.run.moment(protocol.StartRound(1), 0))
    return {n: p.detach() - before[n] for n, p in model.named_parameters()}


def length(change: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([c.flatten() for c in change.values()]).double().norm())


@pytest.mark.parametrize("bound", [0.01, 0.1])
def test_one_case_moves_a_step_by_no_more_than_the_bound(data: Path, tmp_path: Path, bound: float) -> None:
    """Neighbouring draws, the same noise: they differ by the one case's clipped gradient."""
    steps = []
    for i, cases in enumerate(([0, 1, 2], [0, 2])):
        trainer = private(data, tmp_path / str(i), seed=5, noise_multiplier=0.5, max_grad_norm=bound)
        steps.append(one_step(trainer, cases))
    difference = {n: steps[0][n] - steps[1][n] for n in steps[0]}
    assert length(difference) == pytest.approx(
        bound / 2, rel=1e-2
    )  # clipped; the batch is expected to be of 2


def test_without_noise_a_step_is_the_mean_of_what_plain_training_takes(data: Path, tmp_path: Path) -> None:
    trainer = private(data, tmp_path / "a", noise_multiplier=1e-12, max_grad_norm=1e6)
    plain = private(data, tmp_path / "b", noise_multiplier=1.0)
    private_change = one_step(trainer, [0, 3])
    model = plain.model_state.model.train()
    total = torch.zeros(())
    for i in (0, 3):
        batch = plain.site.case(i, np.random.default_rng([SEED, i]))
        torch.manual_seed(SEED + i)
        context = plain.steps.context(
            plain.run.moment(protocol.StartRound(1), 0), {"local": plain.model_state.learner}
        )
        outputs = {"local": model(batch["image"])}
        total = total + plain.algorithm.losses(outputs, plain.run.target(batch), context).total["local"]
    (total / 2).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(private_change[name], -parameter.grad, atol=1e-5), name


def test_noise_of_the_stated_size_is_added_even_where_nobody_is_drawn(data: Path, tmp_path: Path) -> None:
    trainer = private(data, tmp_path, noise_multiplier=2.0, max_grad_norm=0.5)
    values = torch.cat([c.flatten() for c in one_step(trainer, []).values()])
    assert float(values.std()) == pytest.approx(2.0 * 0.5 / 2, rel=5 / values.numel() ** 0.5)
    again = torch.cat([c.flatten() for c in one_step(trainer, []).values()])
    assert not torch.equal(values, again)


def test_a_gradient_that_is_not_finite_counts_as_nothing_and_spoils_no_other(
    data: Path, tmp_path: Path
) -> None:
    changes = []
    for name, cases in (("a", [0, 1]), ("b", [0])):
        trainer = private(data, tmp_path / name, seed=5, noise_multiplier=0.5)
        real = trainer.site.case

        def case(index: int, rng: Any, real: Any = real) -> Any:
            batch = real(index, rng)
            return {**batch, "image": batch["image"] * float("nan")} if index == 1 else batch

        trainer.site.case = case
        changes.append(one_step(trainer, cases))
    assert same(*changes) and all(torch.isfinite(c).all() for c in changes[0].values())


def test_parameters_that_are_frozen_get_no_noise(data: Path, tmp_path: Path) -> None:
    trainer = private(data, tmp_path, noise_multiplier=5.0)
    name, held = next(iter(trainer.model_state.model.named_parameters()))
    held.requires_grad_(False)
    changes = one_step(trainer, [0])
    assert not changes[name].any() and sum(bool(c.any()) for c in changes.values()) > 3


# ---------------------------------------------------------------- rounds and the account


@pytest.mark.parametrize(
    "algorithm", [LocalParams(), GossipAverageParams(), FedProxParams(), FedAvgFinetuneParams()]
)
def test_epsilon_is_the_accountants_for_the_steps_taken(data: Path, tmp_path: Path, algorithm: Any) -> None:
    from opacus.accountants import RDPAccountant

    trainer = private(data, tmp_path, algorithm, noise_multiplier=1.5, delta=1e-4)
    before = copy.deepcopy(trainer.model_state.weights())
    trainer.run_round(protocol.StartRound(1))
    done = protocol.decode(protocol.encode(trainer.run_round(protocol.StartRound(2, export=True))))
    assert isinstance(done, protocol.RoundDone) and done.warning == "" and done.export is not None
    accountant = RDPAccountant()
    for _ in range(8):
        accountant.step(noise_multiplier=1.5, sample_rate=2 / trainer.site.cases)
    spent = done.spent
    assert spent.epsilon == pytest.approx(accountant.get_epsilon(1e-4)) and spent.steps == 8
    assert (spent.delta, spent.max_epsilon, spent.over) == (1e-4, None, False)
    assert not same(before, trainer.model_state.weights())


@pytest.mark.slow
def test_the_budget_ends_training_and_what_is_spent_survives_a_restart(data: Path, tmp_path: Path) -> None:
    trainer = private(data, tmp_path, max_epsilon=9.0)
    free = trainer.private._room(1000)
    assert 4 <= free < 20
    rounds = free // 4 + 2
    done = [trainer.run_round(protocol.StartRound(i + 1)) for i in range(rounds)]
    assert done[-1].spent.steps == free and done[-1].spent.epsilon <= 9.0 and done[-1].spent.over
    assert "max_epsilon = 9" in done[-1].warning and (done[-1].loss, done[0].warning) == (None, "")
    before = copy.deepcopy(trainer.model_state.weights())
    trainer.run_round(protocol.StartRound(rounds + 1, export=True))
    assert same(before, trainer.model_state.weights())  # no step, and no noise either
    again = private(data, tmp_path, max_epsilon=9.0)
    assert again.private.spent == done[-1].spent
    (tmp_path / dp_sgd.FILE).unlink()
    third = private(data, tmp_path, max_epsilon=9.0)
    assert third.private.spent.steps == 0
    third.load(trainer.state())
    assert third.private.spent == done[-1].spent


def test_steps_are_charged_before_they_are_taken_and_those_not_taken_given_back(tmp_path: Path) -> None:
    first = account(tmp_path)
    assert first.begin(10) == (10, "")
    assert account(tmp_path).spent.steps == 10  # killed here: they may all have been taken
    first.settle(3)
    assert first.spent.steps == 3 == account(tmp_path).spent.steps
    other = account(tmp_path, noise_multiplier=2.0)
    other.begin(5)
    other.settle(5)
    assert other.state() == [[1.0, 0.2, 3], [2.0, 0.2, 5]]
    assert first.spent.epsilon < other.spent.epsilon < dp_sgd.epsilon([(1.0, 0.2, 8)], 1e-5)


def test_a_checkpoint_within_a_round_knows_of_its_steps(tmp_path: Path) -> None:
    found = account(tmp_path)
    found.begin(10)
    assert found.state() == [[1.0, 0.2, 10]], "as the file has it: a swap writes a checkpoint in mid-round"
    found.load(found.state())  # a swap that is taken back
    found.settle(4)
    assert found.state() == [[1.0, 0.2, 4]] and found.spent.steps == 4


def test_a_round_that_has_been_made_shorter_gives_nothing_back(tmp_path: Path) -> None:
    found = account(tmp_path, max_epsilon=50.0)
    found.begin(8)
    found.settle(8)
    assert found.begin(-3) == (0, "")
    assert account(tmp_path).spent.steps == 8


def test_of_two_accounts_the_one_that_cost_more_counts(tmp_path: Path) -> None:
    found = account(tmp_path, noise_multiplier=8.0)
    found.begin(60)
    found.settle(60)
    found.load([[8.0, 0.2, 10], [0.5, 0.2, 20]])
    assert found.state() == [[8.0, 0.2, 10], [0.5, 0.2, 20]]
    found.load([[8.0, 0.2, 70]])
    assert found.state() == [[8.0, 0.2, 10], [0.5, 0.2, 20]]


def test_an_interrupted_round_pays_for_the_steps_that_it_took(data: Path, tmp_path: Path) -> None:
    trainer = private(data, tmp_path)

    class Stop(Exception):
        pass

    def gate() -> None:
        if trainer.history.step == 2:
            raise Stop

    trainer.run.gate = gate
    with pytest.raises(Stop):
        trainer.run_round(protocol.StartRound(1))
    assert trainer.private.spent.steps == 2
    again = private(data, tmp_path)
    again.load(trainer.state())
    assert again.run_round(protocol.StartRound(1)).spent.steps == 4


def test_no_step_is_taken_that_cannot_be_accounted_for(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    found = account(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    steps, why = found.begin(4)
    assert steps == 0 and "could not be written" in why and found.spent.steps == 0


def test_a_damaged_account_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / dp_sgd.FILE).write_text('{"schema": 1, "hist')
    with pytest.raises(LocalError, match=r"privacy\.json is damaged"):
        account(tmp_path)


def test_a_model_that_learned_without_it_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    plain = make_trainer(make_spec(data, tmp_path / "plain", algorithm=FedAvgParams(), rounds=90))
    fresh = plain.state()
    private(data, tmp_path / "a").load(fresh)  # nothing has been learned yet
    plain.run_round(protocol.StartRound(1))
    with pytest.raises(ConfigError, match=r"privacy\.dp: this site's checkpoint was trained without it"):
        private(data, tmp_path / "b").load(plain.state())


def test_an_undone_visit_gives_no_privacy_back(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = private(data, tmp_path / "s", GossipAverageParams())
    file = other.run_round(protocol.StartRound(1, export=True)).export.path
    trainer = private(data, tmp_path / "n", GossipAverageParams())
    trainer.run_round(protocol.StartRound(1))
    monkeypatch.setattr("gossipseg.learn.exchange.guard.harmful", lambda *_: True)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.LEAST_PATIENTS", 1)
    monkeypatch.setattr("gossipseg.learn.exchange.guard.WINDOW", 1)
    done = trainer.run_round(protocol.StartRound(2, protocol.Visit(file, "h", "south", 4, 5)))
    assert done.reverted == "h" and done.spent.steps == 8


# ---------------------------------------------------------------- randomness


def test_every_case_is_drawn_on_its_own_and_has_numbers_of_its_own(tmp_path: Path) -> None:
    found = account(tmp_path, cases=50, batch=5)
    draws = [found.draw(1, 1) for _ in range(400)]
    sizes = np.array([len(d) for d in draws])
    assert sizes.mean() == pytest.approx(5, abs=0.6) and sizes.std() == pytest.approx(4.5**0.5, abs=0.4)
    numbers = [seed for d in draws for _, _, seed in d]
    assert len(set(numbers)) == len(numbers)
    assert account(tmp_path, cases=3, batch=9).sample_rate == 1.0


def test_two_generators_differ_even_where_their_seeds_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gossipseg.learn.privacy.csprng.secrets.randbits", lambda _: 77
    )  # 32 bits can be tried out
    one, other = secret_generator(), secret_generator()
    a, b = (torch.randn(2000, generator=g) for g in (one, other))
    assert not torch.equal(a, b) and abs(float(a.mean())) < 0.15 and 0.9 < float(a.std()) < 1.1
    words = [g.get_state()[24 : 24 + 8 * 624].view(torch.int64) for g in (one, other)]
    assert all(int(w.max()) < 2**32 for w in words) and (words[0] != words[1]).sum() > 600


# ---------------------------------------------------------------- a real worker process


@pytest.mark.slow
def test_a_real_worker_tells_what_is_spent_and_remembers_it(data: Path, tmp_path: Path) -> None:
    spec = make_spec(
        data, tmp_path, algorithm=FedAvgParams(), privacy={"dp": {"max_epsilon": 9.0}}, rounds=90
    )
    with worker(spec) as first:
        assert first.wait(protocol.Ready).spent == protocol.Spent(0.0, 1e-5, 0, 9.0)
        first.send(protocol.StartRound(1))
        spent = first.wait(protocol.RoundDone).spent
        assert spent.steps == 4 and 0 < spent.epsilon <= 9.0
    with worker(spec) as second:
        assert second.wait(protocol.Ready).spent == spent


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"algorithm": GcmlParams()}, r"algorithm\.name = 'gcml'.*Write gossip_average"),
        ({"algorithm": DittoParams()}, r"algorithm\.name = 'ditto'"),
        ({"network": {"norm": "batch"}}, r"network\.norm = 'batch'.*instance or group"),
        ({"device": {"amp": "fp16"}}, r"device\.amp = 'fp16'"),
        ({"privacy": {"dp": {"delta": 0.5}}}, r"privacy\.dp\.delta = 0\.5.*Write 0\.0"),
        ({"privacy": {"dp": {"epsilon": 3}}}, r"privacy\.dp\.epsilon"),
    ],
)
def test_what_cannot_be_private_is_refused_with_a_remedy(
    data: Path, tmp_path: Path, more: dict[str, Any], match: str
) -> None:
    settings = {"algorithm": FedAvgParams(), "privacy": {"dp": {}}, **more}
    with pytest.raises(ConfigError, match=match):
        make_trainer(make_spec(data, tmp_path, **settings))


def test_a_network_that_keeps_statistics_is_refused_whatever_it_calls_them() -> None:
    from gossipseg.learn.engine.precision import Compute

    compute = Compute(torch.device("cpu"))
    for layer in (torch.nn.BatchNorm2d(2), torch.nn.InstanceNorm2d(2, track_running_stats=True)):
        with pytest.raises(ConfigError, match="statistics"):
            dp_sgd.check_network(torch.nn.Sequential(layer), compute)
    dp_sgd.check_network(torch.nn.Sequential(torch.nn.InstanceNorm2d(2), torch.nn.GroupNorm(1, 2)), compute)
    with pytest.raises(ConfigError, match="fp16"):
        dp_sgd.check_network(torch.nn.Identity(), Compute(torch.device("cpu"), torch.float16))


def test_without_the_package_the_remedy_is_named(tmp_path: Path) -> None:
    code = (
        "import sys, json; sys.modules['opacus'] = None\n"
        "from pathlib import Path\n"
        "from gossipseg.learn.privacy import dp_sgd\nfrom gossipseg.learn.params import DpParams\n"
        "from gossipseg.errors import ConfigError\n"
        "try: dp_sgd.PrivateTraining(DpParams(), None, 'a', 9, 2, Path('x'))\n"
        "except ConfigError as e: print(json.dumps(str(e)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "pip install 'gossipseg[dp]'" in json.loads(out.stdout)


def test_other_batches_than_patches_of_the_cases_are_refused(data: Path, tmp_path: Path) -> None:
    trainer = private(data, tmp_path, delta=1e-3)

    class Others:
        def batch(self, seed: int, site: str, round: int, step: int) -> Any:
            raise AssertionError

    trainer.site.feed(lambda _: Others())
    with pytest.raises(LocalError, match=r"privacy\.dp"):
        trainer.site.case(0, np.random.default_rng(0))
