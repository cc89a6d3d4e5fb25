"""The range of every number: one for each field, and the check of all of them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from gossipseg.config.files import FederationFile, LogParams, MetricsParams, SiteFile
from gossipseg.config.reading import Source
from gossipseg.core.params import GossipParams, MembershipParams, QuarantineParams, RoundsParams
from gossipseg.learn.params import (
    AdmissionParams,
    DataParams,
    DeviceParams,
    DpParams,
    PrivacyParams,
    TaskParams,
    TrainingParams,
)
from gossipseg.wire.params import TransferParams, WireParams


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed values of a number; the bounds belong to it unless open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        parts = []
        if math.isfinite(self.low):
            parts.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if math.isfinite(self.high):
            parts.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " and ".join(parts) or "finite"


COUNT = Range(1)
NATURAL = Range(0)
POSITIVE = Range(0, low_open=True)
SHARE = Range(0, 1)
SHARE_BELOW_1 = Range(0, 1, high_open=True)
ANY = Range()

RANGES: dict[type, dict[str, Range]] = {
    MembershipParams: {
        "probe_interval_s": POSITIVE,
        "probe_timeout_s": POSITIVE,
        "indirect_checks": NATURAL,
        "suspicion_multiplier": COUNT,
        "push_pull_interval_s": POSITIVE,
        "dead_kept_s": NATURAL,
        "gossip_records_per_message": COUNT,
        "max_self_health": NATURAL,
    },
    GossipParams: {
        "sender_rate": SHARE,
        "warmup_rounds": NATURAL,
        "retries": NATURAL,
        "max_age_rounds": COUNT,
        "offer_timeout_s": POSITIVE,
        "transfer_timeout_s": POSITIVE,
        "max_parallel_transfers": COUNT,
    },
    RoundsParams: {
        "quorum": COUNT,
        "deadline_s": NATURAL,
        "patience_s": POSITIVE,
        "alone_after_s": POSITIVE,
        "poll_interval_s": POSITIVE,
        "request_timeout_s": POSITIVE,
        "transfer_timeout_s": POSITIVE,
        "max_parallel_transfers": COUNT,
    },
    QuarantineParams: {
        "offences": COUNT,
        "window_s": POSITIVE,
        "first_s": POSITIVE,
        "factor": COUNT,
        "max_s": POSITIVE,
        "decay_s": POSITIVE,
        "dice_run": COUNT,
    },
    TaskParams: {
        "channels": COUNT,
        "spatial_dims": Range(2, 3),
        "patch_size": COUNT,
        "spacing_mm": POSITIVE,
        "ct_window_hu": ANY,
        "slice_axis": Range(0, 2),
    },
    TrainingParams: {
        "rounds": COUNT,
        "steps_per_round": COUNT,
        "batch_size": COUNT,
        "learning_rate": POSITIVE,
        "weight_decay": NATURAL,
        "clip_grad_norm": POSITIVE,
        "schedule_rounds": COUNT,
        "decay_every_steps": COUNT,
        "decay_factor": Range(0, 1, low_open=True),
        "foreground_patches": SHARE,
        "ema_decay": SHARE_BELOW_1,
        "guard_drop": NATURAL,
        "window_overlap": SHARE_BELOW_1,
        "validate_every_rounds": COUNT,
    },
    DataParams: {
        "fold": NATURAL,
        "test_fraction": SHARE_BELOW_1,
        "validation_fraction": SHARE_BELOW_1,
        "ignore_label": ANY,
        "annotated_labels": COUNT,
    },
    DeviceParams: {"threads": COUNT, "stuck_after_s": POSITIVE},
    PrivacyParams: {"clip_norm": POSITIVE, "noise_multiplier": NATURAL, "seed": Range(0, 2**63 - 1)},
    DpParams: {
        "noise_multiplier": Range(0.1),
        "max_grad_norm": POSITIVE,
        "delta": Range(0, 1, low_open=True, high_open=True),
        "max_epsilon": POSITIVE,
    },
    AdmissionParams: {
        "factor": COUNT,
        "least_change": POSITIVE,
        "least_norm_ratio": COUNT,
        "least_likeness": Range(-1, 1),
        "without_history": COUNT,
        "history_min": COUNT,
        "history_kept": COUNT,
    },
    LogParams: {"file_max_bytes": Range(10_000), "file_count": COUNT},
    MetricsParams: {"port": Range(0, 65535)},
    WireParams: {"max_model_bytes": COUNT},
    TransferParams: {"max_bytes_per_s": Range(1000)},
    FederationFile: {"version": COUNT, "seed": Range(0, 2**32 - 1)},
    SiteFile: {
        "version": COUNT,
        "rounds": COUNT,
        "max_parallel_transfers": COUNT,
        "disk_reserve_bytes": NATURAL,
    },
}


def check_ranges(value: Any, source: Source, prefix: str = "") -> None:
    """Check every number of a dataclass and of those inside it. Raises ConfigError about the first
    outside."""
    rules = RANGES.get(type(value), {})
    for f in dataclasses.fields(value):
        item, key = getattr(value, f.name), prefix + f.name.removesuffix("_")
        if dataclasses.is_dataclass(item):
            check_ranges(item, source, f"{key}.")
        else:
            _check_number(item, rules.get(f.name, ANY), key, source)


def _check_number(value: Any, rule: Range, key: str, source: Source) -> None:
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        return  # not a number, or nothing
    given = source.given(key)
    if isinstance(given, bool):
        raise source.error("must be a number", key, given, "Write a number.")
    if not all(n in rule for n in numbers):
        shown = list(value) if isinstance(value, tuple) else value
        raise source.error(f"must be {rule}", key, shown, "Correct the number.")
