"""Losses on logits against closed forms in float64, written out here sample by sample and class by class."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from torch import Tensor

from ghostcli.distill import losses
from ghostcli.recipe.models import KD

B, C = 5, 4


def draw(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def student() -> Tensor:
    return draw(B, C, seed=1)


@pytest.fixture
def teacher() -> Tensor:
    return draw(B, C, seed=2)


@pytest.fixture
def labels() -> Tensor:
    return torch.tensor([0, 3, 1, 2, 3])


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    top = max(row)
    exps = [math.exp((x - top) / temperature) for x in row]
    return [x / sum(exps) for x in exps]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kd_by_hand(z: Tensor, t: Tensor, temperature: float) -> float:
    rows = zip(z.tolist(), t.tolist(), strict=True)
    return temperature**2 * sum(kl(softmax(b, temperature), softmax(a, temperature)) for a, b in rows) / len(z)


def pearson(x: list[float], y: list[float]) -> float:
    mx, my = sum(x) / len(x), sum(y) / len(y)
    cov = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cov / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def spread(row: list[float]) -> tuple[float, float]:
    mean = sum(row) / len(row)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in row) / len(row))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_is_the_written_out_divergence(student: Tensor, teacher: Tensor, temperature: float) -> None:
    assert losses.kd(student, teacher, temperature).item() == pytest.approx(
        kd_by_hand(student, teacher, temperature), rel=1e-12
    )


def test_hot_kd_is_half_the_squared_difference_of_centred_logits(student: Tensor, teacher: Tensor) -> None:
    centred = [x - x.mean(1, keepdim=True) for x in (student, teacher)]
    limit = (centred[0] - centred[1]).square().sum(1).mean().item() / (2 * C)
    far, near = (abs(losses.kd(student, teacher, t).item() / limit - 1) for t in (1e2, 1e3))
    assert near < 2e-3
    assert near < far / 5  # the error falls as 1 / T


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_of_equals_is_zero_and_flat(teacher: Tensor, temperature: float) -> None:
    student = teacher.clone().requires_grad_()
    loss = losses.kd(student, teacher, temperature)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == 0
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_dkd_is_its_two_written_out_parts(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> None:
    binary = others = 0.0
    for z, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        q, p = softmax(z, temperature)[y], softmax(t, temperature)[y]
        binary += kl([p, 1 - p], [q, 1 - q])
        rest_z, rest_t = z[:y] + z[y + 1 :], t[:y] + t[y + 1 :]
        others += kl(softmax(rest_t, temperature), softmax(rest_z, temperature))
    expected = temperature**2 * (0.7 * binary + 8.0 * others) / B
    found = losses.dkd(student, teacher, labels, temperature, 0.7, 8.0)
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_coupled_again_is_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> None:
    p_target = torch.softmax(teacher / temperature, 1).gather(1, labels[:, None])[:, 0]
    coupled = losses.dkd(student, teacher, labels, temperature, 1.0, 1 - p_target)
    torch.testing.assert_close(coupled, losses.kd(student, teacher, temperature), rtol=1e-12, atol=0)


def test_dkd_of_a_certain_teacher_stays_finite(labels: Tensor) -> None:
    certain = 200.0 * torch.nn.functional.one_hot(labels, C).float()
    student = torch.zeros(B, C, requires_grad=True)
    loss = losses.dkd(student, certain, labels, 1.0)
    loss.backward()
    assert loss.isfinite() and student.grad.isfinite().all()
    assert loss.item() == pytest.approx(math.log(C), rel=1e-6)  # KL([1, 0] || [1/C, 1 - 1/C]); the others agree


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dist_is_one_minus_the_written_out_correlations(student: Tensor, teacher: Tensor, temperature: float) -> None:
    q = [softmax(row, temperature) for row in student.tolist()]
    p = [softmax(row, temperature) for row in teacher.tolist()]
    inter = 1 - sum(pearson(a, b) for a, b in zip(q, p, strict=True)) / B
    intra = 1 - sum(pearson([r[k] for r in q], [r[k] for r in p]) for k in range(C)) / C
    found = losses.dist(student, teacher, temperature, 2.0, 0.5).item()
    assert found == pytest.approx(temperature**2 * (2 * inter + 0.5 * intra), rel=1e-5)  # their 1e-8 aside


def test_correlation_forgives_positive_affine_maps_only() -> None:
    x, y = draw(3, 40, seed=3), draw(3, 40, seed=4)
    scale, shift = torch.rand(3, 1, dtype=torch.float64) + 0.1, draw(3, 1, seed=5)
    torch.testing.assert_close(losses.correlation(x, scale * y + shift), losses.correlation(x, y), rtol=1e-8, atol=0)
    torch.testing.assert_close(losses.correlation(x, -scale * y), -losses.correlation(x, y), rtol=1e-8, atol=0)


def test_dist_forgives_a_flatter_teacher() -> None:
    q = torch.softmax(draw(6, C, seed=6), 1)
    flatter = (0.3 * q + 0.7 / C).log()  # rows and columns of q, shrunk towards the uniform
    assert losses.dist(q.log(), flatter, 1.0).item() == pytest.approx(0, abs=1e-6)
    assert losses.kd(q.log(), flatter, 1.0).item() > 0.05


def test_a_batch_of_one_has_a_finite_dist(student: Tensor, teacher: Tensor) -> None:
    z = student[:1].clone().requires_grad_()
    loss = losses.dist(z, teacher[:1], 1.0)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


def test_standardized_rows(student: Tensor) -> None:
    for row, found in zip(student.tolist(), losses.standardize(student).tolist(), strict=True):
        mean, std = spread(row)
        assert found == pytest.approx([(x - mean) / std for x in row], rel=1e-12)
    torch.testing.assert_close(losses.standardize(7 * student - 3), losses.standardize(student), rtol=1e-12, atol=0)
    assert losses.standardize(torch.full((2, C), 3.0)).abs().max() == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_combined_teachers_by_hand(temperature: float) -> None:
    t = draw(3, B, C, seed=7)
    rows = [[t[i, b].tolist() for i in range(3)] for b in range(B)]
    for b, teachers in enumerate(rows):
        mean = [sum(x[k] for x in teachers) / 3 for k in range(C)]
        assert losses.combine(t, "logits", temperature)[b].tolist() == pytest.approx(mean, rel=1e-12)

        soft = [softmax(x, temperature) for x in teachers]
        found = softmax(losses.combine(t, "probabilities", temperature)[b].tolist(), temperature)
        assert found == pytest.approx([sum(x[k] for x in soft) / 3 for k in range(C)], rel=1e-12)

        moments = [spread(x) for x in teachers]
        scale, middle = (sum(m[i] for m in moments) / 3 for i in (1, 0))
        votes = [sum((x[k] - m) / s for x, (m, s) in zip(teachers, moments, strict=True)) / 3 for k in range(C)]
        found = losses.combine(t, "standardized", temperature)[b].tolist()
        assert found == pytest.approx([v * scale + middle for v in votes], rel=1e-12)


@pytest.mark.parametrize("how", ["logits", "probabilities", "standardized"])
def test_one_teacher_and_identical_teachers_say_what_it_says(teacher: Tensor, student: Tensor, how: str) -> None:
    alone = losses.kd(student, teacher, 3.0)
    for n in (1, 4):
        together = losses.combine(teacher.expand(n, -1, -1), how, 3.0)
        torch.testing.assert_close(losses.kd(student, together, 3.0), alone, rtol=1e-12, atol=0)


def test_standardized_combination_gives_each_teacher_an_equal_say(teacher: Tensor) -> None:
    loud = torch.stack([100 * teacher, -teacher])  # opposite opinions, one of them shouted
    assert losses.combine(loud, "standardized", 1.0).sub(teacher.mean(1, keepdim=True) * 49.5).abs().max() < 1e-4
    assert (losses.combine(loud, "logits", 1.0).argmax(1) == teacher.argmax(1)).all()


def test_entropy_by_hand(teacher: Tensor) -> None:
    expected = sum(-sum(p * math.log(p) for p in softmax(row, 2.0)) for row in teacher.tolist()) / B
    assert losses.entropy(teacher, 2.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("epsilon", [0.0, 1e-4, 0.1, 0.5, 0.999, 1.0])
def test_matched_smoothing_undoes_the_smoothed_entropy(classes: int, epsilon: float) -> None:
    target = [1 - epsilon + epsilon / classes] + [epsilon / classes] * (classes - 1)
    entropy = -sum(p * math.log(p) for p in target if p > 0)
    assert losses.smoothed_entropy(epsilon, classes) == pytest.approx(entropy, rel=1e-12, abs=1e-12)
    found = losses.matched_smoothing(entropy, classes)
    assert losses.smoothed_entropy(found, classes) == pytest.approx(entropy, abs=1e-10)
    assert found == pytest.approx(epsilon, abs=1e-5)


def test_matched_smoothing_is_as_soft_as_the_teacher() -> None:
    teacher = draw(200, 10, seed=8)
    epsilon = losses.matched_smoothing(losses.entropy(teacher, 4.0).item(), 10)
    onehot = torch.nn.functional.one_hot(torch.arange(10)).double()
    smoothed = (1 - epsilon) * onehot + epsilon / 10
    assert losses.entropy(smoothed.log()).item() == pytest.approx(losses.entropy(teacher, 4.0).item(), abs=1e-10)
    with pytest.raises(ValueError, match="nats"):
        losses.matched_smoothing(2.5, 10)


def test_gradients_are_those_of_finite_differences(student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    z, t = student.requires_grad_(), teacher.requires_grad_()
    weights = torch.log_softmax(draw(B, 2, seed=9), 1).requires_grad_()
    functions = {
        "kd": lambda z, t: losses.kd(z, t, 3.0),
        "dkd": lambda z, t: losses.dkd(z, t, labels, 3.0),
        "dist": lambda z, t: losses.dist(z, t, 3.0),
        "standardized": lambda z, t: losses.kd(losses.standardize(z), losses.standardize(t), 2.0),
        "probabilities": lambda z, t: losses.combine(torch.stack([z, t]), "probabilities", 2.0),
        "equal say": lambda z, t: losses.combine(torch.stack([z, t]), "standardized", 2.0),
    }
    for name, function in functions.items():
        assert torch.autograd.gradcheck(function, (z, t)), name
    assert torch.autograd.gradcheck(lambda z, t, w: losses.mixture(torch.stack([z, t]), w, 2.0), (z, t, weights))


@pytest.mark.parametrize("network", oracles.NETWORKS)
def test_the_authors_losses(network: str) -> None:
    from ghostcli.distill.objective import Objective

    golden = oracles.golden(network)
    logits, labels = golden["train_logits"], golden["labels"].long()
    teachers = golden["teacher_logits"].double()[None]
    for temperature, alpha in ((1.0, 0.5), (4.0, 0.1)):
        objective = Objective(KD(temperature=temperature, alpha=alpha), teachers=1)
        found = objective(logits, labels, teachers, weights=objective.schedule(0, 0, 0))
        name = f"kd_loss_T{temperature:.0f}_alpha{alpha}"
        assert found.total.item() == pytest.approx(golden[name].item(), rel=1e-9, abs=1e-9)
        assert found.hard.item() == pytest.approx(golden["cross_entropy"].item(), rel=1e-9, abs=1e-9)
