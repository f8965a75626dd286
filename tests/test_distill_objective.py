"""The objective: what defines each way of teaching, and every kind between real students and teachers."""

from __future__ import annotations

import copy
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import Tensor

from ghostcli import distill, zoo
from ghostcli.distill import features as feature_losses
from ghostcli.distill import kinds, losses
from ghostcli.distill.objective import Objective, kept_terms
from ghostcli.recipe.models import DistillSection, Recipe
from ghostcli.zoo.stages import Features, FeatureShape, Tap

B, C = 6, 5
STUDENT = FeatureShape((0, 1), (4, 6), (8, 4), 5)
TEACHERS = [
    FeatureShape((0, 1), (3, 5), (8, 4), 9),
    FeatureShape((1,), (6,), (4,), 3),
    FeatureShape((1,), (2,), (2,), 7),
]
KINDS = ["kd", "dkd", "dist", "hint", "at", "rkd"]
STRATEGIES = {"one": {}, "mean": {}, "dense": {"dense": True}, "adaptive": {"weighting": "adaptive"}}


def section(**keys: object) -> DistillSection:
    return TypeAdapter(DistillSection).validate_python({"kind": "kd", **keys})


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features_of(shape: FeatureShape, seed: int, batch: int = B) -> Features:
    sides = zip(shape.channels, shape.sizes, strict=True)
    maps = [draw(batch, c, s, s, seed=seed + i) for i, (c, s) in enumerate(sides)]
    return Features(maps, draw(batch, shape.pooled, seed=seed + 9))


def teacher_logits(teachers: int = 3) -> SimpleNamespace:
    return SimpleNamespace(
        z=2 * draw(B, C, seed=1),
        labels=torch.tensor([0, 4, 2, 2, 1, 3]),
        t=2 * draw(3, B, C, seed=2)[:teachers],
        features=features_of(STUDENT, 10),
        teachers=[features_of(shape, 20 * (i + 2)) for i, shape in enumerate(TEACHERS[:teachers])],
    )


def made(keys: DistillSection, teachers: int = 3, **more: object) -> Objective:
    torch.manual_seed(0)
    shapes = {"student_features": STUDENT, "teacher_features": TEACHERS[:teachers]} if keys.needs_features else {}
    return Objective(keys, teachers=teachers, **shapes, **more).double()


def ask(objective: Objective, x: SimpleNamespace, seed: int = 0, epoch: int = 0, step: int = 0):
    return objective(x.z, x.labels, x.t, x.features, x.teachers, objective.schedule(seed, epoch, step))


def test_without_teachers_it_is_the_written_out_cross_entropy() -> None:
    x, epsilon = teacher_logits(), 0.1
    expected = 0.0
    for z, y in zip(x.z.tolist(), x.labels.tolist(), strict=True):
        total = math.log(sum(math.exp(v) for v in z))
        for k, v in enumerate(z):
            expected -= ((1 - epsilon) * (k == y) + epsilon / C) * (v - total) / B
    for objective in (made(section(kind=kind), 0, label_smoothing=epsilon) for kind in KINDS):
        found = objective(x.z, x.labels)
        assert found.total.item() == pytest.approx(expected, rel=1e-12)
        assert (found.hard.item(), found.soft.item()) == (found.total.item(), 0)
        assert not list(objective.parameters()) and not objective.needs_features
        assert objective.schedule(0, 3, 14) == ()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_total_is_the_weighted_sum_and_alpha_one_is_the_hard_term_exactly(kind: str, strategy: str) -> None:
    n = 1 if strategy == "one" else 3
    x = teacher_logits(n)
    soft = []
    for alpha in (0.0, 0.3, 1.0):
        found = ask(made(section(kind=kind, alpha=alpha, **STRATEGIES[strategy]), n), x, epoch=50)
        assert found.hard.item() == F.cross_entropy(x.z, x.labels).item()
        assert found.total.item() == pytest.approx(alpha * found.hard.item() + (1 - alpha) * found.soft.item())
        soft.append(found.soft.item())
    assert found.total.item() == found.hard.item()
    assert soft[0] == soft[1] == soft[2] > 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_teacher_is_equation_one_by_every_strategy(temperature: float) -> None:
    x = teacher_logits(1)
    kd = losses.kd(x.z, x.t[0], temperature).item()
    for combine in ("logits", "probabilities", "standardized"):
        found = ask(made(section(temperature=temperature, combine=combine), 1), x)
        assert found.soft.item() == pytest.approx(kd, rel=1e-12)
    for keys in ({"dense": True, "drop": 2}, {"weighting": "adaptive", "adaptive_angle": 0.0, "adaptive_hint": 0.0}):
        assert ask(made(section(temperature=temperature, **keys), 1), x).soft.item() == pytest.approx(kd, rel=1e-12)


