"""Settings of training, and the job messages between daemon and worker. Torch-free."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from gossipseg.algos.params import AlgorithmParams, personal_of
from gossipseg.bounds import COUNT, NATURAL, POSITIVE, SHARE, SHARE_BELOW_1, Range
from gossipseg.nets.params import WITH_PRIVATE_PARTS, NetworkParams

_FORBID: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class TaskParams:
    """What is segmented in what; the same at every site (part of the contract)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    name: str
    """The task, in words for people."""
    channels: Annotated[int, COUNT]
    """Channels of an image."""
    labels: dict[int, str]
    """Value in the label image → name; 0 is the background."""
    spatial_dims: Literal[2, 3] = 2
    """Spatial dimensions of the network."""
    modality: str = ""
    """The modality, in words for people; nothing is derived from it."""
    patch_size: Annotated[tuple[int, ...], COUNT] = (96, 96)
    """Voxels per axis of a training patch and of the sliding window."""
    spacing_mm: Annotated[tuple[float, ...] | None, POSITIVE] = None
    """Resample to this voxel size; None leaves the images as they are (PNG/JPEG carry none)."""
    orientation: str | None = None
    """Such as `RAS`, for 3-D images with an affine; None leaves it."""
    intensity: Literal["zscore", "ct_window", "rgb"] = "zscore"
    """Normalisation: `zscore` by mean and deviation of each channel and image; `ct_window` from ct_window_hu
    to 0 … 1; `rgb` from 0 … 255 to 0 … 1, then as `zscore`."""
    ct_window_hu: tuple[float, float] = (-160.0, 240.0)
    """Bounds of `ct_window`, in Hounsfield units."""
    convert_grey_to_rgb: bool = False
    """Accept grey images in a three-channel task by repeating the channel (declared, never silent)."""
    label_map: dict[int, int] = field(default_factory=dict)
    """File value → label value, such as {255: 1} for masks saved as 0/255."""
    slice_axis: Annotated[int | None, Range(0, 2)] = None
    """Read volumes as stacks of slices along this axis, for a 2-D network; None: images are as they are."""

    @property
    def image_dims(self) -> int:
        """Spatial dimensions of an image file: those of the network, but for stacks of slices."""
        return self.spatial_dims if self.slice_axis is None else 3


@dataclass(frozen=True, slots=True)
class TrainingParams:
    """A round, the optimizer and the loss; the same at every site (part of the contract)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    rounds: Annotated[int | None, COUNT] = None
    """The federation's budget: the round that training ends with (in gossip a site that was away trains all
    of them, and ends later). None: no end, unless a site sets one of its own (site.yaml)."""
    steps_per_round: Annotated[int, COUNT] = 100
    """E: optimizer steps in a round, equal at all sites."""
    batch_size: Annotated[int, COUNT] = 4
    """Patches in a step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """`sgd` has Nesterov momentum of 0.9."""
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    """Learning rate at the beginning of the schedule."""
    weight_decay: Annotated[float, NATURAL] = 0.0
    """Weight decay of the optimizer."""
    clip_grad_norm: Annotated[float, POSITIVE] = 1.0
    """Longest gradient of a step (L2, over all parameters)."""
    schedule: Literal["auto", "constant", "cosine", "step_decay"] = "auto"
    """`auto`: cosine where its length is known (schedule_rounds or rounds), else constant."""
    schedule_rounds: Annotated[int | None, COUNT] = None
    """Length of the cosine, which stays at its end afterwards; None: `rounds`. Where neither is set a cosine
    has no length, and the rate is constant."""
    decay_every_steps: Annotated[int, COUNT] = 1000
    """Steps after which `step_decay` multiplies the learning rate by decay_factor, again and again."""
    decay_factor: Annotated[float, Range(0, 1, low_open=True)] = 0.95
    """What `step_decay` multiplies the learning rate by."""
    loss: Literal["dice_ce", "dice_focal", "generalized_dice"] = "dice_ce"
    """Region overlap and voxel term of the segmentation loss."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """sigmoid: one channel per foreground label; softmax: one per label with the background."""
    augment: Literal["none", "flip", "standard"] = "standard"
    """Random changes of training patches: none, flips, or flips with rotation, zoom and intensity."""
    flip_axes: tuple[str, ...] | str = "auto"
    """Axes that `augment` mirrors: auto, all, none, one axis or a list. The contract has the axes that it
    comes to."""
    foreground_patches: Annotated[float, SHARE] = 1 / 3
    """Share of the patches that are centred on foreground."""
    ema_decay: Annotated[float, SHARE_BELOW_1] = 0.9
    """Largest decay a round of the average that is deployed; its first rounds decay faster
    (docs/design/equations.md §0)."""
    guard_drop: Annotated[float, NATURAL] = 0.05
    """A merge is undone when mean validation Dice by patient falls by more than this, and by more than
    chance would have it (docs/design/equations.md §0)."""
    window_overlap: Annotated[float, SHARE_BELOW_1] = 0.5
    """Overlap of neighbouring sliding windows."""
    validate_every_rounds: Annotated[int, COUNT] = 1
    """Rounds between two validations."""
    personal: Literal["always", "none"] | None = None
    """A model of the site's own beside the shared one, trained on the same batches and never mixed; the site
    predicts with both. None: always, but for fedoap and fedsca, which are personal already. No part of the
    contract: no other site's training depends on it. (Peers may fetch a copy: gossip.personal_fetches.)"""
    personal_from_round: Annotated[int, COUNT] = 1
    """The round in which the personal model begins; after the first it begins as a copy of the shared one."""

    @property
    def cosine_rounds(self) -> int | None:
        """Length of the cosine in rounds; None: it has none."""
        return self.schedule_rounds if self.schedule_rounds is not None else self.rounds

    @property
    def schedule_in_force(self) -> Literal["constant", "cosine", "step_decay"]:
        """What `schedule` comes to."""
        if self.schedule == "auto" or self.schedule == "cosine":
            return "cosine" if self.cosine_rounds is not None else "constant"
        return self.schedule


