"""`gossipctl init` and `gossipctl id`: a site's own key, certificate, ID and site.yaml."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_OK, ConfigError, LocalError

DEFAULT_PORT = 7443


def register(app: typer.Typer) -> None:
    app.command("init")(init)
    app.command("id")(show_id)


def init(
    name: Annotated[
        str | None,
        typer.Option(help="Name of this site: lower-case letters, digits, - and _.", show_default=False),
    ] = None,
    directory: Annotated[
        Path, typer.Option("--dir", help="Where site.yaml, identity/ and the files below are written.")
    ] = Path(),
    address: Annotated[
        str | None,
        typer.Option(help="host:port under which the other sites reach this one.", show_default=False),
    ] = None,
    federation: Annotated[
        bool, typer.Option("--federation", help="Write a commented peers.yaml without sites.")
    ] = False,
    unit: Annotated[bool, typer.Option("--unit", help="Write gossipsegd.service for systemd.")] = False,
    alerts: Annotated[bool, typer.Option("--alerts", help="Write alerts.yaml for Prometheus.")] = False,
    json: context.JsonOption = False,
) -> int:
    """Make this site's key, certificate and a commented site.yaml. Overwrites nothing."""
    wanted = {PEERS_FILE: federation, "gossipsegd.service": unit, "alerts.yaml": alerts}
    files = {directory / file: file for file, asked in wanted.items() if asked}
    if name is None and not files:
        raise typer.BadParameter(
            "name this site, or ask for a file alone with --federation, --unit or --alerts",
            param_hint="'--name'",
        )
    _refuse_existing(list(files))
    if name is not None:
        _make_site(name, directory, address, list(map(str, files)), json=json)
    for path, file in files.items():
        _write_template(path, file)
    if name is None and json:
        out.print_json({"schema": 1, "kind": "templates", "files": list(map(str, files))})
    elif not json:
        for path, file in files.items():
            print(f"Wrote {path}. {_HINTS[file]}")
    return EXIT_OK


PEERS_FILE = "peers.yaml"
_HINTS = {
    PEERS_FILE: "Set its name and task, and add every site with `gossipctl peers add`.",
    "gossipsegd.service": "Its head says how to install it.",
    "alerts.yaml": "Name it under rule_files in prometheus.yml.",
}


def _write_template(path: Path, file: str) -> None:
    from gossipseg import templates
    from gossipseg.store.atomic import atomic_write, make_directory

    text = templates.federation() if file == PEERS_FILE else templates.text(file)
    make_directory(path.parent)
    atomic_write(path, text.encode(), mode=0o644)


def _refuse_existing(paths: list[Path]) -> None:
    for path in paths:
        if path.exists():
            raise LocalError(
                f"{path} exists already and is not overwritten. Give another folder with --dir, or move it "
                "away."
            )


def _make_site(name: str, directory: Path, address: str | None, others: list[str], *, json: bool) -> None:
    from gossipseg import trust

    _check_name(name)
    port = _port(address) if address is not None else DEFAULT_PORT
    site_file, identity = directory / "site.yaml", directory / "identity"
    certificate = identity / trust.CERTIFICATE_FILE
    for path in (site_file, identity / trust.KEY_FILE, certificate):
        if path.exists():
            raise LocalError(
                f"{path} exists already and is not overwritten. Give another folder with --dir, or move it "
                "away if you really want to begin anew: the other sites know this one by its key."
            )
    made = trust.create_identity(name, identity)
    from gossipseg.store.atomic import atomic_write

    atomic_write(site_file, site_yaml(name, port, address).encode(), mode=0o644)
    if json:
        files = {"site_file": str(site_file), "key": str(made.key_path), "certificate": str(certificate)}
        document = {"schema": 1, "kind": "identity", "site": name, "id": made.site_id, **files}
        out.print_json(document | ({"files": others} if others else {}))
    else:
        print(_what_next(name, made.site_id, site_file, certificate, address))


