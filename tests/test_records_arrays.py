"""The reader of .npz files: what numpy wrote is read, and what is damaged or holds a pickle is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest

from ghostcli.records.record import predictions

RNG = np.random.default_rng(0)
GOOD = {
    "as ghost writes them": (RNG.normal(size=(7, 10)).astype(np.float16), np.arange(7)),
    "by column": (np.asfortranarray(RNG.normal(size=(7, 10))), np.arange(7, dtype=">i4")),
}
NO_PREDICTIONS = {
    "no rows": (np.zeros((0, 10), np.float32), np.zeros(0, np.int64)),
    "a number": (np.float64(3.5), np.int64(2)),
    "a name beyond ASCII": (np.zeros(3, [("é", "<f4")]), np.arange(3)),
}


def packed(logits: object, labels: object, save=np.savez) -> bytes:
    content = io.BytesIO()
    save(content, logits=logits, labels=labels)
    return content.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", GOOD)
def test_it_reads_what_numpy_wrote(name, save):
    for found, wanted in zip(predictions(packed(*GOOD[name], save)), GOOD[name], strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape and found.tobytes() == wanted.tobytes()


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize("name", NO_PREDICTIONS)
def test_what_numpy_wrote_and_is_no_predictions_is_refused(name):
    assert predictions(packed(*NO_PREDICTIONS[name])) is None


def test_pickled_objects_are_refused():
    assert predictions(packed(np.array([{}], dtype=object), np.arange(1))) is None


def test_a_negative_length_is_refused():
    content = packed(*GOOD["as ghost writes them"]).replace(b"(7, 10)", b"(-1,10)")
    assert predictions(content) is None


def test_damage_is_refused_or_without_effect():
    """Each byte changed, and each length cut: the arrays are as written, or none."""
    whole = packed(*GOOD["as ghost writes them"])
    damaged = [whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :] for i in range(len(whole))]
    for content in [*damaged, *(whole[:i] for i in range(len(whole)))]:
        found = predictions(content)
        assert found is None or [one.tobytes() for one in found] == [
            one.tobytes() for one in GOOD["as ghost writes them"]
        ]
