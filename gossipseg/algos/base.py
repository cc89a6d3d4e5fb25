"""What an algorithm is: the lines in which it differs from the others.

An algorithm supplies losses, says which parameters travel, and how incoming weights are combined.
It owns no loop, no I/O, no logging, no `.to(device)`: only learn/engine/train_step.py trains.

A round in which another site's model comes runs so:

    weights = algorithm.on_arrival(local, incoming)        before the first step
    E × algorithm.losses(...)                              engine.train_step does backward and optimizer

and one under a rotating coordinator so:

    weights = algorithm.on_global(local, global)           before the first step
    E × algorithm.losses(...)
    update  = algorithm.update_of(local, anchor)           to the coordinator, whose worker then runs
    global  = algorithm.aggregate(updates)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

Weights = Mapping[str, Tensor]
"""Named tensors of a model, as in a state dict."""

Role = Literal["local", "personal"]
"""local: the site's shared model, which travels; personal: the one that is never mixed."""

SegmentationLoss = Callable[["Outputs", Tensor], Tensor]

PRIVATE_BUFFERS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
"""Last parts of the names of batch norm's running statistics: they describe a site's scanner (FedBN)."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a network says of a batch.

    `logits`: (B, C, *spatial) float. `aux`: heads of deep supervision, coarser, same C; empty in evaluation.
    """

    logits: Tensor
    aux: tuple[Tensor, ...] = ()
    clean: Tensor | None = None
    """Detached logits of the same images with dropout off: what a partner is shown. None: the logits."""
    features: Tensor | None = None
    """The last feature map before the logits, (B, F, *spatial) float; None unless the algorithm
    `wants_features`."""
    clean_features: Tensor | None = None
    """The same as `clean` is of the logits."""


@dataclass(frozen=True, slots=True)
class StepContext:
    """What a loss may know beside the batch."""

    output: Literal["softmax", "sigmoid"]
    since_exchange: int | None
    """Rounds since the first model of another site was taken in: the ramp of λ; None before."""
    segmentation_loss: SegmentationLoss
    """L_seg with its deep supervision; the only place where `aux` weighs in."""
    parameters: Mapping[Role, Weights] = field(default_factory=dict)
    """The live parameters of the models that train, for terms on weights."""
    anchor: Weights = field(default_factory=dict)
    """The shared tensors of the last global model (W_0 before the first), detached; empty for algorithms
    that do not ask for it (`needs_anchor`)."""
    moment: StepPosition | None = None
    """Where the site stands; None where nobody asked (a plain batch outside a round)."""
    noise_seed: int = 0
    """For an algorithm's own random numbers: another one each step, the same after a resume."""


@dataclass(frozen=True, slots=True)
class StepPosition:
    """Where a site stands when a round of its begins."""

    round: int
    """The site's own, from 1."""
    step: int = 0
    """Within the round, from 0."""
    steps_per_round: int = 1
    finetuning: bool = False
    """One of the last rounds, trained alone from the last global model."""
    settling_in: bool = False
    """The first round of a site that joined after the others had begun."""


class Update(Protocol):
    """What one site sent to the coordinator, on disk: tensors are read one at a time."""

    @property
    def site(self) -> str: ...
    @property
    def cases(self) -> int: ...
    @property
    def names(self) -> Sequence[str]: ...

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU: floating-point ones in float32, or wider if they came so."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, without reading it."""
        ...

    def part(self, name: str, begin: int, end: int) -> Tensor:
        """The values `begin` … `end` of the flattened tensor, as tensor() gives them."""
        ...


@dataclass(slots=True)
class Combined:
    """What an aggregation gives: the tensors of the next global model, made one at a time.

    A name may be `site:name`: that tensor is for this site alone, which then gets all of its tensors so.
    Plain names are for every site that has none of its own.
    `notes` is filled at the latest when the last tensor has been made; JSON values, shown to users.
    """

    tensors: Iterator[tuple[str, Tensor]]
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Losses:
    """What the step shall minimise, and what a user may want to see."""

    total: Mapping[Role, Tensor]
    """One scalar for each model that trains; their graphs do not touch (partners are detached)."""
    terms: Mapping[str, Tensor]
    """Detached scalars by name, such as seg, pull, push: for the log."""


class Algorithm:
    """Base of all algorithms: trains alone, exchanges nothing. Subclasses override what differs."""

    name: str = "base"
    exchanges: bool = False
    """Whether models of other sites visit."""
    needs_anchor: bool = False
    """Whether `losses` or `update_of` want the last global model beside the present weights."""
    trains_personal: bool = False
    """Whether `losses` has one for the personal model. Otherwise that trains as `local` does."""
    learns_from_personal: bool = False
    """Whether `losses` wants to see what the personal model says of the batch."""
    wants_features: bool = False
    """Whether `losses` wants feature maps beside the logits."""
    keeps_best_finetuned: bool = False
    """Whether the deployed model is the best on validation of those after each fine-tuning round and the one
    before them, not the last."""

    averages: bool = True
    """Whether tensors of different sites' models are ever mixed: then a model must be like this site's."""

    takes_over: bool = True
    """Whether a site that joins late begins with the weights of the first model that comes (gossip alone)."""

    def __init__(self, private_names: Collection[str] = ()) -> None:
        self._private_names = frozenset(private_names)

    def is_shared(self, name: str) -> bool:
        """Whether the named tensor travels. THE predicate: sender and receiver use it alike."""
        return name.rpartition(".")[2] not in PRIVATE_BUFFERS and name not in self._private_names

    def on_arrival(self, local: Weights, incoming: Weights) -> Weights | None:
        """New local weights before the round in which a model comes, or None to leave them."""
        return None

    def losses(self, outputs: Mapping[Role, Outputs], target: Tensor, context: StepContext) -> Losses:
        """Losses of one batch.

        `outputs` holds "local", and "personal" where the algorithm asks for it and there is such a model: it
        trains here if the algorithm trains it, and is detached otherwise. `target`: (B, 1, *spatial) integer
        label indices when the output is softmax; (B, C, *spatial) of 0/1 when it is sigmoid. Negative: nobody
        says what is there, and no loss may count it. Channels are those of the classes that the site
        annotates.
        """
        seg = context.segmentation_loss(outputs["local"], target)
        return Losses({"local": seg}, {"seg": seg.detach()})

    # ------------------------------------------------------------ under a rotating coordinator

    def is_frozen(self, name: str, moment: StepPosition) -> bool:
        """Whether the named parameter keeps its value throughout the round."""
        return False

    def on_global(self, local: Weights, incoming: Weights) -> Weights:
        """New local weights from the tensors of a global model that are for this site: by default those."""
        return {name: incoming.get(name, tensor) for name, tensor in local.items()}

    def update_of(self, local: Weights, anchor: Weights) -> Weights:
        """What the site sends to the coordinator after its steps: by default the shared tensors."""
        return {name: tensor for name, tensor in local.items() if self.is_shared(name)}

    def aggregate(self, updates: Sequence[Update], round: int) -> Combined:
        """The next global model from the updates of federation round `round` (from 1); at least one.

        Memory must not grow with the number of updates: read them a tensor at a time.
        """
        raise NotImplementedError(f"{self.name} has no coordinator")
