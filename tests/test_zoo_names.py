"""Names of networks: what is understood, the one canonical form, and what a typo is answered with."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcli.errors import UsageError
from ghostcli.zoo import names


@pytest.mark.parametrize(
    ("typed", "canonical", "family", "width"),
    [
        ("gns", "gns:1.0", "gns", 1.0),
        ("gnd", "gnd:1.0", "gnd", 1.0),
        ("gns:1.30", "gns:1.3", "gns", 1.3),
        ("gns:2", "gns:2.0", "gns", 2.0),
        ("gnd:.5", "gnd:0.5", "gnd", 0.5),
        (" resnet18 ", "resnet18", "teacher", None),
        ("timm/vit_tiny_patch16_224", "timm/vit_tiny_patch16_224", "timm", None),
        ("run/gns-1.0-kd-1a2b3c4d/s0", "run/gns-1.0-kd-1a2b3c4d/s0", "trained", None),
        ("pretrained/gns-1.0", "pretrained/gns-1.0", "trained", None),
    ],
)
def test_a_name_is_understood(typed: str, canonical: str, family: str, width: float | None) -> None:
    assert names.parse(typed) == names.ModelName(canonical, family, width)
    assert names.canonical(typed) == canonical
    assert names.is_ghost(typed) == (width is not None)


def test_every_row_of_table_one_is_its_own_canonical_name() -> None:
    assert [names.canonical(name) for name in names.KNOWN] == list(names.KNOWN)
    assert len(names.KNOWN) == 15


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_any_positive_width_has_one_canonical_name(width: float) -> None:
    once = names.canonical(f"gns:{width!r}")
    assert names.canonical(once) == once
    assert names.parse(once).width == width


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("gns:0", "positive"),
        ("gns:-1.3", "positive"),
        ("gnd:inf", "positive and finite"),
        ("gnd:-inf", "positive and finite"),
        ("gns:nan", "'nan' is not a number"),
        ("gns:wide", "'wide' is not a number"),
        ("gns:", "'' is not a number"),
        ("gns:1_3", "'1_3' is not a number"),
        ("gns:1,3", "'1,3' is not a number"),
        ("resnet81", "did you mean resnet18"),
        ("ResNet18", "did you mean resnet18"),
        ("vgg", "vgg13"),
        ("gsn", "gns"),
        ("", "known: gns"),
        ("timm/", "nothing follows the slash"),
        ("run/", "nothing follows the slash"),
        ("gns-1.0-kd-1a2b3c4d", "type run/gns-1.0-kd-1a2b3c4d"),
        ("gns-1.0-plain-1a2b3c4d/s0", "type run/gns-1.0-plain-1a2b3c4d/s0"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_to_type(typed: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        names.parse(typed)
    message = str(caught.value)
    assert says in message
    assert f"'{typed}'" in message
    assert "\n" not in message


def test_a_slug_is_one_part_of_a_path() -> None:
    assert names.slug("gns:1.3") == "gns-1.3"
    assert names.slug("timm/resnet10t") == "timm-resnet10t"


def test_names_come_without_torch() -> None:
    code = (
        "import sys; from ghostcli import zoo; zoo.canonical('gns'); "
        "sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
