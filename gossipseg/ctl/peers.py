"""`gossipctl peers`: the other sites as this one sees them; `peers add` and `remove` edit peers.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.ctl.output import Column
from gossipseg.errors import EXIT_OK, ConfigError

if TYPE_CHECKING:
    from gossipseg.wire.documents import PeerRow

COLUMNS = (
    Column("SITE"),
    Column("ID"),
    Column("ADDRESS"),
    Column("STATE"),
    Column("ROUND", right=True),
    Column("CASES", right=True),
    Column("LAST SEEN", right=True),
    Column("RTT", right=True),
    Column("SENT", right=True),
    Column("RECEIVED", right=True),
    Column("OUT", right=True),
    Column("IN", right=True),
    Column("WHY"),
)
FileArgument = Annotated[
    Path | None, typer.Argument(help="peers.yaml. Default: the one that site.yaml names.", show_default=False)
]

app = typer.Typer(rich_markup_mode=None)


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="peers", help="The other sites as this one sees them; edit the list of sites.")


@app.callback(invoke_without_command=True)
def peers(
    ctx: typer.Context,
    wide: Annotated[bool, typer.Option("--wide", help="Show whole site IDs.")] = False,
    config: context.ConfigOption = None,
    socket: context.SocketOption = None,
    json: context.JsonOption = False,
) -> int:
    """The other sites as this one sees them: state and why, round, cases, last seen, models and bytes."""
    if ctx.invoked_subcommand is not None:
        return EXIT_OK
    with context.daemon(config, socket) as daemon:
        document = daemon.peers()
    if json:
        out.print_json(document.to_dict())
    else:
        out.print_table(COLUMNS, [cells(row, wide) for row in document.peers], "No other site is listed.")
    return EXIT_OK


def cells(row: PeerRow, wide: bool = False) -> list[str]:
    """A peer as the cells of COLUMNS. Columns that a narrow terminal may cut off come last."""
    return [
        row.site,
        (row.id if wide else row.id.split("-", 1)[0]) or out.NOTHING,
        row.address or out.NOTHING,
        row.state,
        out.count_text(row.round),
        out.count_text(row.cases),
        out.ago_text(row.last_seen_s),
        out.ms_text(row.rtt_ms),
        str(row.sent),
        str(row.received),
        out.bytes_text(row.bytes_out),
        out.bytes_text(row.bytes_in),
        row.refused or row.reason or (row.phase if row.phase != "training" else "") or out.NOTHING,
    ]


@app.command("add")
def add(
    name: Annotated[str, typer.Option(help="Name of the site, as in its site.yaml.")],
    address: Annotated[str, typer.Option(help="host:port, or [IPv6]:port, under which it is reached.")],
    certificate: Annotated[Path, typer.Option(help="Its cert.pem.")],
    file: FileArgument = None,
    site_id: Annotated[
        str | None,
        typer.Option("--id", help="Its ID as its administrator read it out; checked.", show_default=False),
    ] = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Append a site to peers.yaml. The rest of the file stays as it is, comments included."""
    from gossipseg.certificates import site_id as id_of
    from gossipseg.ctl import peersfile

    path = _peers_file(file, config)
    pem = peersfile.read_valid_certificate(certificate)
    entry = {"name": name, "address": address, "id": site_id, "certificate": pem}
    peersfile.add_site(path, {k: v for k, v in entry.items() if v is not None})
    seen = id_of(pem.encode())
    if json:
        out.print_json({"schema": 1, "kind": "peer_added", "site": name, "id": seen, "file": str(path)})
    else:
        print(f"{name} is listed in {path} with the ID {seen}.")
        if site_id is None:
            print(f"Have {name}'s administrator read its ID to you (`gossipctl id`) and compare.")
        print("Every site needs the same list. Daemons take it with `gossipctl reload`.")
    return EXIT_OK


@app.command("remove")
def remove(
    name: Annotated[str, typer.Option(help="Name of the site.")],
    file: FileArgument = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """Take a site off peers.yaml. Running daemons refuse it once they have reloaded the list."""
    from gossipseg.ctl import peersfile

    path = _peers_file(file, config)
    peersfile.remove_site(path, name)
    if json:
        out.print_json({"schema": 1, "kind": "peer_removed", "site": name, "file": str(path)})
    else:
        print(f"{name} is no longer listed in {path}. Daemons take the list with `gossipctl reload`.")
    return EXIT_OK


@app.command("certify")
def certify(
    name: Annotated[str, typer.Option(help="Name of the site.")],
    certificate: Annotated[Path, typer.Option(help="Its next certificate.")],
    file: FileArgument = None,
    only: Annotated[
        bool, typer.Option("--only", help="From now on this certificate alone: the rotation is over.")
    ] = False,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """List another certificate of a site beside its present one, or (--only) in its place."""
    from gossipseg import config as configuration
    from gossipseg.certificates import name_in_certificates
    from gossipseg.certificates import site_id as id_of
    from gossipseg.ctl import peersfile
    from gossipseg.trust import certificates_of

    path, pem = _peers_file(file, config), peersfile.read_valid_certificate(certificate)
    listed = configuration.load_federation(path).sites
    before = [text for site in listed if site.name == name for text in certificates_of(site)]
    others = [text for text in before if id_of(text.encode()) != id_of(pem.encode())]
    if len(others) > 1 and not only:
        raise ConfigError(
            f"two other certificates of {name} are listed already, and which of them is in use is not known "
            "here",
            file=path,
            key="certificate",
            remedy=f"Ask {name} which one its daemon uses (`gossipctl status`); take the other off first: "
            "`gossipctl peers certify --certificate THAT_ONE --only`.",
        )
    wanted = [pem] if only else [*others, pem]
    name_in_certificates(name, [text.encode() for text in wanted])
    seen = id_of(pem.encode())
    peersfile.set_certificates(path, name, wanted, seen if only else None)
    ids = [id_of(text.encode()) for text in wanted]
    if json:
        out.print_json({"schema": 1, "kind": "peer_certified", "site": name, "ids": ids, "file": str(path)})
    else:
        print(f"{name} is listed in {path} with the key{'s' if len(ids) > 1 else ''}")
        print("\n".join(f"    {each}" for each in ids))
        print(f"Have {name}'s administrator read the ID to you (`gossipctl id`, `gossipctl rotate`).")
        print("Every site needs the same list. Daemons take it with `gossipctl reload`.")
    return EXIT_OK


def _peers_file(file: Path | None, config: Path | None) -> Path:
    if file is not None:
        return file
    try:
        site_file = context.find_site_file(config)
    except ConfigError:
        if config is not None or not Path("peers.yaml").exists():
            raise
        return Path("peers.yaml")
    from gossipseg import config as configuration

    return Path(configuration.load_site(site_file).peers)