def show_id(
    certificate: Annotated[
        Path | None,
        typer.Option(help="Show the ID of this certificate instead.", show_default=False),
    ] = None,
    config: context.ConfigOption = None,
    json: context.JsonOption = False,
) -> int:
    """The ID of this site, to be read out to the other sites' administrators."""
    name = ""
    if certificate is None:
        site_file = context.find_site_file(config)
        from gossipseg import config as configuration

        site = configuration.load_site(site_file)
        name, certificate = site.site, Path(site.identity.certificate)
    from gossipseg.certificates import site_id
    from gossipseg.ctl.peersfile import read_certificate

    seen = site_id(read_certificate(certificate).encode())
    if json:
        document = {
            "schema": 1,
            "kind": "identity",
            "site": name,
            "id": seen,
            "certificate": str(certificate),
        }
        out.print_json(document)
    else:
        print(seen)
    return EXIT_OK


def _check_name(name: str) -> None:
    from gossipseg.config import SITE_NAME_PATTERN

    if not re.match(SITE_NAME_PATTERN, name):
        raise ConfigError(
            "is not a valid name",
            key="--name",
            value=name,
            remedy="Use lower-case letters, digits, - and _; at most 63, the first a letter or digit.",
        )


def _port(address: str) -> int:
    from gossipseg.wire.addresses import split_address

    try:
        return split_address(address)[1]
    except ConfigError as e:
        raise ConfigError(e.problem, key="--address", value=address, remedy=e.remedy) from None


def _what_next(name: str, site_id: str, site_file: Path, certificate: Path, address: str | None) -> str:
    where = address or f"HOST:{DEFAULT_PORT}"
    return (
        f"Site {name} has an identity now. Its ID:\n\n    {site_id}\n\n"
        f"Wrote {site_file}, {certificate} (give it to the other sites) and key.pem beside it (give it to "
        "nobody).\n"
        "Next:\n"
        "  1. Put the federation's peers.yaml beside site.yaml, and list this site in it, here and at every\n"
        "     other site:\n"
        f"     gossipctl peers add PEERS.YAML --name {name} --address {where} --certificate {certificate}\n"
        f"  2. Set data.path in {site_file}.\n"
        f"  3. gossipctl check --config {site_file}\n"
        f"  4. gossipsegd --config {site_file}"
    )


def site_yaml(name: str, port: int, address: str | None) -> str:
    """A site.yaml with every key, its meaning and its default."""
    return SITE_YAML.format(name=name, port=port, address=address or f"host.example.org:{port}")


