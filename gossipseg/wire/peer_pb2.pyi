from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_STARTING: _ClassVar[Phase]
    PHASE_TRAINING: _ClassVar[Phase]
    PHASE_PAUSED: _ClassVar[Phase]
    PHASE_FAILED: _ClassVar[Phase]
    PHASE_FINISHED: _ClassVar[Phase]
    PHASE_LEAVING: _ClassVar[Phase]
    PHASE_ENDING: _ClassVar[Phase]

class ModelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_KIND_UNSPECIFIED: _ClassVar[ModelKind]
    MODEL_KIND_MODEL: _ClassVar[ModelKind]
    MODEL_KIND_UPDATE: _ClassVar[ModelKind]
    MODEL_KIND_GLOBAL: _ClassVar[ModelKind]
    MODEL_KIND_PERSONAL: _ClassVar[ModelKind]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    VERDICT_ACCEPT: _ClassVar[Verdict]
    VERDICT_BUSY: _ClassVar[Verdict]
    VERDICT_REJECT: _ClassVar[Verdict]

class StoreVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORE_VERDICT_UNSPECIFIED: _ClassVar[StoreVerdict]
    STORE_VERDICT_STORED: _ClassVar[StoreVerdict]
    STORE_VERDICT_MISSING: _ClassVar[StoreVerdict]
    STORE_VERDICT_REJECT: _ClassVar[StoreVerdict]

class SnapshotVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_VERDICT_UNSPECIFIED: _ClassVar[SnapshotVerdict]
    SNAPSHOT_VERDICT_ACCEPT: _ClassVar[SnapshotVerdict]
    SNAPSHOT_VERDICT_HERE: _ClassVar[SnapshotVerdict]
    SNAPSHOT_VERDICT_WAIT: _ClassVar[SnapshotVerdict]
    SNAPSHOT_VERDICT_REJECT: _ClassVar[SnapshotVerdict]

class SwapStanding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SWAP_STANDING_UNSPECIFIED: _ClassVar[SwapStanding]
    SWAP_STANDING_OPEN: _ClassVar[SwapStanding]
    SWAP_STANDING_COMMITTED: _ClassVar[SwapStanding]
    SWAP_STANDING_DROPPED: _ClassVar[SwapStanding]

class ReachOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REACH_OUTCOME_UNSPECIFIED: _ClassVar[ReachOutcome]
    REACH_OUTCOME_OK: _ClassVar[ReachOutcome]
    REACH_OUTCOME_NO_ADDRESS: _ClassVar[ReachOutcome]
    REACH_OUTCOME_DNS: _ClassVar[ReachOutcome]
    REACH_OUTCOME_REFUSED: _ClassVar[ReachOutcome]
    REACH_OUTCOME_TIMEOUT: _ClassVar[ReachOutcome]
    REACH_OUTCOME_NO_ROUTE: _ClassVar[ReachOutcome]
    REACH_OUTCOME_MUTE: _ClassVar[ReachOutcome]
    REACH_OUTCOME_TLS: _ClassVar[ReachOutcome]
    REACH_OUTCOME_UNTRUSTED: _ClassVar[ReachOutcome]
    REACH_OUTCOME_NOT_ACCEPTED: _ClassVar[ReachOutcome]
    REACH_OUTCOME_STALLED: _ClassVar[ReachOutcome]
    REACH_OUTCOME_NO_ECHO: _ClassVar[ReachOutcome]
    REACH_OUTCOME_FAILED: _ClassVar[ReachOutcome]
