"""The worker's last report, kept for status."""

from __future__ import annotations

from dataclasses import dataclass, field

from gossipseg.learn import protocol


@dataclass(slots=True)
class WorkerView:
    """The worker's last report."""

    activity: str = "starting"
    fraction: float = 0.0
    step: int = 0
    steps_per_round: int = 0
    loss: float | None = None
    dice_val: float | None = None
    dice_test_start: float | None = None
    dice_test: float | None = None
    cases: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    splits_from: str = ""
    device: str = ""
    warnings: dict[str, str] = field(default_factory=dict)
    """Warnings for an administrator, by the part that gives them: worker, state, events, store."""
    spent: protocol.Spent | None = None
    """The privacy budget that differentially private training has spent."""
    deployed: str = ""
    """Which model is deployed, and why, where there is a choice; in the words of protocol.RoundDone."""
    deployed_reason: str = ""
    similarity: tuple[int, tuple[str, ...], tuple[tuple[float, ...], ...]] | None = None
    """Round, sites and matrix of the last aggregation that compared sites."""

    def warn(self, who: str, text: str) -> None:
        """Set one part's warning; "" clears it."""
        self.warnings = {k: v for k, v in {**self.warnings, who: text}.items() if v}

    def begin(self, activity: str, fraction: float = 0.0) -> None:
        """Record the start of another activity."""
        self.activity, self.fraction = activity, fraction

    def progress(self, message: protocol.Progress) -> None:
        self.begin(message.activity, message.fraction)
        self.step, self.steps_per_round = message.step, message.steps_per_round
        self.loss = message.loss if message.loss is not None else self.loss

    def ready(self, message: protocol.Ready, steps_per_round: int) -> None:
        self.begin("waiting")
        self.cases, self.splits, self.device = message.cases, message.splits, message.device
        self.splits_from = message.splits_from
        self.dice_val, self.dice_test = message.dice_val, message.dice_test
        self.dice_test_start, self.steps_per_round = message.dice_test_start, steps_per_round
        self.deployed, self.deployed_reason = message.deployed, message.deployed_reason
        self._account(message.spent)
        self.warn("worker", message.warning)
        self.warn("personal", "")

    def combined(self, message: protocol.AggregateDone) -> None:
        self.begin("waiting")
        found = message.notes.get("similarity")
        if found:
            matrix = tuple(tuple(float(v) for v in row) for row in found["matrix"])
            self.similarity = (message.round, tuple(found["sites"]), matrix)

    def round_done(self, message: protocol.RoundDone) -> None:
        self.begin("waiting")
        self.loss = message.loss
        self.deployed, self.deployed_reason = message.deployed, message.deployed_reason
        self._account(message.spent)
        self.dice_val = message.dice_val if message.dice_val is not None else self.dice_val
        self.dice_test = message.dice_test if message.dice_test is not None else self.dice_test
        self.warn("worker", message.warning)
        self.warn("personal", "")

    def copied(self, message: protocol.SwapApplied) -> None:
        """A peer's model was taken over: nothing has been validated since."""
        if message.copied and not message.reason:
            self.deployed, self.deployed_reason, self.dice_val = (
                message.deployed,
                message.deployed_reason,
                None,
            )

    def chosen(self, message: protocol.PersonalHeld | protocol.MixChosen, *, ended: bool) -> None:
        """The mix was chosen again, from the models that are here now. `ended`: training has."""
        self.begin("finished" if ended else "waiting", 1.0 if ended else 0.0)
        self.deployed, self.deployed_reason = message.deployed, message.deployed_reason
        self.dice_val, self.dice_test = message.dice_val, message.dice_test
        self.warn("personal", message.warning)

    def _account(self, spent: protocol.Spent | None) -> None:
        self.spent = spent
        ended = ""
        if spent is not None and spent.over:
            ended = f"the privacy budget (max_epsilon {spent.max_epsilon}) is spent: this site trains no more"
        self.warn("privacy", ended)