@pytest.mark.parametrize("strategy", ["mean", "dense", "adaptive"])
@pytest.mark.parametrize("kind", ["kd", "dkd", "dist"])
def test_identical_teachers_teach_as_one(strategy: str, kind: str) -> None:
    x = teacher_logits()
    x.t = x.t[:1].expand(3, -1, -1)
    weights = {"adaptive_angle": 0.0, "adaptive_hint": 0.0} if strategy == "adaptive" else {}
    keys = {"kind": kind, "temperature": 2.0}
    together = ask(made(section(**keys, **STRATEGIES[strategy], **weights)), x, epoch=30)
    alone = ask(made(section(**keys), 1), teacher_logits(1), epoch=30)
    assert together.soft.item() == pytest.approx(alone.soft.item(), rel=1e-12)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("kind", ["kd", "dkd", "dist"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: str, standardize: bool) -> None:
    for keys in ({}, {"dense": True}):
        x = teacher_logits()
        x.t = x.z.expand(3, -1, -1)
        z = x.z = x.z.clone().requires_grad_()
        soft = ask(made(section(kind=kind, temperature=3.0, standardize=standardize, **keys)), x, epoch=30).soft
        (gradient,) = torch.autograd.grad(soft, z)
        assert soft.item() == pytest.approx(0, abs=2e-5 if kind == "dist" else 1e-14)  # DIST keeps an epsilon
        assert gradient.abs().max() < (2e-5 if kind == "dist" else 1e-14)


def test_standardised_logits_wrap_any_loss_of_logits() -> None:
    x = teacher_logits(1)
    z, t = losses.standardize(x.z), losses.standardize(x.t[0])
    expected = {
        "kd": losses.kd(z, t, 2.0),
        "dkd": losses.dkd(z, t, x.labels, 2.0),
        "dist": losses.dist(z, t, 2.0),
        "at": kinds.build(section(kind="at"), STUDENT, TEACHERS[:1])(x.features, x.teachers)[0]
        + 0.5 * losses.kd(z, t, 2.0),
    }
    for kind, soft in expected.items():
        more = {"kd_weight": 0.5} if kind == "at" else {}
        found = ask(made(section(kind=kind, temperature=2.0, standardize=True, **more), 1), x, epoch=99)
        torch.testing.assert_close(found.soft, soft)


def test_the_ensembles_features_are_averaged_over_teachers() -> None:
    x = teacher_logits()
    for kind in ("hint", "at", "rkd"):
        objective = made(section(kind=kind))
        terms = objective.kind(x.features, x.teachers)
        torch.testing.assert_close(ask(objective, x).soft, sum(terms) / 3)


def test_dkd_warms_up_linearly_over_its_epochs() -> None:
    objective, x = made(section(kind="dkd", warmup_epochs=20), 1), teacher_logits(1)
    full = losses.dkd(x.z, x.t[0], x.labels, 1.0).item()
    for epoch, share in ((0, 0.05), (9, 0.5), (19, 1.0), (150, 1.0)):
        assert ask(objective, x, epoch=epoch).soft.item() == pytest.approx(share * full, rel=1e-12)
    unwarmed = made(section(kind="dkd", warmup_epochs=0), 1)
    assert ask(unwarmed, x).soft.item() == pytest.approx(full, rel=1e-12)


def test_dense_is_the_mean_of_the_teachers_terms() -> None:
    x = teacher_logits()
    terms = [losses.kd(x.z, t, 2.0).item() for t in x.t]
    found = ask(made(section(dense=True, temperature=2.0, alpha=0.4)), x)
    hard = F.cross_entropy(x.z, x.labels).item()
    # the paper's sum, (n + 1)(1 - lambda) CE + lambda sum KD, over n + 1 = 3
    assert found.total.item() == pytest.approx((3 * 0.4 * hard + 0.6 * sum(terms)) / 3, rel=1e-12)


def test_dropped_terms_follow_from_seed_and_step_alone() -> None:
    for drop in (0, 1, 2, 3, 9):
        for step in range(50):
            kept = kept_terms(3, drop, seed=7, step=step)
            assert kept == kept_terms(3, drop, seed=7, step=step)
            assert len(set(kept)) == max(3 - drop, 1) and set(kept) <= {0, 1, 2}
    draws = [tuple(kept_terms(4, 2, seed=7, step=step)) for step in range(3000)]
    other = [tuple(kept_terms(4, 2, seed=8, step=step)) for step in range(3000)]
    assert draws != other
    counts = Counter(draws)
    assert len(counts) == 6
    chi2 = sum((n - 500) ** 2 / 500 for n in counts.values())
    assert chi2 < 20.5  # 99.9 % of fair draws (5 degrees of freedom); the seed is fixed


def test_dropping_keeps_the_hard_term_and_the_expected_loss() -> None:
    x = teacher_logits()
    terms = [losses.kd(x.z, t, 1.0).item() for t in x.t]
    objective = made(section(dense=True, drop=1))
    soft = []
    for step in range(600):
        found = ask(objective, x, seed=3, step=step)
        kept = kept_terms(3, 1, 3, step)
        assert found.soft.item() == pytest.approx(sum(terms[i] for i in kept) / 2, rel=1e-12)
        assert found.hard.item() == F.cross_entropy(x.z, x.labels).item()
        soft.append(found.soft.item())
    assert sum(soft) / 600 == pytest.approx(sum(terms) / 3, rel=0.02)


def test_weights_may_be_numbers_or_a_tensor() -> None:
    x = teacher_logits()
    for keys, count in (({"kind": "dkd"}, 1), ({"dense": True, "drop": 1}, 3), ({"kind": "dkd", "dense": True}, 3)):
        objective = made(section(**keys))
        numbers = objective.schedule(5, 3, 777)
        assert len(numbers) == count
        tensor = torch.tensor(numbers, dtype=torch.float64)
        found = objective(x.z, x.labels, x.t, x.features, x.teachers, tensor)
        assert found.total.item() == pytest.approx(ask(objective, x, seed=5, epoch=3, step=777).total.item(), rel=1e-12)


def test_adaptive_by_hand() -> None:
    x = teacher_logits()
    objective = made(section(weighting="adaptive", temperature=2.0, adaptive_angle=3.0, adaptive_hint=5.0))
    weights = objective.teacher_weights(x.features.pooled).exp()  # [B, T]
    soft = torch.softmax(x.t / 2, -1)
    target = sum(weights[:, i : i + 1] * soft[i] for i in range(3))
    q = torch.softmax(x.z / 2, -1)
    kd = 4 * (target * (target / q).log()).sum(1).mean()
    structure = feature_losses.angle(q, target)
    expected = kd + 3 * structure + 5 * objective.hints(x.features, x.teachers)
    torch.testing.assert_close(ask(objective, x).soft, expected)


def test_adaptive_weighs_features_too() -> None:
    x = teacher_logits()
    objective = made(section(kind="rkd", weighting="adaptive", adaptive_angle=0.0, adaptive_hint=0.0))
    share = objective.teacher_weights(x.features.pooled).exp().mean(0)
    terms = objective.kind(x.features, x.teachers)
    torch.testing.assert_close(ask(objective, x).soft, sum(share[i] * terms[i] for i in range(3)))


def test_adaptive_parameters_are_the_objectives_and_each_has_a_gradient() -> None:
    objective, x = made(section(weighting="adaptive")), teacher_logits()
    names = {name for name, _ in objective.named_parameters()}
    assert {"teacher_weights.factors", "teacher_weights.score"} < names
    assert sum(name.startswith("hints.regressors") for name in names) == 2 * 3
    ask(objective, x).total.backward()
    for name, p in objective.named_parameters():
        assert p.grad.abs().max() > 0, name


def test_adaptive_weights_learn_whom_to_trust() -> None:
    # The student agrees with teacher 0 on some images, with teacher 1 on the others, as a feature tells.
    objective, x = made(section(weighting="adaptive", adaptive_hint=0.0), 2), teacher_logits(2)
    first = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64)
    x.z = torch.where(first[:, None] == 1, x.t[0], x.t[1])
    x.features.pooled[:, 0] = 4 * first - 2
    before = ask(objective, x).soft.item()
    sgd = torch.optim.SGD(objective.parameters(), lr=0.5, momentum=0.9)
    for _ in range(150):
        sgd.zero_grad()
        ask(objective, x).total.backward()
        sgd.step()
    weight = objective.teacher_weights(x.features.pooled).exp()[:, 0]
    assert weight[:3].min() > 0.9 and weight[3:].max() < 0.1
    assert ask(objective, x).soft.item() < before / 10


