"""The training step: gradients, clipping, precision, what is not finite, two models side by side."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from gossipseg.algos.base import Algorithm, Losses, Outputs, Role, StepContext
from gossipseg.algos.gcml import Gcml
from gossipseg.algos.params import GcmlParams
from gossipseg.learn.engine.losses import segmentation_loss
from gossipseg.learn.engine.optim import learning_rate, make_optimizer, step_seed
from gossipseg.learn.engine.precision import Compute, choose_compute
from gossipseg.learn.engine.train_step import Learner, StepResult, make_learner, train_step
from gossipseg.learn.params import DeviceParams, TrainingParams
from gossipseg.nets.segmenter import Segmenter

CPU = Compute(torch.device("cpu"))


def small_net(seed: int) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(4, 2, 1)), (1, 1)
    )


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(2, 1, 8, 8, generator=g), (torch.rand(2, 1, 8, 8, generator=g) > 0.6).long()


def step(
    learners: Mapping[Role, Learner],
    batch: tuple[Tensor, Tensor],
    algorithm: Algorithm | None = None,
    compute: Compute = CPU,
    training: TrainingParams | None = None,
) -> StepResult:
    training = training or TrainingParams()
    context = StepContext("softmax", 5, segmentation_loss(training, 2))
    torch.manual_seed(0)
    return train_step(learners, *batch, algorithm or Algorithm(), context, compute, training.clip_grad_norm)


class Together(Algorithm):
    """Each model by the segmentation loss alone."""

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        return Losses({role: context.segmentation_loss(out, target) for role, out in outputs.items()}, {})


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_a_step_is_the_optimizers_step_on_the_clipped_gradient(batch: tuple[Tensor, Tensor]) -> None:
    training = TrainingParams(optimizer="sgd", learning_rate=0.5, clip_grad_norm=0.01)
    learner = make_learner(small_net(0), training, CPU)
    before = weights(learner.model)
    step({"local": learner}, batch, training=training)
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(learner.model), before, strict=True)])
    # Nesterov's first step is (1 + momentum) times the gradient.
    assert moved.norm() == pytest.approx(0.5 * 1.9 * 0.01, rel=1e-3)


def test_without_clipping_the_gradient_is_whole(batch: tuple[Tensor, Tensor]) -> None:
    lengths = []
    for clip in (0.0, 1e9):
        training = TrainingParams(optimizer="sgd", clip_grad_norm=clip)
        learner = make_learner(small_net(0), training, CPU)
        before = weights(learner.model)
        step({"local": learner}, batch, training=training)
        pairs = zip(weights(learner.model), before, strict=True)
        lengths.append(float(sum((a - b).norm() for a, b in pairs)))
    assert lengths[0] == pytest.approx(lengths[1]) and lengths[0] > 0


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 0.02), ("adamw", 0.02), ("sgd", 0.2)])
def test_every_optimizer_learns(batch: tuple[Tensor, Tensor], optimizer: str, rate: float) -> None:
    training = TrainingParams(optimizer=optimizer, learning_rate=rate, weight_decay=1e-4)  # type: ignore[arg-type]
    learner = make_learner(small_net(0), training, CPU)
    losses = [float(step({"local": learner}, batch, training=training).loss) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]


def test_two_models_train_as_if_alone_when_nothing_couples_them(batch: tuple[Tensor, Tensor]) -> None:
    algorithm = Gcml(GcmlParams(lambda_=0.0, mutual="both"))
    learners: dict[Role, Learner] = {
        "local": make_learner(small_net(0), TrainingParams(), CPU),
        "personal": make_learner(small_net(1), TrainingParams(), CPU),
    }
    alone = make_learner(small_net(0), TrainingParams(), CPU)
    for _ in range(3):
        step(learners, batch, algorithm)
        step({"local": alone}, batch, algorithm)
    pairs = zip(weights(alone.model), weights(learners["local"].model), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(weights(small_net(1)), weights(learners["personal"].model), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_a_partner_is_shown_with_its_dropout_off(batch: tuple[Tensor, Tensor]) -> None:
    seen: dict[Role, Outputs] = {}

    class Spy(Algorithm):
        def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
            seen.update(outputs)
            total = {role: context.segmentation_loss(out, target) for role, out in outputs.items()}
            return Losses(total, {})

    nets: dict[Role, Segmenter] = {"local": small_net(0), "personal": small_net(1)}
    with torch.no_grad():
        expected = {role: net.eval()(batch[0]).logits for role, net in nets.items()}
    step({role: make_learner(net.train(), TrainingParams(), CPU) for role, net in nets.items()}, batch, Spy())
    for role, out in seen.items():
        assert out.clean is not None and not out.clean.requires_grad
        assert torch.allclose(out.clean, expected[role], atol=1e-6)
        assert not torch.allclose(out.logits, expected[role])


def scaled(seed: int, scale: float, training: TrainingParams) -> Learner:
    """A learner whose gradients are scaled as for fp16; the scaler works on the CPU as well."""
    model = small_net(seed)
    return Learner(
        model, make_optimizer(model, training, scaled=True), torch.amp.GradScaler("cpu", init_scale=scale)
    )


def test_scaled_gradients_are_clipped_at_their_true_size(batch: tuple[Tensor, Tensor]) -> None:
    training = TrainingParams(optimizer="sgd", learning_rate=0.5, clip_grad_norm=0.01)
    plain, fp16 = make_learner(small_net(0), training, CPU), scaled(0, 1024.0, training)
    for learner in (plain, fp16):
        assert not step({"local": learner}, batch, training=training).skipped
    pairs = zip(weights(plain.model), weights(fp16.model), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_an_overflow_of_one_model_leaves_the_others_scale_alone(batch: tuple[Tensor, Tensor]) -> None:
    training = TrainingParams()
    mine, its = scaled(0, 1024.0, training), scaled(1, 1e38, training)
    before = weights(its.model)
    for parameter in its.model.parameters():
        parameter.register_hook(lambda g: g * 1e6)
    result = step({"local": mine, "personal": its}, batch, Gcml(GcmlParams(lambda_=0.0, mutual="both")))
    # The search for a scale is not a bad step: the weights wait, nothing is reported.
    assert not result.skipped and mine.optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(weights(its.model), before, strict=True))
    assert mine.scaler.get_scale() == 1024.0 and its.scaler.get_scale() < 0.6e38


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_an_overflow_in_the_first_step_leaves_nothing_behind(
    batch: tuple[Tensor, Tensor], optimizer: str
) -> None:
    training = TrainingParams(optimizer=optimizer, clip_grad_norm=0.0)  # type: ignore[arg-type]
    plain, fp16 = make_learner(small_net(0), training, CPU), scaled(0, 1024.0, training)
    with torch.no_grad():
        handles = [p.register_hook(lambda g: g * float("inf")) for p in fp16.model.parameters()]
    step({"local": fp16}, batch, training=training)
    for handle in handles:
        handle.remove()
    for _ in range(3):
        for learner in (plain, fp16):
            step({"local": learner}, batch, training=training)
    pairs = zip(weights(plain.model), weights(fp16.model), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


class _Poison(Algorithm):
    """A loss that is not a number, for one of the models."""

    def __init__(self, role: Role) -> None:
        super().__init__()
        self.role = role

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        total = {role: context.segmentation_loss(out, target) for role, out in outputs.items()}
        total[self.role] = total[self.role] * float("nan")
        return Losses(total, {})


@pytest.mark.parametrize("role", ("local", "personal"))
def test_a_gradient_that_is_not_finite_changes_nothing(batch: tuple[Tensor, Tensor], role: Role) -> None:
    learners: dict[Role, Learner] = {
        "local": make_learner(small_net(0), TrainingParams(), CPU),
        "personal": make_learner(small_net(1), TrainingParams(), CPU),
    }
    before = weights(learners[role].model)
    result = step(learners, batch, _Poison(role))
    assert result.skipped == {role}
    assert all(torch.equal(a, b) for a, b in zip(weights(learners[role].model), before, strict=True))
    assert not learners[role].optimizer.state


@pytest.mark.parametrize("diverged", ({"local"}, {"personal"}, {"local", "personal"}, set()))
def test_a_model_that_is_not_finite_stops_its_partner_too(
    batch: tuple[Tensor, Tensor], diverged: set[Role]
) -> None:
    """Partners are detached, but their logits stand in the loss: no weight is changed by such a step."""
    learners: dict[Role, Learner] = {
        "local": make_learner(small_net(0), TrainingParams(), CPU),
        "personal": make_learner(small_net(1), TrainingParams(), CPU),
    }
    for role in diverged:
        learners[role].model.register_forward_hook(
            lambda m, x, out: out._replace(logits=out.logits * 1e38 * 1e38)
        )
    result = step(learners, batch, Gcml(GcmlParams(lambda_ramp_rounds=0, mutual="both")))
    assert result.skipped == (set(learners) if diverged else set())


def test_losses_are_float32_under_autocast(batch: tuple[Tensor, Tensor]) -> None:
    compute = choose_compute(DeviceParams(device="cpu", amp="bf16"))
    seen: list[torch.dtype] = []

    class Spy(Algorithm):
        def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
            seen.append(outputs["local"].logits.dtype)
            seen.append((outputs["local"].logits @ outputs["local"].logits.mT).dtype)
            return super().losses(outputs, target, context)

    learner = make_learner(small_net(0), TrainingParams(), compute)
    exact = make_learner(small_net(0), TrainingParams(), CPU)
    rounded = step({"local": learner}, batch, Spy(), compute)
    precise = step({"local": exact}, batch)
    assert seen == [torch.float32, torch.float32] and rounded.loss.dtype is torch.float32
    assert rounded.loss != precise.loss and torch.allclose(rounded.loss, precise.loss, rtol=0.02)
    assert all(p.dtype is torch.float32 for p in learner.model.parameters())


def test_a_validation_and_a_partner_take_no_layers_gradient_under_autocast(
    batch: tuple[Tensor, Tensor],
) -> None:
    """A cast of a weight that was made without gradients must not be there when the step wants it: within the
    step's own autocast context every layer is called with gradients first (tests/nets/test_autocast.py)."""
    compute, training = choose_compute(DeviceParams(device="cpu", amp="bf16")), TrainingParams()
    roles: tuple[Role, ...] = ("local", "personal")
    learners = {role: make_learner(small_net(i), training, compute) for i, role in enumerate(roles)}
    for learner in learners.values():
        with torch.no_grad(), compute.autocast():
            learner.model(batch[0])
    calls: dict[tuple[Role, str], list[tuple[bool, bool]]] = {}
    for role, learner in learners.items():
        for name, layer in learner.model.named_modules():
            if isinstance(layer, nn.Conv2d):
                seen = calls.setdefault((role, name), [])
                layer.register_forward_pre_hook(
                    lambda *_, seen=seen: seen.append(
                        (torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
                    )
                )
    before = {role: weights(learner.model) for role, learner in learners.items()}
    step(learners, batch, Together(), compute)
    assert len(calls) == 4 and all(seen == [(True, True), (False, True)] for seen in calls.values())
    for role, learner in learners.items():
        moved = [not torch.equal(a, b) for a, b in zip(weights(learner.model), before[role], strict=True)]
        assert all(moved), role


def test_the_cosine_ends_low_and_stays_there() -> None:
    training = TrainingParams(learning_rate=1.0, schedule="cosine", schedule_rounds=10, steps_per_round=10)
    rates = [learning_rate(training, r, s) for r in range(1, 13) for s in range(10)]
    assert rates[0] == 1.0 and rates == sorted(rates, reverse=True)
    assert rates[50] == pytest.approx(0.505)
    assert rates[100] == rates[-1] == pytest.approx(0.01)
    assert learning_rate(TrainingParams(learning_rate=0.3), 99, 5) == 0.3


def test_step_seeds_differ_in_everything_they_depend_on() -> None:
    seeds = {step_seed(s, site, r, k) for s in (0, 1) for site in ("a", "b") for r in (1, 2) for k in (0, 1)}
    assert len(seeds) == 16 and all(0 <= seed < 2**63 for seed in seeds)


def test_weight_decay_reaches_the_optimizer() -> None:
    training = TrainingParams(optimizer="adamw", weight_decay=0.25)
    assert make_optimizer(small_net(0), training).param_groups[0]["weight_decay"] == 0.25
