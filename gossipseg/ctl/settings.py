"""`gossipctl config`: the configuration in force, after files, environment and defaults."""

from __future__ import annotations

import typer

from gossipseg.ctl import context
from gossipseg.ctl import output as out
from gossipseg.errors import EXIT_OK


def register(app: typer.Typer) -> None:
    app.command("config")(show)


def show(config: context.ConfigOption = None, json: context.JsonOption = False) -> int:
    """Print the effective configuration: site.yaml and peers.yaml with every default filled in."""
    loaded = context.load_config(config)
    from gossipseg import config as configuration

    text = configuration.dump(loaded)
    if json:
        from gossipseg.config.reading import parse_yaml

        out.print_json({"schema": 1, "kind": "config", **parse_yaml(text)})
    else:
        print(f"# {loaded.site_path} and {loaded.federation_path}")
        print(text, end="")
    return EXIT_OK