def test_hint_regressors_are_trained_too() -> None:
    objective, x = made(section(kind="hint")), teacher_logits()
    before = ask(objective, x).soft.item()
    sgd = torch.optim.SGD(objective.parameters(), lr=0.01)
    for _ in range(20):
        sgd.zero_grad()
        ask(objective, x).total.backward()
        sgd.step()
    assert ask(objective, x).soft.item() < before


def test_the_weights_follow_from_torchs_generator_and_load_again() -> None:
    keys = section(kind="hint", weighting="adaptive")
    a, b = made(keys), made(keys)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    with torch.no_grad():
        for p in a.parameters():
            p.add_(0.1)
    twin = copy.deepcopy(a)
    b.load_state_dict(a.state_dict())
    x = teacher_logits()
    assert ask(a, x).total.item() == ask(b, x).total.item() == ask(twin, x).total.item()


def test_half_precision_is_raised_before_anything_is_computed() -> None:
    x = teacher_logits()
    for keys in ({}, {"kind": "hint"}, {"kind": "rkd"}, {"weighting": "adaptive"}):
        halves = [Features([m.half() for m in f.maps], f.pooled.half()) for f in (x.features, *x.teachers)]
        doubles = [Features([m.double() for m in f.maps], f.pooled.double()) for f in halves]
        z, t = x.z.bfloat16(), x.t.half()
        weights = made(section(**keys)).schedule(0, 0, 0)
        expected = made(section(**keys))(z.double(), x.labels, t.double(), doubles[0], doubles[1:], weights)
        with torch.autocast("cpu", torch.bfloat16):
            found = made(section(**keys)).float()(z, x.labels, t, halves[0], halves[1:], weights)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == torch.float32
            assert a.item() == pytest.approx(b.item(), rel=2e-6)