PHASE_UNSPECIFIED: Phase
PHASE_STARTING: Phase
PHASE_TRAINING: Phase
PHASE_PAUSED: Phase
PHASE_FAILED: Phase
PHASE_FINISHED: Phase
PHASE_LEAVING: Phase
PHASE_ENDING: Phase
MODEL_KIND_UNSPECIFIED: ModelKind
MODEL_KIND_MODEL: ModelKind
MODEL_KIND_UPDATE: ModelKind
MODEL_KIND_GLOBAL: ModelKind
MODEL_KIND_PERSONAL: ModelKind
VERDICT_UNSPECIFIED: Verdict
VERDICT_ACCEPT: Verdict
VERDICT_BUSY: Verdict
VERDICT_REJECT: Verdict
STORE_VERDICT_UNSPECIFIED: StoreVerdict
STORE_VERDICT_STORED: StoreVerdict
STORE_VERDICT_MISSING: StoreVerdict
STORE_VERDICT_REJECT: StoreVerdict
SNAPSHOT_VERDICT_UNSPECIFIED: SnapshotVerdict
SNAPSHOT_VERDICT_ACCEPT: SnapshotVerdict
SNAPSHOT_VERDICT_HERE: SnapshotVerdict
SNAPSHOT_VERDICT_WAIT: SnapshotVerdict
SNAPSHOT_VERDICT_REJECT: SnapshotVerdict
SWAP_STANDING_UNSPECIFIED: SwapStanding
SWAP_STANDING_OPEN: SwapStanding
SWAP_STANDING_COMMITTED: SwapStanding
SWAP_STANDING_DROPPED: SwapStanding
REACH_OUTCOME_UNSPECIFIED: ReachOutcome
REACH_OUTCOME_OK: ReachOutcome
REACH_OUTCOME_NO_ADDRESS: ReachOutcome
REACH_OUTCOME_DNS: ReachOutcome
REACH_OUTCOME_REFUSED: ReachOutcome
REACH_OUTCOME_TIMEOUT: ReachOutcome
REACH_OUTCOME_NO_ROUTE: ReachOutcome
REACH_OUTCOME_MUTE: ReachOutcome
REACH_OUTCOME_TLS: ReachOutcome
REACH_OUTCOME_UNTRUSTED: ReachOutcome
REACH_OUTCOME_NOT_ACCEPTED: ReachOutcome
REACH_OUTCOME_STALLED: ReachOutcome
REACH_OUTCOME_NO_ECHO: ReachOutcome
REACH_OUTCOME_FAILED: ReachOutcome

class PeerInfo(_message.Message):
    __slots__ = ("round", "steps", "cases", "phase", "contract", "committed", "listed")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    round: int
    steps: int
    cases: int
    phase: Phase
    contract: str
    committed: int
    listed: str
    def __init__(self, round: _Optional[int] = ..., steps: _Optional[int] = ..., cases: _Optional[int] = ..., phase: _Optional[_Union[Phase, str]] = ..., contract: _Optional[str] = ..., committed: _Optional[int] = ..., listed: _Optional[str] = ...) -> None: ...

