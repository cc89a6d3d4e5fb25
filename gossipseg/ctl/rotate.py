"""`gossipctl rotate`: another key for this site, without a restart; peers know it at every moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_FAILED, EXIT_OK, ConfigError, DaemonUnreachable, GossipsegError, LocalError

if TYPE_CHECKING:
    from gossipseg.config import Config
    from gossipseg.trust import Identity

_LOOKS_AT_ONCE = 16


def register(app: typer.Typer) -> None:
    app.command("rotate")(rotate)


def rotate(
    finish: Annotated[
        bool, typer.Option("--finish", help="Put the next key in use, once every site accepts it.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --finish: even if some site does not accept it yet.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, help="How long the next certificate is valid.")] = 3650,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for a site.")] = 5.0,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Another key for this site, while the daemon runs.

    Without --finish: makes the next key and certificate beside the present ones, and says what the other
    sites must list. With --finish: asks every site whether it accepts the next key, replaces the present one
    by it (which is then gone), and lets the daemon use it.
    """
    loaded = context.load_config(config)
    if loaded.site.insecure:
        raise ConfigError(
            "this site has no key",
            file=loaded.site_path,
            key="insecure",
            value=True,
            remedy="Keys are for sites without `insecure: true`.",
        )
    document = _finish(loaded, force, timeout_s) if finish else _begin(loaded, days)
    text = document.pop("text")
    if json:
        out.print_json(document)
    else:
        print(text)
    return EXIT_FAILED if document["state"] == "not_in_use" else EXIT_OK


# ---------------------------------------------------------------- the next pair


def _begin(config: Config, days: int) -> dict[str, Any]:
    from gossipseg import trust

    key, certificate = _paths(config)
    present = _present(key, certificate)
    next_key, next_certificate = trust.next_paths(key, certificate)
    if next_key.exists() and next_certificate.exists():
        made = _next_pair(next_key, next_certificate)
    else:
        for left_over in (next_key, next_certificate):  # half of a pair, left by an interrupted command
            left_over.unlink(missing_ok=True)
        made = trust.create_next(config.site.site, present, days=days)
    return {
        "schema": 1,
        "kind": "rotation",
        "site": config.site.site,
        "state": "listed" if _listed(config, made) else "begun",
        "present_id": present.site_id,
        "next_id": made.site_id,
        "certificate": str(next_certificate),
        "text": _what_next(config, present, made),
    }


def _what_next(config: Config, present: Identity, made: Identity) -> str:
    name = config.site.site
    entry = "\n".join(["    certificate:", *_block(present.certificate_pem), *_block(made.certificate_pem)])
    return (
        f"The next key of {name} has the ID\n\n    {made.site_id}\n\n"
        f"Its key is {made.key_path} (give it to nobody), its certificate {made.certificate_path}.\n"
        f"The present key stays in use. Next:\n"
        f"  1. At every site, this one too, peers.yaml must list both certificates of {name}:\n"
        f"     gossipctl peers certify PEERS.YAML --name {name} --certificate {made.certificate_path.name}\n"
        f"     gossipctl reload\n"
        "     (Send the certificate, read the ID to them over the telephone.) By hand it is:\n\n"
        f"{entry}\n\n"
        f"  2. Here: gossipctl rotate --finish --config {config.site_path}\n"
        f"     It asks every site first whether it accepts the next key."
    )


def _block(pem: bytes) -> list[str]:
    lines = pem.decode().strip().splitlines()
    return ["      - |", *(f"        {line}" for line in lines)]


# ---------------------------------------------------------------- the next pair comes into use


def _finish(config: Config, force: bool, timeout_s: float) -> dict[str, Any]:
    from gossipseg import trust

    key, certificate = _paths(config)
    next_key, next_certificate = trust.next_paths(key, certificate)
    if not next_key.exists() or not next_certificate.exists():
        return _nothing_to_finish(config, next_key)
    made = _next_pair(next_key, next_certificate)
    trust.check_own_certificate(made, config.me, config.federation_path)
    unready = _unready(config, made, timeout_s)
    if unready and not force:
        raise LocalError(
            "nothing was changed: " + "; ".join(f"{site}: {why}" for site, why in unready.items()) + ". "
            f"List {next_certificate} there and reload, then try again; --force goes on without them, and "
            "they refuse this site until they have done so."
        )
    _put_in_use(next_key, key, 0o600)
    _put_in_use(next_certificate, certificate, 0o644)
    next_certificate.unlink()
    next_key.unlink()
    return _finished(config, made, unready)


def _nothing_to_finish(config: Config, next_key: Path) -> dict[str, Any]:
    """Finish an interrupted --finish that had put both files in place; otherwise raise an error: there is no
    next pair."""
    from gossipseg import trust

    present = trust.Identity.load(*_paths(config))
    if next_key.exists() and next_key.read_bytes() == present.key_pem:
        next_key.unlink()
    elif _daemon_id(config) in ("", present.site_id):
        raise LocalError(
            f"{next_key} and its certificate are not both there, and the key {present.site_id} is in use: "
            "nothing is left to be finished. `gossipctl rotate` begins with another key."
        )
    return _finished(config, present, {})


