"""`ghost recipe`: lists, shows, checks and copies recipes.

Invariant: nothing here imports torch or starts a run. Only `copy` writes, and it never overwrites a file.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ghostcli.cli import complete
from ghostcli.cli.options import Json
from ghostcli.display import tell_json
from ghostcli.errors import UsageError, printable
from ghostcli.recipe import canonical, digest, files, keys, load, names
from ghostcli.recipe.toml import dumps

app = typer.Typer(help="List, show, check and copy recipes; a JSON schema for editors.", no_args_is_help=True)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A shipped recipe's name, a .toml file, or a run's recipe.json.",
        autocompletion=complete.recipes,
    ),
]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """The shipped recipes: name, family and purpose."""
    known = [(name, load(name).recipe) for name in names()]
    if as_json:
        tell_json([{"name": name, "family": recipe.family, "summary": recipe.summary} for name, recipe in known])
        return
    table = Table("recipe", "family", "summary", box=None, pad_edge=False, header_style="bold")
    for name, recipe in known:
        table.add_row(name, recipe.family, recipe.summary)
    Console(width=None if sys.stdout.isatty() else 160).print(table)  # in a pipe: one line per recipe


@app.command()
def show(
    name: Name,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a key, as in -s train.epochs=20 (repeatable)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """A recipe with all values, and the source of each.

    The output is a recipe too: saved as a .toml file (with --json: a .json file) it gives the same values.
    """
    resolved = load(name, overrides or ())
    recipe, provenance = resolved.recipe, resolved.provenance
    if as_json:
        header = {"name": resolved.name, "digest": digest(canonical(recipe))}
        tell_json({**header, "recipe": recipe.model_dump(mode="json"), "provenance": provenance})
    else:
        typer.echo(dumps(recipe, provenance), nl=False)


@app.command()
def check(
    recipes: Annotated[list[str], typer.Argument(metavar="FILE", help="Recipe files, or shipped recipes' names.")],
) -> None:
    """Print `ok` for each valid recipe, or all mistakes with file, line and key. Exit code 2 if there is a mistake."""
    wrong = []
    for name in recipes:
        try:
            load(name)
        except UsageError as error:
            wrong.append(str(error))
        else:
            typer.echo(f"{printable(name)}: ok")
    if wrong:
        raise UsageError("\n".join(wrong))


@app.command("keys")
def keys_(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD", help="Only keys with this in their name or purpose.", show_default="all keys"),
    ] = None,
    as_json: Json = False,
) -> None:
    """What each key of a recipe means: its purpose, allowed values and default."""
    wanted = [word.lower() for word in words or ()]
    chosen = [key for key in keys.explained() if all(word in f"{key.name} {key.purpose}".lower() for word in wanted)]
    if as_json:
        tell_json([asdict(key) for key in chosen])
        return
    if not chosen:
        raise UsageError(
            f"no key of a recipe has {' and '.join(map(printable, wanted))}; `ghost recipe keys` lists all"
        )
    table = Table("key", "default", "allowed", "purpose", box=None, pad_edge=False, header_style="bold")
    for key in chosen:
        default = "none" if key.default is None else json.dumps(key.default)
        table.add_row(key.name, default.strip('"') or '""', key.allowed, key.purpose)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def schema() -> None:
    """The JSON schema of a recipe file, for editors that complete and check TOML."""
    tell_json(keys.file_schema())


@app.command()
def copy(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new .toml file. It must not exist.")],
) -> None:
    """Copy a recipe to your own file, to edit it and use it with --recipe.

    Comments are kept. If the recipe extends a file, all values are written, so the copy needs no other file.
    """
    load(name)
    target = printable(file)
    if file.suffix.lower() != ".toml":
        raise UsageError(f"{target}: a recipe file's name ends in .toml")
    text = _own(name)
    try:
        with open(file, "x", encoding="utf-8", newline="") as out:
            try:
                out.write(text)
                out.flush()
            except OSError:
                file.unlink(missing_ok=True)
                raise
    except FileExistsError as error:
        raise UsageError(f"{target}: already exists and is not overwritten; name another file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{target}: cannot be written ({reason}); name a file in another folder") from error
    typer.echo(f"wrote {target}; use it with --recipe {target}", err=True)


def _own(name: str) -> str:
    """TOML text that is valid in any folder: the file's own text, or all values if it extends another file."""
    source = files.find(name)
    if source.path.suffix.lower() == ".toml":
        text = files.read(source)
        if not files.is_file_name(files.parse(text, is_json=False).get("extends", "")):
            return text
    return f"# Written out from {printable(source.name)}.\n" + dumps(load(name).recipe)
