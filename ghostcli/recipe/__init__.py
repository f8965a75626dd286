"""Recipes: files that users write, and the resolved values for the other packages.

Invariant: importing this package needs no torch. Every `Recipe` object is valid.
"""

from __future__ import annotations

from ghostcli.recipe.digest import canonical, digest
from ghostcli.recipe.files import names
from ghostcli.recipe.load import Resolved, load
from ghostcli.recipe.models import UNDIGESTED, Recipe

__all__ = ["UNDIGESTED", "Recipe", "Resolved", "canonical", "digest", "load", "names"]