class AliveRecord(_message.Message):
    __slots__ = ("site", "nonce", "incarnation", "address", "cases", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    nonce: int
    incarnation: int
    address: str
    cases: int
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., nonce: _Optional[int] = ..., incarnation: _Optional[int] = ..., address: _Optional[str] = ..., cases: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class LeftRecord(_message.Message):
    __slots__ = ("site", "nonce", "incarnation", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    nonce: int
    incarnation: int
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., nonce: _Optional[int] = ..., incarnation: _Optional[int] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SuspectRecord(_message.Message):
    __slots__ = ("site", "incarnation", "accuser", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ACCUSER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    incarnation: int
    accuser: str
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., incarnation: _Optional[int] = ..., accuser: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("alive", "left", "suspect")
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    SUSPECT_FIELD_NUMBER: _ClassVar[int]
    alive: AliveRecord
    left: LeftRecord
    suspect: SuspectRecord
    def __init__(self, alive: _Optional[_Union[AliveRecord, _Mapping]] = ..., left: _Optional[_Union[LeftRecord, _Mapping]] = ..., suspect: _Optional[_Union[SuspectRecord, _Mapping]] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("schema", "dtype", "federation", "contract", "maker", "kind", "run", "round", "attempt", "sequence", "hash", "size_bytes", "steps", "cases", "dice_val", "signature")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    MAKER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    DICE_VAL_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    schema: str
    dtype: str
    federation: str
    contract: str
    maker: str
    kind: ModelKind
    run: str
    round: int
    attempt: int
    sequence: int
    hash: str
    size_bytes: int
    steps: int
    cases: int
    dice_val: float
    signature: bytes
    def __init__(self, schema: _Optional[str] = ..., dtype: _Optional[str] = ..., federation: _Optional[str] = ..., contract: _Optional[str] = ..., maker: _Optional[str] = ..., kind: _Optional[_Union[ModelKind, str]] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., sequence: _Optional[int] = ..., hash: _Optional[str] = ..., size_bytes: _Optional[int] = ..., steps: _Optional[int] = ..., cases: _Optional[int] = ..., dice_val: _Optional[float] = ..., signature: _Optional[bytes] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("hash", "size_bytes", "round", "steps", "cases", "dice_val", "kind", "manifest")
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    CASES_FIELD_NUMBER: _ClassVar[int]
    DICE_VAL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    hash: str
    size_bytes: int
    round: int
    steps: int
    cases: int
    dice_val: float
    kind: ModelKind
    manifest: Manifest
    def __init__(self, hash: _Optional[str] = ..., size_bytes: _Optional[int] = ..., round: _Optional[int] = ..., steps: _Optional[int] = ..., cases: _Optional[int] = ..., dice_val: _Optional[float] = ..., kind: _Optional[_Union[ModelKind, str]] = ..., manifest: _Optional[_Union[Manifest, _Mapping]] = ...) -> None: ...

class ContractEntry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class HelloRequest(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "federation", "contract", "info")
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    federation: str
    contract: _containers.RepeatedCompositeFieldContainer[ContractEntry]
    info: PeerInfo
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., federation: _Optional[str] = ..., contract: _Optional[_Iterable[_Union[ContractEntry, _Mapping]]] = ..., info: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("protocol_min", "protocol_max", "federation", "contract", "info")
    PROTOCOL_MIN_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_MAX_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    protocol_min: int
    protocol_max: int
    federation: str
    contract: _containers.RepeatedCompositeFieldContainer[ContractEntry]
    info: PeerInfo
    def __init__(self, protocol_min: _Optional[int] = ..., protocol_max: _Optional[int] = ..., federation: _Optional[str] = ..., contract: _Optional[_Iterable[_Union[ContractEntry, _Mapping]]] = ..., info: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...

class PingRequest(_message.Message):
    __slots__ = ("records", "info")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    info: PeerInfo
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., info: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...

class PingResponse(_message.Message):
    __slots__ = ("records", "info")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    info: PeerInfo
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., info: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...

class IndirectPingRequest(_message.Message):
    __slots__ = ("target", "records")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    target: str
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, target: _Optional[str] = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class IndirectPingResponse(_message.Message):
    __slots__ = ("target", "reached", "records")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    target: str
    reached: bool
    records: _containers.RepeatedCompositeFieldContainer[Record]
    def __init__(self, target: _Optional[str] = ..., reached: bool = ..., records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ...) -> None: ...

class SyncRequest(_message.Message):
    __slots__ = ("records", "info")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    info: PeerInfo
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., info: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...

class SyncResponse(_message.Message):
    __slots__ = ("records", "info")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    INFO_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Record]
    info: PeerInfo
    def __init__(self, records: _Optional[_Iterable[_Union[Record, _Mapping]]] = ..., info: _Optional[_Union[PeerInfo, _Mapping]] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class OfferResponse(_message.Message):
    __slots__ = ("verdict", "reason")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    reason: str
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class PushOffsetRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class PushOffsetResponse(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class PushHeader(_message.Message):
    __slots__ = ("model", "offset")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    offset: int
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., offset: _Optional[int] = ...) -> None: ...

class PushChunk(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: PushHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[PushHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Absence(_message.Message):
    __slots__ = ("site", "reason")
    SITE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    site: str
    reason: str
    def __init__(self, site: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("round", "attempt", "model", "contributors", "absent")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTORS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    round: int
    attempt: int
    model: ModelRef
    contributors: _containers.RepeatedScalarFieldContainer[str]
    absent: _containers.RepeatedCompositeFieldContainer[Absence]
    def __init__(self, round: _Optional[int] = ..., attempt: _Optional[int] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., contributors: _Optional[_Iterable[str]] = ..., absent: _Optional[_Iterable[_Union[Absence, _Mapping]]] = ...) -> None: ...

class Tally(_message.Message):
    __slots__ = ("deadline_ms", "delivered", "left_out")
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    deadline_ms: int
    delivered: _containers.RepeatedScalarFieldContainer[str]
    left_out: _containers.RepeatedCompositeFieldContainer[Absence]
    def __init__(self, deadline_ms: _Optional[int] = ..., delivered: _Optional[_Iterable[str]] = ..., left_out: _Optional[_Iterable[_Union[Absence, _Mapping]]] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("run", "sites", "round", "attempt", "tally")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    TALLY_FIELD_NUMBER: _ClassVar[int]
    run: str
    sites: str
    round: int
    attempt: int
    tally: Tally
    def __init__(self, run: _Optional[str] = ..., sites: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., tally: _Optional[_Union[Tally, _Mapping]] = ...) -> None: ...

class PrepareResponse(_message.Message):
    __slots__ = ("promise", "promised", "reason", "accepted", "committed", "update", "waiting_for")
    PROMISE_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    WAITING_FOR_FIELD_NUMBER: _ClassVar[int]
    promise: bool
    promised: int
    reason: str
    accepted: Proposal
    committed: Proposal
    update: ModelRef
    waiting_for: str
    def __init__(self, promise: bool = ..., promised: _Optional[int] = ..., reason: _Optional[str] = ..., accepted: _Optional[_Union[Proposal, _Mapping]] = ..., committed: _Optional[_Union[Proposal, _Mapping]] = ..., update: _Optional[_Union[ModelRef, _Mapping]] = ..., waiting_for: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("run", "sites", "kind", "round", "attempt", "hash")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    run: str
    sites: str
    kind: ModelKind
    round: int
    attempt: int
    hash: str
    def __init__(self, run: _Optional[str] = ..., sites: _Optional[str] = ..., kind: _Optional[_Union[ModelKind, str]] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ..., hash: _Optional[str] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("verdict", "reason", "model", "proposal")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    reason: str
    model: ModelRef
    proposal: Proposal
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., proposal: _Optional[_Union[Proposal, _Mapping]] = ...) -> None: ...

class AcceptRequest(_message.Message):
    __slots__ = ("run", "sites", "proposal")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    run: str
    sites: str
    proposal: Proposal
    def __init__(self, run: _Optional[str] = ..., sites: _Optional[str] = ..., proposal: _Optional[_Union[Proposal, _Mapping]] = ...) -> None: ...

class AcceptResponse(_message.Message):
    __slots__ = ("verdict", "reason", "promised", "committed")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    verdict: StoreVerdict
    reason: str
    promised: int
    committed: Proposal
    def __init__(self, verdict: _Optional[_Union[StoreVerdict, str]] = ..., reason: _Optional[str] = ..., promised: _Optional[int] = ..., committed: _Optional[_Union[Proposal, _Mapping]] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("run", "sites", "proposal")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    run: str
    sites: str
    proposal: Proposal
    def __init__(self, run: _Optional[str] = ..., sites: _Optional[str] = ..., proposal: _Optional[_Union[Proposal, _Mapping]] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("known", "reason")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    known: bool
    reason: str
    def __init__(self, known: bool = ..., reason: _Optional[str] = ...) -> None: ...

class ExchangeId(_message.Message):
    __slots__ = ("asker", "number")
    ASKER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    asker: str
    number: int
    def __init__(self, asker: _Optional[str] = ..., number: _Optional[int] = ...) -> None: ...

class SwapTerms(_message.Message):
    __slots__ = ("swap", "federation", "contract", "maker", "partner", "own_cases", "partner_cases", "steps", "round", "behind", "one_way", "position", "stage", "living", "signature")
    SWAP_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    MAKER_FIELD_NUMBER: _ClassVar[int]
    PARTNER_FIELD_NUMBER: _ClassVar[int]
    OWN_CASES_FIELD_NUMBER: _ClassVar[int]
    PARTNER_CASES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    ONE_WAY_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    LIVING_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    swap: ExchangeId
    federation: str
    contract: str
    maker: str
    partner: str
    own_cases: int
    partner_cases: int
    steps: int
    round: int
    behind: bool
    one_way: bool
    position: int
    stage: int
    living: str
    signature: bytes
    def __init__(self, swap: _Optional[_Union[ExchangeId, _Mapping]] = ..., federation: _Optional[str] = ..., contract: _Optional[str] = ..., maker: _Optional[str] = ..., partner: _Optional[str] = ..., own_cases: _Optional[int] = ..., partner_cases: _Optional[int] = ..., steps: _Optional[int] = ..., round: _Optional[int] = ..., behind: bool = ..., one_way: bool = ..., position: _Optional[int] = ..., stage: _Optional[int] = ..., living: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class SwapOfferRequest(_message.Message):
    __slots__ = ("terms",)
    TERMS_FIELD_NUMBER: _ClassVar[int]
    terms: SwapTerms
    def __init__(self, terms: _Optional[_Union[SwapTerms, _Mapping]] = ...) -> None: ...

class SwapOfferResponse(_message.Message):
    __slots__ = ("verdict", "reason", "terms")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    reason: str
    terms: SwapTerms
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ..., terms: _Optional[_Union[SwapTerms, _Mapping]] = ...) -> None: ...

class SwapSnapshotRequest(_message.Message):
    __slots__ = ("swap", "model")
    SWAP_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    swap: ExchangeId
    model: ModelRef
    def __init__(self, swap: _Optional[_Union[ExchangeId, _Mapping]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ...) -> None: ...

class SwapSnapshotResponse(_message.Message):
    __slots__ = ("verdict", "reason")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    verdict: SnapshotVerdict
    reason: str
    def __init__(self, verdict: _Optional[_Union[SnapshotVerdict, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class SwapReadyRequest(_message.Message):
    __slots__ = ("swap",)
    SWAP_FIELD_NUMBER: _ClassVar[int]
    swap: ExchangeId
    def __init__(self, swap: _Optional[_Union[ExchangeId, _Mapping]] = ...) -> None: ...

class SwapToldRequest(_message.Message):
    __slots__ = ("swap", "standing", "reason")
    SWAP_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    swap: ExchangeId
    standing: SwapStanding
    reason: str
    def __init__(self, swap: _Optional[_Union[ExchangeId, _Mapping]] = ..., standing: _Optional[_Union[SwapStanding, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class SwapStateResponse(_message.Message):
    __slots__ = ("standing", "reason")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    standing: SwapStanding
    reason: str
    def __init__(self, standing: _Optional[_Union[SwapStanding, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ReachRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReachResponse(_message.Message):
    __slots__ = ("outcome", "address", "detail", "works_at")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    WORKS_AT_FIELD_NUMBER: _ClassVar[int]
    outcome: ReachOutcome
    address: str
    detail: str
    works_at: str
    def __init__(self, outcome: _Optional[_Union[ReachOutcome, str]] = ..., address: _Optional[str] = ..., detail: _Optional[str] = ..., works_at: _Optional[str] = ...) -> None: ...

class EchoRequest(_message.Message):
    __slots__ = ("padding", "reply_bytes")
    PADDING_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    padding: bytes
    reply_bytes: int
    def __init__(self, padding: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ...) -> None: ...

class EchoResponse(_message.Message):
    __slots__ = ("padding",)
    PADDING_FIELD_NUMBER: _ClassVar[int]
    padding: bytes
    def __init__(self, padding: _Optional[bytes] = ...) -> None: ...
