"""HTML pages from the templates beside this file.

A page is one file: pictures are inside, there is no script.
"""

from __future__ import annotations

import base64
from functools import cache
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """The page. Values are escaped; a name that the template asks for and nobody gave is an error."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gossipseg.templates", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = _base64
    return environment


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
