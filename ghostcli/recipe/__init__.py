"""Recipes: what a person writes, and the resolved values the other rooms are handed.

Invariant: importing this needs no torch; a `Recipe` that exists is valid.
"""

from __future__ import annotations

from ghostcli.recipe.digest import canonical, digest
from ghostcli.recipe.files import names
from ghostcli.recipe.load import Resolved, load
from ghostcli.recipe.models import UNDIGESTED, Recipe

__all__ = ["UNDIGESTED", "Recipe", "Resolved", "canonical", "digest", "load", "names"]
