"""The attacker's side: a process to attack, raw gRPC and TLS as any listed peer, or stranger, could speak.

What belongs here: starting the victim, asking it how it is, channels with a listed site's key. What must
not: our own transport, whose good manners are not to be relied on.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from gossipseg import config as configuration
from gossipseg import trust
from gossipseg.core.messages import Hello, Offer, OfferReply, Ping
from gossipseg.core.types import ModelRef, PeerInfo, Phase, fingerprint
from gossipseg.wire.codec import messages as codec
from gossipseg.wire.params import PROTOCOL_MAX, PROTOCOL_MIN
from tests.daemon.harness import files_only

PING = codec.encode_request(Ping((), PeerInfo(1, 1, 1, Phase.TRAINING, "")))
REFUSALS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.PERMISSION_DENIED,
}
"""What a daemon in good health says to nonsense."""
MIB = 1 << 20
BOUND_BYTES = 300 * MIB
"""More memory than this in use, and it is not bounded."""


@dataclass
class Attack:
    """A running victim called north."""

    process: subprocess.Popen[str]
    address: str
    identities: dict[str, trust.Identity]
    log: Path
    federation: configuration.FederationFile
    channels: list[grpc.Channel] = field(default_factory=list)

    def about(self) -> dict[str, Any]:
        """What the victim says of itself; fails when it does not answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], 30.0)
        assert ready, f"the daemon does not answer\n{self.log.read_text()[-2000:]}"
        line = self.process.stdout.readline()
        assert line, f"the daemon has ended\n{self.log.read_text()[-2000:]}"
        return json.loads(line)

    def channel(self, site: str, *, fresh: bool = False, **options: Any) -> grpc.Channel:
        """A channel with a listed site's key."""
        identity = self.identities[site]
        north = self.identities["north"].certificate_pem
        credentials = grpc.ssl_channel_credentials(north, identity.key_pem, identity.certificate_pem)
        settings = [("grpc.ssl_target_name_override", "north"), ("grpc.use_local_subchannel_pool", 1)]
        settings += [("grpc.enable_retries", 0), *options.items()]
        made = grpc.secure_channel(self.address, credentials, settings)
        self.channels.append(made)
        return made

    def serves(self, site: str = "west", timeout_s: float = 10.0) -> float:
        """Seconds that an honest peer's ping took."""
        begun = time.monotonic()
        with self.channel(site) as channel:
            channel.unary_unary("/gossipseg.wire.Peer/Ping")(PING, timeout=timeout_s)
        return time.monotonic() - begun

    def promised(self, channel: grpc.Channel, model: ModelRef) -> bool:
        """Whether the victim takes an offer of this model, after a Hello in order."""
        info = PeerInfo(5, 50, 10, Phase.TRAINING, fingerprint(self._contract))
        hello = Hello(PROTOCOL_MIN, PROTOCOL_MAX, self.federation.federation, self._contract, info)
        for body in (hello, Ping((), info)):
            rpc = codec.kind_of(body).rpc
            channel.unary_unary(f"/gossipseg.wire.Peer/{rpc}")(codec.encode_request(body), timeout=10.0)
        answer = channel.unary_unary("/gossipseg.wire.Peer/Offer")(
            codec.encode_request(Offer(model)), timeout=10.0
        )
        reply = codec.decode_reply(Offer(model), answer, "north")
        return isinstance(reply, OfferReply) and reply.verdict == "accept"

    @property
    def _contract(self) -> tuple[tuple[str, str], ...]:
        return configuration.contract(self.federation, "signature")

    def errors(self) -> list[str]:
        """Lines of its log that no attack may bring about."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if "Traceback" in line or "internal" in line.lower()]


def call(channel: grpc.Channel, rpc: str, data: bytes, timeout_s: float = 20.0, **kw: Any) -> grpc.StatusCode:
    """The status that a unary call ends with."""
    try:
        channel.unary_unary(f"/gossipseg.wire.Peer/{rpc}")(data, timeout=timeout_s, **kw)
    except grpc.RpcError as e:
        return e.code()
    return grpc.StatusCode.OK


@contextmanager
def attack(folder: Path, **limits: float) -> Iterator[Attack]:
    """Start the victim; at the end it is stopped by its id."""
    with files_only(folder, "north", "south", "west") as f:
        f.edit(lambda doc: doc.update(trust={"require_manifests": False}))  # tests/core shows those
        f.edit(lambda doc: doc["gossip"].update(offer_timeout_s=0.5))
        identities = {
            name: trust.Identity.load(*(s.folder / "identity" / n for n in ("key.pem", "cert.pem")))
            for name, s in f.sites.items()
        }
        env = {**os.environ, "VICTIM_LIMITS": json.dumps(limits), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.attacks.victim", str(f["north"].config)]
        log = folder / "victim.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env
            )
        try:
            assert process.stdout is not None
            word = process.stdout.readline().split()
            assert word[:1] == ["listening"], log.read_text()
            federation = configuration.load_federation(f.peers_file)
            made = Attack(process, word[1], identities, log, federation)
            yield made
            for channel in made.channels:
                channel.close()
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