@dataclass(frozen=True, slots=True)
class DataParams:
    """Where this site's images are (site.yaml)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    path: str
    """A folder with `dataset.json` or `dataset.csv`, with `images/` and `masks/` or `labels/`, or with
    nnU-Net's `imagesTr/` and `labelsTr/`."""
    list: str | None = None
    """The data list (.json, .csv, .tsv), relative to `path`; None looks for dataset.json and dataset.csv,
    then for the folders."""
    fold: Annotated[int | None, NATURAL] = None
    """Which fold validates, where the list or splits_final.json has folds; None: fold 0."""
    cache: bool = True
    """Keep preprocessed images in memory."""
    test_fraction: Annotated[float, SHARE_BELOW_1] = 0.2
    """Share of patients for test, where no list divides them; 0 leaves test out."""
    validation_fraction: Annotated[float, SHARE_BELOW_1] = 0.15
    """Share of patients for validation, where no list divides them."""
    patient_pattern: str | None = None
    """A regular expression with one group, the patient: case names must match it from their beginning. None:
    `patient` of the data list, else what the names tell."""
    label_map: dict[int, int] = field(default_factory=dict)
    """File value → label value of the task, for this site's labels alone; goes before task.label_map."""
    label_map_out: dict[int, int] = field(default_factory=dict)
    """Label value of the task → value that predictions are written with. Classes that are not named
    here get the value that most voxels of this site's own labels have."""
    ignore_label: int | None = None
    """File value of voxels whose class is unknown: they count in no loss and no score."""
    annotated_labels: Annotated[tuple[int, ...] | None, COUNT] = None
    """Label values (without 0) that this site's labels tell of. Background in its files may be any other
    class, and is taken as unknown. No part of the contract. None: all."""
    segments: dict[str, int] = field(default_factory=dict)
    """Name of a segment (DICOM-SEG, RTSTRUCT, .seg.nrrd) → label value, where the names are not those of
    the task's labels."""


@dataclass(frozen=True, slots=True)
class DeviceParams:
    """The hardware this site trains on (site.yaml)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"
    """Mixed precision. `auto`: bf16 on a GPU that can, else fp16 there; off on a CPU."""
    channels_last: bool = True
    """Use the channels-last memory layout on a GPU."""
    threads: Annotated[int | None, COUNT] = None
    """torch threads of the worker; None leaves torch's default."""
    stuck_after_s: Annotated[float, POSITIVE] = 900.0
    """A worker without progress for this long is restarted."""


