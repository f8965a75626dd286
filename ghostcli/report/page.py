"""The page: contents, style and script in one HTML file.

Invariant: the file fetches nothing. Its content security policy lets no script run but the page's own, and every text
from a record is escaped, with control characters spelled out.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ghostcli import __version__
from ghostcli.comparison import tables
from ghostcli.comparison.admission import admit
from ghostcli.comparison.cost import costs
from ghostcli.comparison.looks import noted
from ghostcli.errors import printable
from ghostcli.records.record import RunRecord
from ghostcli.report import run, study

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True)
class Asked:
    """What a report is of: `records`, all of the same folders, of which `chosen` were named (empty: all).

    `looked`: the folder whose readings are written down, or None.
    """

    records: tuple[RunRecord, ...]
    chosen: frozenset[str] = frozenset()
    looked: Path | None = None

    @property
    def shown(self) -> tuple[RunRecord, ...]:
        return tuple(r for r in self.records if not self.chosen or r.id in self.chosen)


def render(asked: Asked, live: bool = False) -> str:
    """The whole page. One run that was named alone has a page of its own kind; `live` pages ask for what is new."""
    single = len(asked.shown) == 1 and bool(asked.chosen)
    # A run alone is compared with what lies beside it; a study's tables are of its own runs.
    admitted = admit(asked.records if single else asked.shown)
    judged = tables.judged(tables.every(admitted))
    if asked.looked is not None:
        judged = noted(judged, asked.looked)
    known = costs(asked.records)
    contents: dict[str, Any] = {"run": None, "study": None}
    if single:
        [one] = asked.shown
        rows = [row for table in judged for row in tables.only(table, {one.id}).rows]
        contents["run"] = run.page(one, rows, known)
        title = f"{contents['run']['title']}, {one.id}"
    else:
        contents["study"] = study.page(asked.shown, admitted, judged, known)
        title = f"Study of {len(asked.shown)} run{'s' * (len(asked.shown) != 1)}"
    return _template().render(title=title, live=live, version=__version__, **_assets(live), **contents)


@cache
def _assets(live: bool) -> dict[str, Any]:
    """Style, script, and the policy that allows these two alone."""
    style, script = (_file(name).strip() for name in ("page.css", "page.js"))
    allowed = [f"{what}-src '{_hash(text)}'" for what, text in (("style", style), ("script", script))]
    policy = ["default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'", *allowed]
    policy += ["connect-src 'self'"] * live
    return {"style": Markup(style), "script": Markup(script), "policy": "; ".join(policy)}


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return resources.files("ghostcli.report").joinpath(name).read_text("utf-8")


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, finalize=_plain, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_file("page.html"))


def _plain(value: Any) -> Any:
    """Text from a file name or a record with its control characters spelled out; line ends stay."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "\n".join(map(printable, value.split("\n")))
