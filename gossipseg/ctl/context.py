"""The parts that every command shares: options, the choice of the site, the connection to its daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gossipseg.errors import ConfigError, DaemonUnreachable
from gossipseg.homes import absolute, expanded

if TYPE_CHECKING:
    from gossipseg.config import Config
    from gossipseg.wire.control import ControlClient

SYSTEM_SITE_FILE = Path("/etc/gossipseg/site.yaml")
CONFIG_VARIABLE = "GOSSIPSEG_CONFIG"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="site.yaml of this site. Default: $GOSSIPSEG_CONFIG, ./site.yaml, /etc/gossipseg/site.yaml.",
        show_default=False,
    ),
]
SocketOption = Annotated[
    Path | None,
    typer.Option("--socket", help="The daemon's control socket, instead of --config.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print a JSON document (schema 1).")]
LimitOption = Annotated[int, typer.Option("-n", "--limit", min=1, help="Largest number of rows.")]


def find_site_file(given: Path | None) -> Path:
    """Find the intended site.yaml. Raises ConfigError when there is none."""
    if given is not None:
        return given
    if variable := os.environ.get(CONFIG_VARIABLE):
        return Path(variable)
    looked = [f"${CONFIG_VARIABLE} (not set)"]
    for path in (Path("site.yaml"), SYSTEM_SITE_FILE):
        try:
            path.stat()
        except OSError as e:
            why = "" if isinstance(e, FileNotFoundError | NotADirectoryError) else f" ({e.strerror})"
            looked.append(f"{_shown(path)}{why}")
        else:
            return path
    hidden = any(word.endswith(")") for word in looked[1:])
    raise ConfigError(
        f"there is no site.yaml: looked at {looked[0]}, {looked[1]} and {looked[2]}"
        if not hidden
        else f"no site.yaml can be found: looked at {looked[0]}, {looked[1]} and {looked[2]}",
        remedy="Give its path with --config, or call this as root or as the daemon's user."
        if hidden
        else "Give its path with --config, or make one with `gossipctl init --name NAME`.",
    )


def _shown(path: Path) -> str:
    try:
        return str(path.absolute())
    except OSError:
        return f"{path} in a directory that was removed"


def find_socket(config: Path | None, socket: Path | None) -> Path:
    """Find the control socket of the intended site. Raises ConfigError."""
    if socket is not None:
        return socket
    site_file = find_site_file(config)
    raw = _glance(site_file)
    base = absolute(site_file).parent
    if given := os.environ.get("GOSSIPSEG_CONTROL_SOCKET") or raw.get("control_socket"):
        return base / expanded(given, "control_socket", site_file)
    return _state_dir(raw, base) / "control.sock"


def find_state_dir(config: Path | None) -> Path:
    """Find the state directory of the intended site. Raises ConfigError."""
    site_file = find_site_file(config)
    return _state_dir(_glance(site_file), absolute(site_file).parent)


def _state_dir(raw: dict[str, Any], base: Path) -> Path:
    state_dir = os.environ.get("GOSSIPSEG_STATE_DIR") or raw.get("state_dir") or "state"
    return base / expanded(state_dir, "state_dir")


def _glance(site_file: Path) -> dict[str, Any]:
    """The text keys of site.yaml, unchecked: a running daemon is shown whatever the file says now."""
    import yaml

    from gossipseg.yamlbounds import check_bounds, read_bounded

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        data = read_bounded(site_file)
        check_bounds(data.decode("utf-8-sig"))
        raw = yaml.load(data, loader)
    except (OSError, ValueError, yaml.YAMLError):
        raw = None
    if not isinstance(raw, dict):
        return _complain(site_file)
    return {k: v for k, v in raw.items() if isinstance(v, str)}


def _complain(site_file: Path) -> dict[str, Any]:
    """Let the configuration reader report what is wrong with an unreadable file."""
    from gossipseg.config.reading import read_mapping

    return read_mapping(site_file)


@contextmanager
def daemon(config: Path | None, socket: Path | None) -> Iterator[ControlClient]:
    """The daemon of the intended site. Raises ConfigError, DaemonUnreachable."""
    path = find_socket(config, socket)
    from gossipseg.wire.control import ControlClient  # grpc: only for commands that ask the daemon

    try:
        with ControlClient(path) as client:
            yield client
    except DaemonUnreachable as e:
        if socket is not None:
            raise
        from gossipseg.ctl.doctor.whereabouts import whereabouts

        found = whereabouts(find_state_dir(config), path, find_site_file(config))
        if found.state == "none":
            raise
        raise DaemonUnreachable(f"{path}: {found.text}. {found.remedy}") from e


def load_config(config: Path | None) -> Config:
    """Both files of the intended site, read and checked in full. Raises ConfigError."""
    path = find_site_file(config)
    from gossipseg import config as configuration

    return configuration.load(path)
