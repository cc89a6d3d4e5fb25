"""A coverage-guided fuzzer over what reads a peer's bytes: messages, stream pieces, safetensors headers.

Not a test: it runs for as long as one likes, and what it found becomes an example in test_fuzz or
test_safetensors. Needs the extra `fuzz`.

    pip install -e '.[fuzz]'
    python -m tests.attacks.coverage_guided -max_total_time=600 -timeout=10 -rss_limit_mb=1024 [CORPUS]

The first byte chooses the reader; an empty corpus is begun with one message of each kind. Refusals are what
shall come out; anything else is a crash.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gossipseg"]):
    from gossipseg.core import messages as ms
    from gossipseg.core import types as ts
    from gossipseg.errors import PeerRefused
    from gossipseg.store.tensors import BadSafetensors, read_safetensors_header
    from gossipseg.wire.codec import messages as codec

RPCS = sorted(codec.KINDS)
_FILE = Path(tempfile.mkdtemp()) / f"{os.getpid()}.safetensors"


def one_input(data: bytes) -> None:
    """One of the readers, on the rest of the bytes."""
    if not data:
        return
    choice, rest = data[0] % (len(RPCS) + 3), data[1:]
    try:
        if choice < len(RPCS):
            request = codec.decode_request(RPCS[choice], rest, "south")
            again = codec.decode_request(RPCS[choice], codec.encode_request(request), "south")
            assert again == request, "what is read is what is written"
        elif choice == len(RPCS):
            codec.decode_chunk(rest, "south")
        elif choice == len(RPCS) + 1:
            codec.decode_offset_request(rest, "south")
        else:
            _FILE.write_bytes(rest)
            read_safetensors_header(_FILE)
    except (PeerRefused, BadSafetensors):
        pass


def seeds() -> list[bytes]:
    """One input in order for each reader: protobuf's own parser is not instrumented, and finds no way in."""
    info = ts.PeerInfo(3, 30, 7, ts.Phase.TRAINING, "c" * 32)
    manifest = ts.Manifest(
        "d" * 64, "F16", "f", "c" * 32, "south", hash="a" * 64, size_bytes=9, signature="ab" * 70
    )
    model = ts.ModelRef("a" * 64, 9, 3, 30, 7, 0.5, manifest=manifest)
    records = (
        ts.AliveRecord("south", 1, 2, "a:1", 7, b"s"),
        ts.LeftRecord("west", 1, 2, b"s"),
        ts.SuspectRecord("west", 1, "south", b"s"),
    )
    proposal = ts.Proposal(1, 0, model, ("south", "west"), (("north", "late"),))
    run, sites = "b" * 32, "e" * 32
    swap = ts.ExchangeId("south", 7)
    terms = ts.SwapTerms(swap, "f", "c" * 32, "south", "north", 7, 9, 30, 3, signature="ab" * 70)
    bodies = [
        ms.Hello(1, 2, "f", (("a", "1"), ("b", '"x"')), info),
        ms.Ping(records, info),
        ms.IndirectPing("west", records),
        ms.Sync(records, info),
        ms.Offer(model),
        ms.Prepare(run, sites, 1, 0),
        ms.Fetch(run, sites, "update", 1, 0, "a" * 64),
        ms.Accept(run, sites, proposal),
        ms.Commit(run, sites, proposal),
        ms.SwapOffer(terms),
        ms.SwapSnapshot(terms.swap, model),
        ms.SwapReady(terms.swap),
        ms.SwapTold(terms.swap, "dropped", "too_old"),
    ]
    found = [bytes([RPCS.index(codec.kind_of(b).rpc)]) + codec.encode_request(b) for b in bodies]
    header = b'{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"__metadata__":{"a":"b"}}'
    found.append(bytes([len(RPCS)]) + codec.encode_header(codec.PushHeader(model, 0)))
    found.append(bytes([len(RPCS)]) + codec.encode_data(b"data"))
    found.append(bytes([len(RPCS) + 1]) + codec.encode_offset_request(model))
    found.append(bytes([len(RPCS) + 2]) + len(header).to_bytes(8, "little") + header + b"data")
    return found


if __name__ == "__main__":
    folders = [Path(a) for a in sys.argv[1:] if not a.startswith("-")]
    if folders and not any(folders[0].iterdir()):
        for number, seed in enumerate(seeds()):
            one_input(seed)
            (folders[0] / f"seed{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