@dataclass(frozen=True, slots=True)
class AdmissionParams:
    """How far another site's model may be from this site's own before it is refused (site.yaml).

    Distances are relative to the layer's own norm (docs/admin/security.md).
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    enabled: bool = True
    """False leaves the checks of schema and of finite values, and the guard on validation Dice."""
    factor: Annotated[float, COUNT] = 5.0
    """How many times as far off a layer may be as the median of what has been accepted before."""
    least_change: Annotated[float, POSITIVE] = 2.0
    """What a layer may always be off: two honest models may be as far apart as −1 and 1."""
    least_norm_ratio: Annotated[float, COUNT] = 3.0
    """How many times larger a layer may always be."""
    least_likeness: Annotated[float, Range(-1, 1)] = 0.1
    """Least cosine of the whole model with this site's: weights that have nothing to do with each other have
    0; −1 allows all."""
    without_history: Annotated[float, COUNT] = 10.0
    """Stands for both of them while fewer than `history_min` models have been accepted; whatever has been
    accepted after, it allows no more."""
    history_min: Annotated[int, COUNT] = 5
    """Accepted models from which the history counts."""
    history_kept: Annotated[int, COUNT] = 32
    """Newest figures that are kept for each layer."""


@dataclass(frozen=True, slots=True)
class DpParams:
    """Differentially private training (site.yaml, docs/ml/privacy.md)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    noise_multiplier: Annotated[float, Range(0.1)] = 1.0
    """Standard deviation of the noise on a step's summed gradient, in units of max_grad_norm."""
    max_grad_norm: Annotated[float, POSITIVE] = 1.0
    """Longest gradient of one case (L2, over all parameters); training.clip_grad_norm is not used."""
    delta: Annotated[float, Range(0, 1, low_open=True, high_open=True)] = 1e-5
    """δ of the ε that is shown; below 1 / training cases."""
    max_epsilon: Annotated[float | None, POSITIVE] = None
    """Training ends before more than this is spent; None: it is counted, and nothing ends."""


@dataclass(frozen=True, slots=True)
class PrivacyParams:
    """What is done to a model before it leaves the site (site.yaml: a seed that others know is no noise)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    clip_norm: Annotated[float | None, POSITIVE] = None
    """Longest change that is told (L2, over all tensors that travel); None: models travel as they are."""
    noise_multiplier: Annotated[float, NATURAL] = 0.0
    """Standard deviation of the noise on each value, in units of clip_norm."""
    seed: Annotated[int | None, Range(0, 2**63 - 1)] = None
    """Seed of the noise, for experiments only; None takes the system's randomness."""
    dp: DpParams | None = None
    """Train with differential privacy; None: do not."""


