"""gossipctl: its commands.

Quick commands must stay quick. Only the module of the named command is imported. No such module imports grpc,
pydantic, rich, cryptography, zeroconf or torch at its top.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import typer

from gossipseg import console
from gossipseg.errors import EXIT_USAGE

MODULES = {
    "identity": ("init", "id"),
    "check": ("check",),
    "rotate": ("rotate",),
    "settings": ("config",),
    "status": ("status", "version"),
    "peers": ("peers",),
    "exchanges": ("exchanges",),
    "models": ("models",),
    "events": ("events",),
    "rounds": ("rounds",),
    "watch": ("watch",),
    "dump": ("dump",),
    "control": ("pause", "resume", "leave", "reload"),
    "learn": ("predict", "evaluate", "export"),
}
"""Module → the commands that its register() adds."""
APPS = {
    "audit": "The audit log of models sent, received, refused, merged: checked and shown.",
    "quarantine": "Peers in quarantine for invalid data: show them, or end a quarantine.",
    "testbed": "Several real daemons on this machine, on real data.",
    "demo": "Three synthetic hospitals on this machine: watch them learn.",
}
"""Modules with a typer application of that name; imported only when they are named → help."""


def build(argv: Sequence[str]) -> typer.Typer:
    """Build the application: with the one command that `argv` names, or with all when it names none."""
    app = typer.Typer(
        name="gossipctl",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_gossipctl)
    named = argv[0] if argv else ""
    if named in APPS:
        app.add_typer(_module(named).app, name=named, help=APPS[named])
        return app
    owner = next((module for module, commands in MODULES.items() if named in commands), None)
    for module in MODULES if owner is None else (owner,):
        _module(module).register(app)
    if owner is None:
        for name, text in APPS.items():
            app.command(name, help=text)(_not_loaded)
    return app


def _module(name: str) -> Any:
    return importlib.import_module(f"gossipseg.ctl.{name}")


def _gossipctl() -> None:
    """Ask and steer the gossipseg daemon of this site."""


def _not_loaded() -> int:
    """A placeholder in the list of commands for one that is imported only when it is named."""
    return EXIT_USAGE


def run(argv: Sequence[str]) -> int:
    """One command; returns its exit code. Errors are printed, never raised."""

    def command() -> Any:
        return build(argv)(args=list(argv), prog_name="gossipctl", standalone_mode=False)

    return console.run("gossipctl", command, as_json="--json" in argv)


def main() -> None:
    """Entry point."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