SITE_YAML = """\
# site.yaml of {name}: what concerns this site alone. Everything that the sites share is in peers.yaml.
# Relative paths are relative to this file. Any key can be overridden: GOSSIPSEG_DEVICE__THREADS=2 in the
# environment sets device.threads. `gossipctl config` prints what is in force, `gossipctl check` tests it.

version: 1
site: {name}                      # which of the sites in peers.yaml this one is
peers: peers.yaml

data:
  path: data                      # a folder with dataset.json or dataset.csv, with images/ and masks/ (or
                                  # labels/), or with nnU-Net's imagesTr/ and labelsTr/
  # list: dataset.json            # the data list, if it has another name; relative to path
  # fold: 0                       # which fold validates, where the list or splits_final.json has folds
  # cache: true                   # keep preprocessed images in memory
  # test_fraction: 0.2            # shares of patients where no list divides them; who is where is kept in
  # validation_fraction: 0.15     # splits.json in state_dir, which may be written by hand; 0: no test
  # patient_pattern: '(.+)_\\d+'   # whose image a case is, by its name: a patient never crosses a split
  # label_map: {{}}                 # {{255: 1}}: values in this site's label files; before task.label_map
  # label_map_out: {{}}             # {{1: 255}}: values in predictions; else as in this site's own labels
  # ignore_label: 255             # voxels of which nobody says what they are: no loss, no score
  # annotated_labels: [1]         # classes that this site's labels tell of; left out: all
  # segments: {{}}                  # {{GTV: 1}}: names in DICOM-SEG, RTSTRUCT and .seg.nrrd files

state_dir: state                  # checkpoints, models, events; the daemon's alone

identity:
  key: identity/key.pem           # never leaves this site; mode 0600
  certificate: identity/cert.pem  # goes into peers.yaml

listen: 0.0.0.0:{port}              # [::]:{port} for IPv6 and IPv4
# advertise: {address}   # where other sites shall dial, if it differs from the listed address

device:
  device: auto                    # auto, cpu, cuda or cuda:1
  # amp: auto                     # auto, off, bf16 or fp16
  # channels_last: true
  # threads: 2                    # torch threads; left out: torch's own choice
  # stuck_after_s: 900.0          # training without progress for so long is restarted

admission:                        # of models by the size of their values (docs/admin/security.md)
  # enabled: true
  # factor: 5.0                   # so many times what has been accepted before
  # least_change: 2.0             # a layer may always be so many times its norm away from this site's
  # least_norm_ratio: 3.0         # and so many times as large
  # least_likeness: 0.1           # least cosine with this site's model; unrelated weights have 0
  # without_history: 10.0         # both, while fewer than history_min models have been accepted
  # history_min: 5
  # history_kept: 32

privacy:                          # of what leaves this site; dp alone gives an epsilon (docs/ml/privacy.md)
  # clip_norm: null               # longest change that is told (L2); null: models travel as they are
  # noise_multiplier: 0.0         # noise on each value, in units of clip_norm
  # seed: null                    # of the noise, for experiments alone
  # dp:                           # train with differential privacy: pip install 'gossipseg[dp]'
  #   noise_multiplier: 1.0       # noise on a step's gradient, in units of max_grad_norm
  #   max_grad_norm: 1.0          # longest gradient of one case
  #   delta: 1.0e-05              # of the epsilon that status shows; below 1 / training cases
  #   max_epsilon: null           # training ends before more is spent

# personal_network: null          # a network of the personal model's own: {{name: segresnet, width: 8}}, say

inference:                        # what predicting may cost here (docs/ml/deployment.md)
  # max_members: 5                # models that predict together
  # max_parameters: 40000000      # of a peer's personal model, where its network is not the shared one's

quarantine:                       # of peers that repeatedly send what must be refused (gossipctl quarantine)
  # offences: 3                   # so many within window_s, and nothing is taken from the peer for first_s
  # window_s: 3600.0
  # first_s: 600.0
  # factor: 3.0                   # each further time so much longer than the one before, up to max_s
  # max_s: 604800.0
  # decay_s: 86400.0              # so long without an offence takes one step of that growth back
  # dice_offence: false           # true: dice_run models in a row that do worse here are an offence, too
  # dice_run: 5

# rounds: 200                     # stop training after so many, before training.rounds in peers.yaml; left
#                                 # out: at that, or, without it, train while the daemon runs
# report_test: false              # evaluate the test split before the first and after the last round

# max_parallel_transfers: 2
transfers:                        # of models that this site sends; requests and pings never wait
  # max_bytes_per_s: null         # all of them together; null: as fast as the link is
  # windows: []                   # hours in which a transfer may begin, such as "22:00-06:00"
# disk_reserve_bytes: 268435456   # models are refused when less than this would stay free

discovery:
  static: true                    # dial the addresses in peers.yaml
  mdns: false                     # look for listed sites on the local network, and be found there
  # interfaces: []                # IP addresses of the interfaces for mDNS; empty: all

log:
  format: text                    # text or json
  level: info                     # debug, info, warning or error
  # file: null                    # beside standard error, to this file, too
  # file_max_bytes: 10485760      # begun anew at this size; FILE.1 is the one before
  # file_count: 5                 # so many are kept

metrics:                          # for Prometheus, on this machine alone (docs/admin/monitoring.md)
  # port: null                    # such as 9464; null: off
  # host: 127.0.0.1               # a loopback address
# tensorboard: false              # the worker writes scalars to state_dir/tensorboard

# control_socket: state/control.sock   # where gossipctl asks
# insecure: false                      # plaintext, for experiments on loopback addresses only
"""