def test_teachers_are_never_asked_for_gradients() -> None:
    x = teacher_logits()
    x.t.requires_grad_()
    for teacher in x.teachers:
        teacher.pooled.requires_grad_()
    x.z.requires_grad_()
    ask(made(section(kind="rkd", weighting="adaptive", kd_weight=1.0)), x).total.backward()
    assert x.z.grad is not None
    assert x.t.grad is None and all(teacher.pooled.grad is None for teacher in x.teachers)


def test_features_are_asked_for_where_they_are_needed() -> None:
    for kind in KINDS:
        assert section(kind=kind).needs_features == (kind in ("hint", "at", "rkd"))
        assert section(kind=kind, weighting="adaptive").needs_features
        assert made(section(kind=kind)).needs_features == section(kind=kind).needs_features


def test_contradicting_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"distill\.weighting"):
        Recipe(distill=section(dense=True, weighting="adaptive"))
    with pytest.raises(ValueError, match=r"distill\.view"):
        Recipe(distill=section(kind="at", view="patch"))


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    import torchvision.models as tv

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = {
            "gns:0.5": zoo.build("gns:0.5"),
            "resnet18": zoo.build("resnet18").eval(),
            "squeezenet": tv.squeezenet1_1(num_classes=10).eval(),
            "vit": tv.VisionTransformer(32, 8, 1, 2, 24, 48, num_classes=10).eval(),
        }
        torch.nn.init.normal_(networks["vit"].heads.head.weight)  # torchvision starts it at zero: no answer at all
    return networks


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pair", [("gns:0.5", "resnet18"), ("gns:0.5", "vit"), ("vit", "gns:0.5")])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_teaches_across_every_pair(networks, kind: str, pair: tuple[str, str], strategy: str) -> None:
    names = [pair[1]] if strategy == "one" else [pair[1], "squeezenet"]
    recipe = Recipe(distill=section(kind=kind, alpha=0.0, temperature=4.0, **STRATEGIES[strategy]))
    student, teachers = networks[pair[0]], [networks[name] for name in names]
    objective = distill.build_for(recipe, student, teachers, 32)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([1, 5, 9, 0])
    with torch.no_grad():
        answers = [Tap(teacher)(x) for teacher in teachers]
    logits, features = Tap(student)(x)
    told, theirs = torch.stack([a for a, _ in answers]), [f for _, f in answers]
    found = objective(logits, labels, told, features, theirs, objective.schedule(0, 30, 0))
    student.zero_grad()
    found.total.backward()
    assert found.total.isfinite() and found.soft > 0
    gradients = [p.grad for p in (*student.parameters(), *objective.parameters()) if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    first = next(p for p in student.parameters() if p.ndim == 4)
    assert first.grad.abs().max() > 0
    assert all(p.grad is not None for p in objective.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_waits_for_the_device(kind: str, strategy: str) -> None:
    n = 1 if strategy == "one" else 3
    x, keys = teacher_logits(n), section(kind=kind, drop=1, **STRATEGIES[strategy])
    objective = made(keys, n).cuda()
    z, labels, t = x.z.cuda().requires_grad_(), x.labels.cuda(), x.t.cuda()
    features, *teachers = (Features([m.cuda() for m in f.maps], f.pooled.cuda()) for f in (x.features, *x.teachers))
    weights = torch.tensor(objective.schedule(0, 1, 1), dtype=torch.float64, device="cuda")
    objective(z, labels, t, features, teachers, weights).total.backward()  # warms up
    torch.cuda.set_sync_debug_mode("error")
    try:
        objective(z, labels, t, features, teachers, weights).total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
