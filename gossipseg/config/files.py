"""The contents of peers.yaml (the federation, the same everywhere) and of site.yaml (one site's own)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from gossipseg.algos.params import AlgorithmParams, GcmlParams
from gossipseg.bounds import COUNT, NATURAL, Range
from gossipseg.core.params import (
    ExchangeAtParams,
    GossipParams,
    MembershipParams,
    QuarantineParams,
    RoundsParams,
    TrustParams,
)
from gossipseg.learn.params import (
    AdmissionParams,
    DataParams,
    DeviceParams,
    InferenceParams,
    PrivacyParams,
    TaskParams,
    TrainingParams,
)
from gossipseg.nets.params import NetworkParams
from gossipseg.wire.params import TransferParams, WireParams

_FORBID: dict[str, Any] = {"extra": "forbid"}
SITE_NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"
FEDERATION_NAME_PATTERN = r"^[^\s\p{C}](?:[^\p{C}]{0,61}[^\s\p{C}])?$"


@dataclass(frozen=True)
class ListedSite:
    """One entry of the list of sites: the only authority on who takes part."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    name: Annotated[str, Field(pattern=SITE_NAME_PATTERN)]
    """The site's name: a to z, 0 to 9, `-` and `_`, at most 63 characters."""
    address: str
    """host:port, or [IPv6]:port."""
    certificate: str | list[str] = ""
    """PEM text, or a file beside peers.yaml; one, or two during a rotation. After loading: PEM texts."""
    id: str | None = None
    """The site ID as its administrator read it out; checked against the certificate."""


@dataclass(frozen=True)
class FederationFile:
    """peers.yaml."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    federation: Annotated[str, Field(pattern=FEDERATION_NAME_PATTERN)]
    """The federation's name, 1 to 63 visible characters. Sites of other federations are ignored."""
    task: TaskParams
    version: Literal[1] = 1
    """Version of this file format."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """The first weights are drawn from this seed, so that all sites begin with the same model."""
    network: NetworkParams = field(default_factory=NetworkParams)
    algorithm: AlgorithmParams = field(default_factory=GcmlParams)
    """The algorithm by its name, and its own settings."""
    training: TrainingParams = field(default_factory=TrainingParams)
    exchange_at: ExchangeAtParams = field(default_factory=ExchangeAtParams)
    gossip: GossipParams = field(default_factory=GossipParams)
    rounds: RoundsParams = field(default_factory=RoundsParams)
    membership: MembershipParams = field(default_factory=MembershipParams)
    trust: TrustParams = field(default_factory=TrustParams)
    wire: WireParams = field(default_factory=WireParams)
    sites: list[ListedSite] = field(default_factory=list)
    """The sites that take part; nobody else does."""


@dataclass(frozen=True)
class IdentityPaths:
    """This site's key (0600) and certificate."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    key: str = "identity/key.pem"
    """The private key (PEM), readable by its owner alone."""
    certificate: str = "identity/cert.pem"
    """The certificate of that key (PEM)."""


@dataclass(frozen=True)
class DiscoveryParams:
    """How other sites' addresses are found. Neither source grants trust."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    static: bool = True
    """Dial the addresses listed in peers.yaml."""
    mdns: bool = False
    """Announce this site on the local link and look for listed sites there."""
    interfaces: list[str] = field(default_factory=list)
    """IP addresses of the interfaces for mDNS; empty: all."""


@dataclass(frozen=True)
class LogParams:
    """What the daemon writes to its standard error, and, where one is named, to a file."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    format: Literal["text", "json"] = "text"
    """Lines for people, or a JSON object a line."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is written."""
    file: str | None = None
    """A file that receives the same lines; FILE.1 is the one before, and so on."""
    file_max_bytes: Annotated[int, Range(10000)] = 10 << 20
    """At this size the file is started anew."""
    file_count: Annotated[int, COUNT] = 5
    """Files kept, with the current one."""


@dataclass(frozen=True)
class MetricsParams:
    """The Prometheus endpoint, on loopback: it has no password, and names sites and rounds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    port: Annotated[int | None, Range(0, 65535)] = None
    """None: off; 0: any free port, named in the log."""
    host: str = "127.0.0.1"
    """A loopback address."""


@dataclass(frozen=True)
class SiteFile:
    """site.yaml."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _FORBID

    site: Annotated[str, Field(pattern=SITE_NAME_PATTERN)]
    """Which site of peers.yaml this one is."""
    data: DataParams
    version: Literal[1] = 1
    """Version of this file format."""
    peers: str = "peers.yaml"
    """The federation file."""
    state_dir: str = "state"
    """Folder for checkpoints, models, logs and state."""
    identity: IdentityPaths = field(default_factory=IdentityPaths)
    listen: str = "0.0.0.0:7443"
    """host:port; [::]:7443 listens on IPv6 and IPv4."""
    advertise: str | None = None
    """host:port that other sites shall dial, where it differs from the listed address."""
    control_socket: str | None = None
    """Unix socket of gossipctl; None: control.sock in state_dir."""
    device: DeviceParams = field(default_factory=DeviceParams)
    admission: AdmissionParams = field(default_factory=AdmissionParams)
    privacy: PrivacyParams = field(default_factory=PrivacyParams)
    personal_network: NetworkParams | None = None
    """A network of its own for this site's personal model, with its own first weights; the shared model keeps
    that of peers.yaml. No part of the contract. None: the shared model's."""
    inference: InferenceParams = field(default_factory=InferenceParams)
    quarantine: QuarantineParams = field(default_factory=QuarantineParams)
    rounds: Annotated[int | None, COUNT] = None
    """This site's own budget of rounds, which may end before the federation's (training.rounds).

    None: the federation's budget counts; if there is none, the site trains for as long as the daemon runs.
    """
    report_test: bool = False
    """Evaluate the test split before the first and after the last round (used by the testbed)."""
    max_parallel_transfers: Annotated[int, COUNT] = 2
    """Outgoing models, and incoming models, at one time."""
    transfers: TransferParams = field(default_factory=TransferParams)
    disk_reserve_bytes: Annotated[int, NATURAL] = 256 << 20
    """Incoming models are refused when less than this would stay free."""
    discovery: DiscoveryParams = field(default_factory=DiscoveryParams)
    log: LogParams = field(default_factory=LogParams)
    metrics: MetricsParams = field(default_factory=MetricsParams)
    tensorboard: bool = False
    """The worker writes TensorBoard scalars to state_dir/tensorboard; needs the extra `tensorboard`."""
    insecure: bool = False
    """Plaintext, without identities: for experiments on loopback addresses only."""


@dataclass(frozen=True)
class Config:
    """Both files, checked against each other; all paths absolute."""

    federation: FederationFile
    site: SiteFile
    federation_path: Path
    site_path: Path

    @property
    def me(self) -> ListedSite:
        """This site's own entry in the list."""
        return next(s for s in self.federation.sites if s.name == self.site.site)

    @property
    def others(self) -> list[ListedSite]:
        """Every other site in the list."""
        return [s for s in self.federation.sites if s.name != self.site.site]

    @property
    def rounds(self) -> int | None:
        """The budget in force here; None: no end. It is in own rounds, for a site there from the first."""
        set_here = [n for n in (self.site.rounds, self.federation.training.rounds) if n is not None]
        return min(set_here, default=None)

    @property
    def control_socket(self) -> Path:
        """The unix socket on which the daemon answers gossipctl."""
        return Path(self.site.control_socket or str(Path(self.site.state_dir) / "control.sock"))
