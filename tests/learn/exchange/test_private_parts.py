"""Algorithms whose networks have parts of a site's own, through the real trainer: FedOAP and FedSCA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gossipseg.algos.params import FedOapParams, FedScaParams
from gossipseg.learn import protocol
from gossipseg.learn.engine.checkpoint import contract_of, load_checkpoint
from gossipseg.store import Checkpoints
from tests.learn.harness import make_spec, make_trainer, same, stored

ADAPTED = {"name": "adapted_unetr", "width": 2, "dropout": 0.0, "options": {"adapter_width": 3}}


def oap(data: Path, state: Path, site: str = "north", **algorithm: Any) -> Any:
    spec = make_spec(
        data,
        state,
        site=site,
        algorithm=FedOapParams(**algorithm),
        network={"name": "dca_unet"},
        training={"output": "sigmoid"},
    )
    return make_trainer(spec)


def sca(data: Path, state: Path, site: str = "north", **algorithm: Any) -> Any:
    spec = make_spec(
        data,
        state,
        site=site,
        algorithm=FedScaParams(**{"warmup_rounds": 0, **algorithm}),
        network=ADAPTED,
        training={"learning_rate": 0.01},
    )
    return make_trainer(spec)


def weights(trainer: Any) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in trainer.model_state.weights().items()}


def update_of(trainer: Any, order: protocol.StartRound) -> protocol.UpdateFile:
    done = trainer.run_round(order)
    assert done.export is not None, done.warning
    site = trainer.settings.spec.site
    return protocol.UpdateFile(site, done.export.path, done.export.cases, done.export.steps)


def common_of(
    trainer: Any, round: int, *updates: protocol.UpdateFile
) -> tuple[protocol.GlobalModelFile, Any]:
    made = trainer.aggregate(protocol.Aggregate(round, 0, list(updates)))
    assert made.export is not None and not made.refused, made
    return protocol.GlobalModelFile(made.export.path, f"{round}" * 64, round), made.notes


def first_weights(trainer: Any, order: protocol.StartRound) -> dict[str, Tensor]:
    """Those with which a round begins; runs it."""
    seen: list[dict[str, Tensor]] = []
    trainer.run.gate = lambda: seen.append(weights(trainer))
    assert not trainer.run_round(order).warning
    return seen[0]


def restarted(trainer: Any) -> Any:
    """What a worker has that starts from the trainer's checkpoint file, and from nothing else."""
    stored(trainer)
    fresh = make_trainer(trainer.settings.spec)
    store = Checkpoints(Path(trainer.settings.spec.state_dir) / "checkpoint")
    state, warning = load_checkpoint(store, contract_of(fresh.settings, fresh.network_signature))
    assert state is not None and not warning
    fresh.load(state)
    return fresh


def kept(trainer: Any) -> dict[str, Any]:
    """All that a checkpoint carries, but the generator: every step seeds anew."""
    return {key: value for key, value in trainer.state().items() if key != "rng"}


# ---------------------------------------------------------------- FedOAP

PRIVATE = ("query_bottleneck", "query", "adapter", "head")


def test_rho_stays_at_the_site(data: Path, tmp_path: Path) -> None:
    one, two = oap(data, tmp_path / "a"), oap(data, tmp_path / "b", "south")
    updates = [update_of(t, protocol.StartRound(1, export=True)) for t in (one, two)]
    common, _ = common_of(one, 1, *updates)
    travelled, before = load_file(common.path), weights(two)
    rho = {n for n in before if n.split(".")[1] in PRIVATE}
    assert rho and travelled.keys() == before.keys() - rho
    begun = first_weights(two, protocol.StartRound(2, start_from=common))
    assert all(torch.equal(begun[n], before[n]) for n in rho)
    assert all(torch.equal(begun[n], travelled[n].float()) for n in travelled)
    after = weights(two)
    assert all(any(not torch.equal(after[n], begun[n]) for n in names) for names in (rho, travelled))


def test_rho_outlives_a_restart_and_the_next_common_model(data: Path, tmp_path: Path) -> None:
    """Bit by bit in W, in the EMA, and in what the optimizer has gathered of it."""
    one, two = oap(data, tmp_path / "a"), oap(data, tmp_path / "b", "south")
    rho = {n for n in weights(two) if n.split(".")[1] in PRIVATE}
    initial = weights(two)
    updates = [update_of(t, protocol.StartRound(1, export=True)) for t in (one, two)]
    common, _ = common_of(one, 1, *updates)
    assert any(not torch.equal(initial[n], weights(two)[n]) for n in rho), "nothing that could be lost"

    back = restarted(two)
    assert all(torch.equal(weights(back)[n], weights(two)[n]) for n in rho)
    assert all(
        torch.equal(back.model_state.ema.state_dict()[n], two.model_state.ema.state_dict()[n]) for n in rho
    )
    assert same(kept(back), kept(two))

    order = protocol.StartRound(2, start_from=common)
    before = weights(back)
    begun = first_weights(back, order)
    assert all(torch.equal(begun[n], before[n]) for n in rho), "the file of round 1 knows no ρ"
    assert not two.run_round(order).warning
    assert same(kept(back), kept(two)), "it goes on as if it had not been restarted"


def test_a_finetuning_goes_on_after_a_restart_with_its_best_and_the_same_noise(
    data: Path, tmp_path: Path
) -> None:
    """The best model so far is in the checkpoint; the noise of (3) needs nothing there: a step seeds it."""
    whole = oap(data, tmp_path / "a", tau=0.3, sigma=1.0, lambda_=0.5)
    for order in (protocol.StartRound(1), protocol.StartRound(2, finetuning=True)):
        whole.run_round(order)
    best = {n: t.clone() for n, t in whole.round_end.best.items()}

    back = restarted(whole)
    assert same(back.round_end.best, best) and any(n.split(".")[1] in PRIVATE for n in best)
    assert back.history.best_finetuned == whole.history.best_finetuned is not None

    done = [t.run_round(protocol.StartRound(3, finetuning=True)) for t in (whole, back)]
    assert done[0].terms["perturbed"] is not None and done[0].terms == done[1].terms
    assert same(kept(back), kept(whole))