@dataclass(frozen=True, slots=True)
class InferenceParams:
    """What predicting may cost at this site (site.yaml)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    max_members: Annotated[int, Range(2)] = 5
    """Most models that predict together: the shared and the personal one, and peers' personal models. With 2
    none of a peer's is asked for."""
    max_parameters: Annotated[int, COUNT] = 40_000_000
    """Most values that the network of a peer's personal model may have, where it is not the shared model's. A
    prediction of it may also take no more than 16 times one of the shared model."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All a training process needs to know; sent as JSON, built by config.worker_spec()."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    site: str
    federation: str
    seed: int
    task: dict[str, Any]
    network: dict[str, Any]
    algorithm: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, Any]
    device: dict[str, Any]
    wire_dtype: str
    state_dir: str
    report_test: bool = False
    """Evaluate the test split before the first and after the last round (the testbed's figure)."""
    rounds: int | None = None
    """The training budget; None trains for as long as the daemon runs."""
    tensorboard: bool = False
    """Write TensorBoard scalars to state_dir/tensorboard."""
    listed: list[str] | None = None
    """The federation's sites; None: not told."""
    admission: dict[str, Any] = field(default_factory=dict)
    privacy: dict[str, Any] = field(default_factory=dict)
    swaps: bool = False
    """Whether models are exchanged by swaps: then nothing that was mixed in is undone."""
    personal_network: dict[str, Any] | None = None
    """The personal model's own network; None: it has the shared model's."""
    inference: dict[str, Any] = field(default_factory=dict)


PRIVATE_ALGORITHMS = (
    "local",
    "gossip_average",
    "fedavg",
    "fedprox",
    "fedavg_finetune",
    "fedbn",
)
"""Those whose every step on what leaves the site has one loss for each case."""


PATTERN_REMEDY = r"Write '(.+)_\d+', say, where the patient stands before the last underscore."


def pattern_problem(pattern: str | None) -> str | None:
    """What is wrong with a rule for patients (data.patient_pattern), or None."""
    if pattern is None:
        return None
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as e:
        return f"is no regular expression: {e}"
    return None if groups == 1 else f"must have one group in brackets, the patient; it has {groups}"


Found = tuple[str, str, object, str]
"""(problem, key, value, remedy)"""


def annotates_all(task: TaskParams, data: DataParams) -> bool:
    """Whether a site's labels tell of every class of the task."""
    return data.annotated_labels is None or {0, *data.annotated_labels} >= task.labels.keys()


def unlearned_problem(
    task: TaskParams, data: DataParams, algorithm: AlgorithmParams, network: str
) -> Found | None:
    """Where nobody teaches a site's model the classes that it does not annotate, or None."""
    personal = algorithm.name in ("fedoap", "fedsca")
    own_output = personal and network in WITH_PRIVATE_PARTS  # the last layer stays at its site
    if annotates_all(task, data) or not (own_output or algorithm.exchange == "none"):
        return None
    others = sorted(task.labels.keys() - {0, *(data.annotated_labels or ())})
    named = ", ".join(f"{value} ({task.labels[value]})" for value in others)
    return (
        f"leaves out {named}, and with algorithm.name {algorithm.name} nobody teaches this site's model "
        "these classes: where it put them would mean nothing",
        "data.annotated_labels",
        list(data.annotated_labels or ()),
        "Choose an algorithm that exchanges the whole network, such as gcml or fedavg, or leave these "
        "classes out of task.labels.",
    )


def labels_problem(task: TaskParams, data: DataParams) -> Found | None:
    """What a site says of its labels that does not go with the task, or None."""
    known = "The task has " + ", ".join(f"{v} ({n})" for v, n in sorted(task.labels.items())) + "."
    asked = [("data.annotated_labels", v) for v in data.annotated_labels or ()]
    asked += [(f"data.label_map.{k}", v) for k, v in data.label_map.items()]
    asked += [(f"data.segments.{k}", v) for k, v in data.segments.items() if v != data.ignore_label]
    asked += [("data.label_map_out", k) for k in data.label_map_out]
    for key, value in asked:
        if value not in task.labels or (key == "data.annotated_labels" and value == 0):
            return "is no label of the task", key, value, known
    if data.annotated_labels is not None and not data.annotated_labels:
        remedy = "Name the label values that this site annotates, or leave the key out where it is all."
        return "names no label", "data.annotated_labels", [], remedy
    if data.ignore_label is not None and data.ignore_label in {**task.label_map, **data.label_map}:
        return (
            "is also a value that the label map gives a class",
            "data.ignore_label",
            data.ignore_label,
            "A value is either ignored or of a class: take it out of one of the two.",
        )
    written = list(data.label_map_out.values())
    for value in written:
        if written.count(value) > 1 or not 0 <= value <= LARGEST_WRITTEN:
            return (
                "is no value of its own for one class",
                "data.label_map_out",
                value,
                f"Give each class another value, from 0 to {LARGEST_WRITTEN}.",
            )
    return None


LARGEST_WRITTEN = 65_535
"""Label value in a prediction's file."""


def dp_problem(
    privacy: PrivacyParams, algorithm: str, norm: str, amp: str
) -> tuple[str, str, object, str] | None:
    """What does not go with differentially private training: (problem, key, value, remedy), or None."""
    if privacy.dp is None:
        return None
    if algorithm not in PRIVATE_ALGORITHMS:
        problem = "its steps cannot be trained with privacy.dp: not each of their losses is of one case alone"
        if algorithm == "gcml":
            problem = "its shared model learns from the personal one, which privacy.dp does not account for"
        remedy = f"Write one of {', '.join(PRIVATE_ALGORITHMS)}, or remove privacy.dp from site.yaml."
        if algorithm == "gcml":
            remedy = "Write gossip_average at all sites, or remove privacy.dp from site.yaml."
        return problem, "algorithm.name", algorithm, remedy
    if norm == "batch":
        problem = "batch norm mixes the cases of a batch, and its statistics would leave without noise"
        return problem, "network.norm", norm, "With privacy.dp write instance or group."
    if amp == "fp16":
        problem = "fp16 scales the gradients of a whole batch together"
        return problem, "device.amp", amp, "With privacy.dp write bf16 or off."
    return None


def trains_personal(training: TrainingParams, algorithm: AlgorithmParams) -> bool:
    """Whether a personal model trains beside the shared one."""
    kind = personal_of(algorithm)
    if kind in ("itself", "no"):
        return False
    if kind == "own" or training.personal is not None:
        return kind == "own" or training.personal == "always"
    return kind == "yes"


def personal_problem(
    training: TrainingParams, algorithm: AlgorithmParams
) -> tuple[str, str, object, str] | None:
    """What does not go with training.personal: (problem, key, value, remedy), or None."""
    kind, name, asked = personal_of(algorithm), algorithm.name, training.personal
    if kind == "no" and asked == "always":
        problem = f"{name} learns without labels: there is no training alone that could go beside it"
        return problem, "training.personal", asked, "Leave the key out, or write none."
    if kind == "own" and asked == "none":
        problem = f"{name} is FedAvg beside a personal model: without that one it is fedavg"
        return problem, "training.personal", asked, "Leave the key out, or use fedavg."
    if name == "gcml" and asked == "none":
        problem = "gcml is mutual learning of the shared and the personal model"
        return problem, "training.personal", asked, "Leave the key out, or use gossip_average."
    late = training.personal_from_round > 1
    if late and (kind == "own" or not trains_personal(training, algorithm)):
        problem = f"{name} trains its personal model from the first round"
        if kind != "own":
            problem = "no personal model trains here"
        return problem, "training.personal_from_round", training.personal_from_round, "Leave the key out."
    return None


def personal_network_problem(
    network: NetworkParams | None, training: TrainingParams, algorithm: AlgorithmParams
) -> Found | None:
    """What does not go with a network of the personal model's own (site.yaml), or None."""
    if network is None:
        return None
    key, kind, name = "personal_network.name", personal_of(algorithm), algorithm.name
    if kind == "itself":
        remedy = "Remove it, and write that network in peers.yaml: nothing is exchanged."
        return f"{name} trains one model, of the network of peers.yaml", key, network.name, remedy
    if kind == "own":
        problem = f"{name} holds the personal model's weights near the shared one's: both have one network"
        return problem, key, network.name, "Remove it, or agree on fedavg or gcml at all sites."
    if not trains_personal(training, algorithm):
        problem = f"no personal model trains here (algorithm {name}, training.personal {training.personal})"
        remedy = "Remove it." if kind == "no" else "Remove it, or write training.personal: always."
        return problem, key, network.name, remedy
    if getattr(algorithm, "contrast", "") == "features":
        problem = (
            f"{name} compares features of both models (algorithm.contrast), which have no common measure"
        )
        return problem, key, network.name, "Remove it, or agree on algorithm.contrast: logits at all sites."
    if training.personal_from_round > 1:
        problem = (
            f"training.personal_from_round is {training.personal_from_round}: the personal model would begin "
            "as a copy of the shared one, which has another network"
        )
        remedy = "Remove it, or leave training.personal_from_round out of this site's peers.yaml."
        return problem, key, network.name, remedy
    if network.name == ONE_SHOT_NETWORK:
        problem = f"{ONE_SHOT_NETWORK} gives features, and no segmentation"
        return problem, key, network.name, "Write another network, such as segresnet."
    return None


MAX_CLAIMED_COUNT = 10**12
"""Most steps or cases that a site passes on in its own name, whatever others claim: beyond 2^53 everybody
would refuse its messages."""

FINAL_SHARE = 0.01
"""The cosine ends at this share of the learning rate, and stays there."""


def cosine_rate(first: float, step: int, steps: int) -> float:
    """The rate of step `step` (0-based) of `steps`: from `first` down to FINAL_SHARE of it, and there after
    the last."""
    done = min(1.0, step / max(1, steps))
    return first * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


SplitName = Literal["training", "validation", "test"]

ONE_SHOT_ALGORITHM, ONE_SHOT_NETWORK = "fedcowpro", "cowpro_encoder"


def one_shot_problem(
    algorithm: str, network: str, task: TaskParams, training: TrainingParams
) -> tuple[str, str, object, str] | None:
    """What does not fit together about one-shot learning: (problem, key, value, remedy), or None."""
    if (algorithm == ONE_SHOT_ALGORITHM) != (network == ONE_SHOT_NETWORK):
        problem = (
            f"{ONE_SHOT_ALGORITHM} and the network {ONE_SHOT_NETWORK} go together, and with nothing else"
        )
        remedy = (
            f"Write network.name: {ONE_SHOT_NETWORK} and algorithm.name: {ONE_SHOT_ALGORITHM}, or neither."
        )
        return f"{problem} (algorithm.name is {algorithm})", "network.name", network, remedy
    if algorithm != ONE_SHOT_ALGORITHM:
        if task.slice_axis is not None:
            remedy = f"Remove it, or use algorithm.name: {ONE_SHOT_ALGORITHM}."
            return f"{algorithm} does not read slices", "task.slice_axis", task.slice_axis, remedy
        return None
    if task.spatial_dims != 2:
        remedy = "Write 2; for volumes give task.slice_axis, the axis they are sliced along."
        return f"{ONE_SHOT_ALGORITHM} works on slices", "task.spatial_dims", task.spatial_dims, remedy
    if training.output != "softmax":
        problem = f"{ONE_SHOT_ALGORITHM} tells one class from the rest by softmax"
        return problem, "training.output", training.output, "Write softmax."
    return None
