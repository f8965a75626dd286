"""Losses on features against closed forms in float64, written out here pair by pair and triple by triple."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from ghostcli.distill import features as f
from ghostcli.distill import kinds
from ghostcli.distill.adaptive import GroupedHints, TeacherWeights
from ghostcli.recipe.models import AT, RKD, Hint
from ghostcli.zoo.stages import Features, FeatureShape

STUDENT = FeatureShape((0, 1, 2), (4, 6, 8), (8, 4, 2), 5)
TEACHERS = [FeatureShape((1, 2, 3), (3, 5, 7), (4, 2, 1), 9), FeatureShape((2,), (6,), (7,), 3)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features_of(shape: FeatureShape, batch: int, seed: int) -> Features:
    sides = zip(shape.channels, shape.sizes, strict=True)
    return Features([draw(batch, c, s, s, seed=seed + i) for i, (c, s) in enumerate(sides)], draw(batch, shape.pooled))


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def length(x: list[float]) -> float:
    return math.sqrt(sum(v * v for v in x))


def minus(x: list[float], y: list[float]) -> list[float]:
    return [a - b for a, b in zip(x, y, strict=True)]


def distances(x: Tensor) -> dict[tuple[int, int], float]:
    rows = x.tolist()
    found = {(i, j): length(minus(rows[i], rows[j])) for i, j in permutations(range(len(rows)), 2)}
    mean = sum(found.values()) / len(found)
    return {pair: d / mean for pair, d in found.items()}


def angles(x: Tensor) -> dict[tuple[int, int, int], float]:
    rows = x.tolist()
    found = {}
    for i, j, k in permutations(range(len(rows)), 3):
        u, v = minus(rows[i], rows[j]), minus(rows[k], rows[j])
        found[j, i, k] = sum(a * b for a, b in zip(u, v, strict=True)) / (length(u) * length(v))
    return found


def test_distance_is_the_written_out_mean_over_pairs() -> None:
    student, teacher = draw(6, 3, seed=1), 3 * draw(6, 7, seed=2) ** 3
    s, t = distances(student), distances(teacher)
    expected = sum(huber(s[pair] - t[pair]) for pair in s) / len(s)
    assert any(abs(s[pair] - t[pair]) > 1 for pair in s)  # both branches of Huber's loss are met
    assert f.distance(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_angle_is_the_written_out_mean_over_triples() -> None:
    student, teacher = draw(6, 3, seed=1), draw(6, 7, seed=2) + 5
    s, t = angles(student), angles(teacher)
    expected = sum(huber(s[triple] - t[triple]) for triple in s) / len(s)
    assert f.angle(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    cosines = f.cosines(student)
    for triple, cosine in s.items():
        assert cosines[triple].item() == pytest.approx(cosine, rel=1e-9, abs=1e-12)


def test_relations_ignore_rotation_scale_and_shift() -> None:
    x = draw(7, 4, seed=3)
    rotation, _ = torch.linalg.qr(draw(4, 4, seed=4))
    moved = 2.5 * x @ rotation + 3
    assert f.distance(x, moved).item() < 1e-20
    assert f.angle(x, moved).item() < 1e-20
    stretched = x * torch.tensor([1, 1, 1, 9.0])
    assert f.distance(x, stretched).item() > 1e-3
    assert f.angle(x, stretched).item() > 1e-3


def test_coinciding_samples_and_tiny_batches_have_finite_relations() -> None:
    for batch in (1, 2, 4):
        x = draw(batch, 3, seed=5)
        x[-1] = x[0]
        x.requires_grad_()
        loss = f.distance(x, draw(batch, 5)) + f.angle(x, draw(batch, 5))
        loss.backward()
        assert loss.isfinite() and x.grad.isfinite().all()
        if batch == 1:
            assert loss.item() == 0


def test_cosines_hold_in_float32_far_from_the_origin() -> None:
    x = (draw(64, 128, seed=6) + 30).abs()  # features after a ReLU: positive, with a common offset
    assert (f.cosines(x.float()).double() - f.cosines(x)).abs().max() < 1e-4


def attention_by_hand(x: Tensor) -> list[list[float]]:
    rows = []
    for maps in x.tolist():
        side = len(maps[0])
        energy = [sum(m[i][j] ** 2 for m in maps) / len(maps) for i in range(side) for j in range(side)]
        rows.append([e / length(energy) for e in energy])
    return rows


def test_attention_is_the_written_out_distance_of_unit_maps() -> None:
    student, teacher = draw(3, 4, 2, 2, seed=7), draw(3, 6, 2, 2, seed=8)
    pairs = zip(attention_by_hand(student), attention_by_hand(teacher), strict=True)
    expected = sum((a - b) ** 2 for s, t in pairs for a, b in zip(s, t, strict=True)) / (3 * 4)
    assert f.attention(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert f.attention(student, -5 * student.flip(1)).item() == pytest.approx(0, abs=1e-30)


def test_hint_is_the_mean_squared_difference_at_the_smaller_side() -> None:
    student, teacher = draw(2, 3, 4, 4, seed=9), draw(2, 3, 2, 2, seed=10)
    total = 0.0
    for b in range(2):
        for c in range(3):
            for i in range(2):
                for j in range(2):
                    window = student[b, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].tolist()
                    total += (sum(map(sum, window)) / 4 - teacher[b, c, i, j].item()) ** 2
    assert f.hint(student, teacher).item() == pytest.approx(total / (2 * 3 * 4), rel=1e-12)
    assert f.hint(teacher, student).item() == pytest.approx(total / (2 * 3 * 4), rel=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    s, t = draw(4, 3, seed=11).requires_grad_(), draw(4, 5, seed=12).requires_grad_()
    maps = draw(2, 3, 4, 4, seed=13).requires_grad_()
    assert torch.autograd.gradcheck(f.distance, (s, t))
    assert torch.autograd.gradcheck(f.angle, (s, t))
    assert torch.autograd.gradcheck(lambda m: f.attention(m, draw(2, 5, 2, 2)), (maps,))
    assert torch.autograd.gradcheck(lambda m: f.hint(m, draw(2, 3, 2, 2)), (maps,))


def test_a_hint_is_given_where_asked_or_at_the_nearest_common_stage() -> None:
    for stage, pairs in ((1, [(1, 0), (2, 0)]), (2, [(1, 0), (2, 0)]), (3, [(2, 1), (2, 0)])):
        terms = kinds.build(Hint(kind="hint", stage=stage, weight=100.0), STUDENT, TEACHERS).double()
        assert terms.pairs == pairs
        student, teachers = features_of(STUDENT, 3, 20), [features_of(t, 3, 30) for t in TEACHERS]
        for loss, (i, j), (conv, _), teacher in zip(
            terms(student, teachers), pairs, terms.regressors, teachers, strict=True
        ):
            regressed = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], student.maps[i])
            var, mean = torch.var_mean(regressed, (0, 2, 3), correction=0, keepdim=True)
            regressed = (regressed - mean) / (var + 1e-5).sqrt()
            torch.testing.assert_close(loss, 100 * f.hint(regressed, teacher.maps[j]))


def test_attention_is_summed_over_the_common_stages() -> None:
    terms = kinds.build(AT(kind="at", weight=10.0), STUDENT, TEACHERS)
    student, teachers = features_of(STUDENT, 3, 20), [features_of(t, 3, 30) for t in TEACHERS]
    first, second = terms(student, teachers)
    both = [f.attention(student.maps[i], teachers[0].maps[i - 1]) for i in (1, 2)]
    torch.testing.assert_close(first, 10 * (both[0] + both[1]))
    torch.testing.assert_close(second, 10 * f.attention(student.maps[2], teachers[1].maps[0]))


def test_relations_are_weighed() -> None:
    terms = kinds.build(RKD(kind="rkd", distance_weight=2.0, angle_weight=3.0), STUDENT, TEACHERS)
    student, teachers = features_of(STUDENT, 5, 20), [features_of(t, 5, 30) for t in TEACHERS]
    for loss, teacher in zip(terms(student, teachers), teachers, strict=True):
        expected = 2 * f.distance(student.pooled, teacher.pooled) + 3 * f.angle(student.pooled, teacher.pooled)
        torch.testing.assert_close(loss, expected)


def test_teacher_weights_by_hand() -> None:
    torch.manual_seed(0)
    weights = TeacherWeights(5, 3).double()
    pooled = draw(4, 5, seed=14)
    for row, found in zip(pooled.tolist(), weights(pooled).exp().tolist(), strict=True):
        scores = [
            sum(v * a * x for v, a, x in zip(weights.score.tolist(), theta, row, strict=True)) / math.sqrt(5)
            for theta in weights.factors.tolist()
        ]
        total = sum(math.exp(s) for s in scores)
        assert found == pytest.approx([math.exp(s) / total for s in scores], rel=1e-12)


@pytest.mark.parametrize("teachers", [1, 2, 3, 4, 7])
def test_grouped_hints_use_every_stage_and_every_teacher_in_order(teachers: int) -> None:
    shapes = [TEACHERS[i % 2] for i in range(teachers)]
    hints = GroupedHints(STUDENT, shapes)
    assert {i for i, _, _ in hints.groups} == {0, 1, 2}
    assert {who for _, who, _ in hints.groups} == set(range(teachers))
    assert hints.groups == sorted(hints.groups)
    assert len(hints.groups) == max(3, teachers)


def test_grouped_hints_by_hand() -> None:
    hints = GroupedHints(STUDENT, TEACHERS).double()
    assert hints.groups == [(0, 0, 0), (1, 0, 0), (2, 1, 0)]
    student, teachers = features_of(STUDENT, 3, 20), [features_of(t, 3, 30) for t in TEACHERS]
    total = 0.0
    for (i, who, j), conv in zip(hints.groups, hints.regressors, strict=True):
        s, t = (m / m.square().sum(1, keepdim=True).sqrt() for m in (student.maps[i], teachers[who].maps[j]))
        total += f.hint(torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], s), t).item() / 3
    assert hints(student, teachers).item() == pytest.approx(total, rel=1e-10)


def test_a_rate_that_suits_the_student_suits_its_hints() -> None:
    """However large the maps on either side are, plain descent at 0.05 on the regressor brings the hint down."""
    torch.manual_seed(0)
    terms = kinds.build(Hint(kind="hint", stage=2), STUDENT, TEACHERS[:1])
    student, teacher = features_of(STUDENT, 8, 1), features_of(TEACHERS[0], 8, 2)
    student, teacher = (Features([300 * m.float() for m in x.maps], x.pooled) for x in (student, teacher))
    losses = []
    for _ in range(50):
        (loss,) = terms(student, [teacher])
        for p, g in zip(terms.parameters(), torch.autograd.grad(loss, [*terms.parameters()]), strict=True):
            p.data -= 0.05 * g
        losses.append(loss.item())
    assert losses[-1] < losses[0]
