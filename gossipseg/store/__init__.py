"""What a site keeps on disk: models by content, checkpoints, small state, events, locks.

What belongs here: files that outlive the process, each written so that a crash leaves the old or the new.
What must not: torch, asyncio, sockets, any decision about what to keep. All calls block: callers on an event
loop use threads.
"""

from gossipseg.store.atomic import atomic_write, sweep_temporaries
from gossipseg.store.checkpoints import Checkpoints
from gossipseg.store.eventlog import EventLog, read_events
from gossipseg.store.lock import DirectoryLock
from gossipseg.store.models import (
    BrokenModel,
    HashMismatch,
    IncompleteModel,
    ModelStore,
    OversizeModel,
    PartialBusy,
    PartialModel,
    StoredModel,
    hash_file,
)
from gossipseg.store.state import StateFile
from gossipseg.store.tensors import (
    NETWORK,
    SCALES,
    BadSafetensors,
    SafetensorsHeader,
    Schema,
    TensorInfo,
    by_addressee,
    is_scales,
    read_safetensors,
    read_safetensors_header,
    schema_difference,
)

__all__ = [
    "NETWORK",
    "SCALES",
    "BadSafetensors",
    "BrokenModel",
    "Checkpoints",
    "DirectoryLock",
    "EventLog",
    "HashMismatch",
    "IncompleteModel",
    "ModelStore",
    "OversizeModel",
    "PartialBusy",
    "PartialModel",
    "SafetensorsHeader",
    "Schema",
    "StateFile",
    "StoredModel",
    "TensorInfo",
    "atomic_write",
    "by_addressee",
    "hash_file",
    "is_scales",
    "read_events",
    "read_safetensors",
    "read_safetensors_header",
    "schema_difference",
    "sweep_temporaries",
]