def _daemon_id(config: Config) -> str:
    """The ID of the key that the running daemon uses; "" where none answers."""
    from gossipseg.wire.control import ControlClient

    try:
        with ControlClient(config.control_socket) as client:
            return client.status().id
    except GossipsegError:
        return ""


def _finished(config: Config, made: Identity, unready: dict[str, str]) -> dict[str, Any]:
    name, certificate = config.site.site, _paths(config)[1]
    in_use, said = _tell_daemon(config, made)
    when = "within a day or so" if in_use else "but not before `gossipctl status` here names the new ID"
    text = (
        f"{name}'s key is now {made.site_id}. {said}\n"
        f"At every site, this one too, take the old certificate off the list, {when}:\n"
        f"     gossipctl peers certify PEERS.YAML --name {name} --certificate {certificate.name} --only\n"
        f"     gossipctl reload\n"
        "Until then the old key, should somebody have a copy, is still accepted."
    )
    return {
        "schema": 1,
        "kind": "rotation",
        "site": name,
        "state": "finished" if in_use else "not_in_use",
        "next_id": made.site_id,
        "unready": unready,
        "daemon": said,
        "text": text,
    }


def _unready(config: Config, made: Identity, timeout_s: float) -> dict[str, str]:
    """Site → why it may not accept the next key; each site is shown it in a handshake."""
    from concurrent.futures import ThreadPoolExecutor

    from gossipseg.wire.probe import seen_certificate

    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        seen = list(pool.map(lambda s: seen_certificate(s.address, made, timeout_s), config.others))
    unready = {}
    for site, look in zip(config.others, seen, strict=True):
        if not look.reached:
            unready[site.name] = f"{site.address} cannot be asked ({look.detail})"
        elif not look.accepted:
            unready[site.name] = f"{site.address} does not accept the next key ({look.detail})"
    return unready


def _put_in_use(source: Path, target: Path, mode: int) -> None:
    """Copy a file to its place, with the target's owner, through links.

    Owner and mode are right before the file has its name. So a daemon that starts in between can read it, and
    an administrator's umask does not hide a certificate from the daemon's user.
    """
    from gossipseg.store.atomic import atomic_write

    target, data = target.resolve(), source.read_bytes()
    owner = target.stat() if target.exists() else None

    def write(file: BinaryIO) -> None:
        os.fchmod(file.fileno(), mode)
        if owner is not None and os.geteuid() == 0:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.write(data)

    atomic_write(target, write, mode=mode)


def _tell_daemon(config: Config, made: Identity) -> tuple[bool, str]:
    """Whether no daemon goes on with the old key, as far as is known, and this in words."""
    from gossipseg.store.lock import holder_of
    from gossipseg.wire.control import ControlClient

    try:
        with ControlClient(config.control_socket) as client:
            answer = client.reload()
            in_use = client.status().id == made.site_id
    except GossipsegError as e:
        if (
            isinstance(e, DaemonUnreachable)
            and holder_of(Path(config.site.state_dir) / "daemon.lock") is None
        ):
            return True, "The daemon does not run; it uses it from its next start."
        return False, f"Whether the daemon uses it is not known: {e}"
    if answer.ok and in_use:
        return True, "The daemon uses it from now on."
    why = answer.message if not answer.ok else "it reads its key from another place"
    return False, (
        f"The running daemon does not use it yet: {why} "
        "Where systemd hands the key over (LoadCredential), `systemctl restart gossipsegd` does it."
    )


# ---------------------------------------------------------------- files


def _paths(config: Config) -> tuple[Path, Path]:
    return Path(config.site.identity.key), Path(config.site.identity.certificate)


def _present(key: Path, certificate: Path) -> Identity:
    """The present pair, expired or not."""
    from gossipseg.certificates import parse_certificate
    from gossipseg.trust import Identity

    try:
        return Identity.load(key, certificate)
    except LocalError as e:
        try:
            parsed = parse_certificate(certificate.read_bytes())
        except (OSError, ConfigError):
            raise e from None  # it reports what is wrong
    inside_s = (parsed.not_valid_before_utc.timestamp() + parsed.not_valid_after_utc.timestamp()) / 2
    return Identity.load(key, certificate, now=inside_s)


def _next_pair(key: Path, certificate: Path) -> Identity:
    from gossipseg.trust import Identity

    try:
        return Identity.load(key, certificate)
    except ConfigError as e:
        raise ConfigError(
            e.problem,
            file=e.file,
            remedy=f"If `gossipctl rotate` was interrupted, remove {key} and {certificate} and repeat it.",
        ) from None


def _listed(config: Config, made: Identity) -> bool:
    from gossipseg.trust import certificates_of, site_id

    return made.site_id in {site_id(text.encode()) for text in certificates_of(config.me)}