def test_a_late_joiner_keeps_gamma_for_a_round(data: Path, tmp_path: Path) -> None:
    one, late = oap(data, tmp_path / "a"), oap(data, tmp_path / "b", "south")
    common, _ = common_of(one, 1, update_of(one, protocol.StartRound(1, export=True)))
    begun = first_weights(late, protocol.StartRound(1, start_from=common, settling_in=True))
    after = weights(late)
    changed = {n.split(".")[1] for n in begun if not torch.equal(begun[n], after[n])}
    assert changed == set(PRIVATE)


def test_finetuning_perturbs_and_the_best_is_deployed(data: Path, tmp_path: Path) -> None:
    trainer = oap(data, tmp_path / "a", tau=0.3, sigma=1.0, lambda_=0.5)
    assert "perturbed" not in trainer.run_round(protocol.StartRound(1)).terms
    done = trainer.run_round(protocol.StartRound(2, finetuning=True))
    assert done.terms["perturbed"] != done.terms["seg"] and 0 < done.terms["wrong"] <= 1
    assert trainer.history.best_finetuned == done.dice_val


# ---------------------------------------------------------------- FedSCA


def test_each_site_goes_on_from_its_own_mixture(data: Path, tmp_path: Path) -> None:
    sites = ("north", "south", "west")
    trainers = {site: sca(data, tmp_path / site, site) for site in sites}
    initial = weights(trainers["west"])
    updates = [update_of(trainers[s], protocol.StartRound(1, export=True)) for s in sites[:2]]
    sent = [load_file(u.path) for u in updates]
    low = {n for n in initial if ".low_adapter." in n}
    assert all(s.keys() == low | {f"delta/{n}" for n in low} for s in sent)
    up = next(n for n in low if n.endswith("up.weight"))
    assert torch.equal(sent[0]["delta/" + up], sent[0][up]), "W_0, where up is 0, is the first anchor"

    common, notes = common_of(trainers["north"], 1, *updates)
    assert notes["similarity"]["sites"] == ["north", "south"]
    travelled = load_file(common.path)
    assert travelled.keys() == low | {f"{s}:{n}" for s in sites[:2] for n in low}

    before = weights(trainers["south"])
    begun = first_weights(trainers["south"], protocol.StartRound(2, start_from=common, export=True))
    assert all(torch.equal(begun[n], travelled[f"south:{n}"].float()) for n in low)
    assert all(torch.equal(begun[n], before[n]) for n in begun.keys() - low)
    outbox = tmp_path / "south" / "outbox" / "round-2.safetensors"
    after, second = weights(trainers["south"]), load_file(outbox)
    torch.testing.assert_close(second["delta/" + up].float(), after[up] - begun[up], rtol=1e-3, atol=1e-6)

    begun = first_weights(trainers["west"], protocol.StartRound(1, start_from=common))
    assert all(torch.equal(begun[n], travelled[n].float()) for n in low), "its update was not in it"
    assert all(torch.equal(begun[n], initial[n]) for n in begun.keys() - low)


def test_a_late_joiner_begins_with_the_mean_and_is_combined_from_then_on(data: Path, tmp_path: Path) -> None:
    trainers = {site: sca(data, tmp_path / site, site) for site in ("north", "south", "west")}
    updates = [update_of(trainers[s], protocol.StartRound(1, export=True)) for s in ("north", "south")]
    sent, cases = [load_file(u.path) for u in updates], [u.cases for u in updates]
    common, _ = common_of(trainers["north"], 1, *updates)
    late = trainers["west"]
    low = {n for n in weights(late) if ".low_adapter." in n}
    up = next(n for n in low if n.endswith("up.weight"))
    assert weights(late)[up].abs().max() == 0, "so that a mean is told from W_0"

    order = protocol.StartRound(1, start_from=common, settling_in=True, export=True)
    begun = first_weights(late, order)
    for name in low:
        mean = (cases[0] * sent[0][name].float() + cases[1] * sent[1][name].float()) / sum(cases)
        torch.testing.assert_close(begun[name], mean, rtol=1e-3, atol=1e-6)
    assert begun[up].abs().max() > 0

    file = tmp_path / "west" / "outbox" / "round-1.safetensors"
    moved = load_file(file)["delta/" + up].float()
    torch.testing.assert_close(moved, weights(late)[up] - begun[up], rtol=1e-3, atol=1e-6)
    with_west = [*updates, protocol.UpdateFile("west", str(file), cases=4, steps=4)]
    second, notes = common_of(trainers["north"], 2, *with_west)
    assert notes["similarity"]["sites"] == ["north", "south", "west"]
    travelled = load_file(second.path)
    begun = first_weights(late, protocol.StartRound(2, start_from=second))
    assert all(torch.equal(begun[n], travelled[f"west:{n}"].float()) for n in low)


def test_in_the_warm_up_all_get_the_average(data: Path, tmp_path: Path) -> None:
    one, west = sca(data, tmp_path / "a", warmup_rounds=1), sca(data, tmp_path / "b", "west", warmup_rounds=1)
    common, _ = common_of(one, 1, update_of(one, protocol.StartRound(1, export=True)))
    travelled = load_file(common.path)
    begun = first_weights(west, protocol.StartRound(1, start_from=common))
    assert travelled and all(torch.equal(begun[n], t.float()) for n, t in travelled.items())
