"""The committed stubs are what control.proto generates."""

from __future__ import annotations

import re
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
# The generator's own version is no part of the interface; the oldest runtime it needs is (pyproject).
_VERSION = re.compile(rb"(?m)^(# Protobuf Python Version: |GRPC_GENERATED_VERSION = ).*$|^    [\d'\"]+,?$")


def test_stubs_are_unchanged(tmp_path: Path) -> None:
    arguments = [
        "protoc",
        f"-I{ROOT / 'protos'}",
        f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
        *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")),
        str(ROOT / "protos/gossipseg/wire/control.proto"),
    ]
    assert protoc.main(arguments) == 0
    for name in ("control_pb2.py", "control_pb2.pyi", "control_pb2_grpc.py"):
        fresh = (tmp_path / "gossipseg/wire" / name).read_bytes()
        committed = (ROOT / "gossipseg/wire" / name).read_bytes()
        assert _VERSION.sub(b"", committed) == _VERSION.sub(b"", fresh), f"{name}: run `make protos`"
