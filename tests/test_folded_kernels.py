"""The compiled kernels against plain PyTorch, and how they are had or done without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import crash
import pytest
import torch
import torch.nn.functional as F

from ghostcli.errors import UsageError
from ghostcli.zoo import kernels
from ghostcli.zoo.branches import Chain
from ghostcli.zoo.kernels import library, native, pytorch, sums
from ghostcli.zoo.kernels.algebra import Branches, Fold, Running

needs_compiler = pytest.mark.skipif(not native.available(), reason="no C++ compiler")
REPOSITORY = Path(__file__).parents[1]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, **environment}
    )


def pixels(*shape: int, within: int = 0) -> torch.Tensor:
    """[N, H, W, C], as a channel slice of a map `within` channels wider."""
    n, h, w, c = shape
    return torch.randn(n, h, w, c + within)[..., within // 2 : within // 2 + c]


@needs_compiler
@pytest.mark.parametrize(
    "k, stride", [((1, 1), 1), *((window, stride) for window in native.WINDOWS for stride in (1, 2))], ids=str
)
@pytest.mark.parametrize(
    "shape", [(5, 8, 8, 8), (3, 7, 6, 19), (2, 1, 5, 3), (4, 2, 1, 16), (1, 16, 9, 40), (2, 12, 12, 2)]
)
@pytest.mark.parametrize("within", [0, 5])
@pytest.mark.parametrize("relu, mask, add", [(True, True, True), (False, False, False)])
def test_every_operation_agrees_with_pytorch(k, stride, shape, within, relu, mask, add):
    torch.manual_seed(0)
    x = pixels(*shape, within=within)
    c = x.shape[3]
    dense = k == (1, 1)
    o = c + 5 if dense else c
    t = c if dense else k[0] * k[1]
    kernel, bias = torch.randn(o, t), torch.randn(o)
    S = torch.randn(*(() if dense else (c,)), t, t)
    S = S + S.transpose(-1, -2)
    constant = torch.randn(t if dense else (c, t))
    extra = pixels(*shape, within=within) if add else None

    def everything(ops):
        mean, cov = ops.moments(x, k, stride)
        out = torch.zeros(*ops.convolve(x, kernel, bias, k, stride, relu).shape[:3], o + within)[..., :o]
        z = ops.convolve(x, kernel, bias, k, stride, relu, out)
        assert torch.equal(z, out)
        torch.manual_seed(1)
        dz = pixels(*z.shape, within=within)
        step = ops.reduce(dz, z if relu else None, x, kernel, bias, k, stride)
        dx = ops.adjoint(step, x, kernel, S, constant, k, stride, extra, mask)
        step = ops.reduce(dz, z if relu else None, x, kernel, bias, k, stride)  # plain PyTorch uses up the first one
        alone = [] if dense else [ops.adjoint(step, x, kernel, None, None, k, stride, extra, mask)]
        return mean, cov, z, step.dkernel, step.dbias, dx, *alone

    for ours, theirs in zip(everything(native), everything(pytorch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5 * float(theirs.abs().max().clamp(min=1)))


@needs_compiler
@pytest.mark.parametrize("c", [16, 40, 60])
def test_long_vectors_and_short_ones_agree(c, monkeypatch):
    """A processor without AVX-512 has short ones only: a run goes on there."""
    if library.wide_library() is None:
        pytest.skip("this processor has no AVX-512")
    torch.manual_seed(0)
    x, gamma, beta = pixels(3, 8, 8, c), torch.rand(c), torch.randn(c)
    kernel, bias = torch.randn(c, 9), torch.randn(c)

    def everything():
        z = native.convolve(x, kernel, bias, (3, 3), 1, True)
        step = native.reduce(z, None, x, kernel, bias, (3, 3), 1)
        return z, step.dkernel, *native.normalise(x, gamma, beta, 1e-5, True)

    wide = everything()
    monkeypatch.setattr(library, "wide_library", lambda: None)
    for a, b in zip(wide, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@needs_compiler
@pytest.mark.parametrize("dense, out, branches, scale, identity", [
    (True, 12, 3, False, True), (True, 20, 3, False, False), (True, 12, 1, False, False),
    (False, 12, 3, True, True), (False, 12, 3, True, False), (False, 3, 1, False, False),
])  # fmt: skip
def test_the_algebra_agrees_with_pytorch(dense, out, branches, scale, identity):
    """Folding, its gradients and the running statistics, with every kind of branch, against float64."""
    torch.manual_seed(0)
    taps, place = (12, ()) if dense else (9, (out,))
    weight = torch.randn(branches, out, taps, 1, 1) if dense else torch.randn(branches, out, 1, 3, 3)
    extra = [torch.randn(out) for _ in range(5)]
    here = [scale] * 3 + [identity] * 2
    both = [weight, torch.rand(branches, out) + 0.5, torch.randn(branches, out)]
    both += [value if there else None for value, there in zip(extra, here, strict=True)]
    patches = torch.randn(*place, 50, taps) + 0.3
    mean, centred = patches.mean(-2), patches - patches.mean(-2, keepdim=True)
    cov = centred.transpose(-1, -2) @ centred / 50
    dkernel, dbias = torch.randn(out, taps), torch.randn(out)

    def everything(ops, dtype):
        p = Branches(*(None if t is None else t.to(dtype) for t in both))
        running = [(torch.zeros(branches, out, dtype=dtype), torch.ones(branches, out, dtype=dtype))]
        running += [(torch.zeros(out, dtype=dtype), torch.ones(out, dtype=dtype)) for _ in range(scale + identity)]
        fold = ops.fold(p, mean.to(dtype), cov.to(dtype), Running(tuple(running), 0.1), 50)
        grads, S, t = ops.unfold(p, fold, dkernel.to(dtype), dbias.to(dtype), 50)
        followed = [statistic for pair in running for statistic in pair]
        return [fold.kernel, fold.bias, fold.mean, fold.var, *(g for g in grads if g is not None), S, t, *followed]

    for ours, theirs in zip(everything(native, torch.float32), everything(pytorch, torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max().clamp(min=1)))


@needs_compiler
@pytest.mark.parametrize("k, stride", [((1, 1), 1), ((3, 3), 1), ((3, 3), 2), ((5, 5), 1)], ids=str)
@pytest.mark.parametrize("way", ["alone", "into a slice", "beside"])
def test_a_sum_in_one_call_has_the_bits_of_its_steps(k, stride, way, monkeypatch):
    if way == "beside" and (k, stride) != ((3, 3), 1):
        pytest.skip("only a 3 x 3 sum of stride 1 is written beside its input")
    dense, c = k == (1, 1), 12
    o = 20 if dense else c

    def everything():
        torch.manual_seed(0)
        x, norm = pixels(6, 9, 8, c), lambda *shape: (torch.rand(*shape) + 0.5, torch.randn(*shape))
        weight = torch.randn(3, o, c if dense else 1, *k)
        extra = (None,) * 5 if dense else (torch.randn(o), *norm(o), *(norm(o) if stride == 1 else (None, None)))
        branches = Branches(weight, *norm(3, o), *extra)
        here = [(3, o)] + [(o,)] * sum(gamma is not None for gamma in (branches.scale_gamma, branches.identity_gamma))
        running = Running(tuple((torch.zeros(shape), torch.ones(shape)) for shape in here), 0.1, torch.tensor(0))
        wide = torch.zeros(6, -(-9 // stride), -(-8 // stride), o + 4)
        into = {"out": wide[..., 2:-2]} if way == "into a slice" else {}
        into |= {"add": pixels(6, 9, 8, 2 * c)} if way == "beside" else {}
        z, kept = sums.forward(native, x, branches, running, k, stride, way != "beside", **into)
        z = z[..., c:] if way == "beside" else z
        masked, more = None if way == "beside" else z, {"add": pixels(6, 9, 8, c)}
        more |= {"pooled": pixels(6, 4, 4, c)} if dense else {"mask": True}
        back = sums.backward(native, pixels(*z.shape), masked, x, branches, kept, k, stride, **more)
        only = sums.backward(native, pixels(*z.shape), masked, x, branches, kept, k, stride, needed=False)
        assert only[0] is None
        followed = [statistic for pair in running.norms for statistic in pair]
        return len(kept), [z, wide, back[0], *back[1], *followed, running.batches]

    calls, ours = everything()
    monkeypatch.setattr(native, "reads", lambda *_: False)
    steps, theirs = everything()
    assert (calls, steps) == (1, len(Fold._fields))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize("dense", [True, False])
def test_weights_of_another_precision_are_not_read_as_float32(dense):
    torch.manual_seed(0)
    weight = torch.randn(2, 6, 6, 1, 1) if dense else torch.randn(2, 6, 1, 3, 3)
    p = Branches(*(t.bfloat16() for t in (weight, torch.rand(2, 6) + 0.5, torch.randn(2, 6))))
    taps = weight[0, 0].numel()
    mean, cov = (
        (torch.randn(taps), torch.eye(taps)) if dense else (torch.randn(6, taps), torch.eye(taps).repeat(6, 1, 1))
    )

    def everything(ops):
        fold = ops.fold(p, mean, cov)
        grads, S, t = ops.unfold(p, fold, torch.ones(6, taps), torch.ones(6), 50)
        return [fold.kernel, fold.bias, *grads[:3], S, t]

    for ours, theirs in zip(everything(native), everything(pytorch), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@needs_compiler
@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (6, 6, 1, 1)])
def test_a_chain_of_another_precision_is_refused_as_torch_refuses_it(shape):
    chain = Chain(torch.nn.Conv2d(6, shape[0], shape[2:], padding=shape[2] // 2, groups=6 // shape[1], bias=False))
    chain.append(torch.nn.BatchNorm2d(6)).bfloat16().train().mode = "folded"
    with pytest.raises(RuntimeError, match=r"(?i)type"):
        chain(torch.randn(2, 6, 4, 4))


@pytest.mark.parametrize("ops", [pytest.param(native, marks=needs_compiler), pytorch])
@pytest.mark.parametrize("side, coarse", [((8, 8), (4, 4)), ((7, 9), (3, 4)), ((5, 6), (1, 1)), ((2, 1), (1, 1))])
@pytest.mark.parametrize("within", [0, 3])
@pytest.mark.parametrize("gated, scaled", [(True, False), (False, True), (True, True)])
def test_a_map_times_its_gate_and_its_scale(ops, side, coarse, within, gated, scaled):
    """The gate by the nearest pixel. Sums, products and gradients by autograd in float64."""
    torch.manual_seed(0)
    x, dout = pixels(3, *side, 5, within=within), pixels(3, *side, 5, within=within)
    logits, scale = torch.randn(3, *coarse, 5), torch.randn(3, 5)
    leaves = [v.double().requires_grad_() for v in (x, logits, scale)]
    large = F.interpolate(leaves[1].sigmoid().permute(0, 3, 1, 2), side, mode="nearest").permute(0, 2, 3, 1)
    product = leaves[0] * large if gated else leaves[0]
    expected = [
        product.sum((1, 2)),
        (product * dout).sum((1, 2)),
        product * leaves[2][:, None, None] if scaled else product,
    ]
    gate = ops.opened(logits) if gated else None
    scale = scale if scaled else None
    found = [ops.total(x, gate), ops.total(x, gate, dout), ops.weigh(x, gate, scale)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-5, atol=1e-5)
    dtotal = torch.randn(3, 5) if scaled else None
    loss = (expected[2] * dout).sum() + (0 if dtotal is None else (expected[0] * dtotal).sum())
    dx, dlogits, _ = torch.autograd.grad(loss, leaves, allow_unused=True)
    for ours, theirs in zip(ops.weigh_backward(dout, x, gate, scale, dtotal), (dx, dlogits), strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("ops", [pytest.param(native, marks=needs_compiler), pytorch])
@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 1, 1, 20), (2, 8, 8, 16), (1, 3, 9, 3)])
@pytest.mark.parametrize("within", [0, 3])
def test_a_map_beside_its_convolution_and_another_map_added(ops, shape, within):
    torch.manual_seed(0)
    c = shape[3]
    x, add = pixels(*shape, within=within), pixels(*shape[:3], 2 * c, within=within)
    kernel, bias = torch.randn(c, 9), torch.randn(c)
    alone = F.conv2d(x.permute(0, 3, 1, 2).double(), kernel.view(c, 1, 3, 3).double(), bias.double(), 1, 1, 1, c)
    expected = torch.cat([x.double(), alone.permute(0, 2, 3, 1)], 3) + add
    torch.testing.assert_close(ops.beside(x, kernel, bias, add).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ops", [pytest.param(native, marks=needs_compiler), pytorch])
@pytest.mark.parametrize("shape", [(3, 8, 8, 6), (2, 7, 5, 20), (3, 1, 6, 16), (2, 1, 1, 3)])
def test_the_gradients_of_a_pool_and_of_a_shortcut_are_added(ops, shape):
    """`adjoint` of a 1x1 sum, of whose input an average pool and a shortcut are taken too."""
    torch.manual_seed(0)
    c = shape[3]
    x, dz, add = pixels(*shape), pixels(*shape[:3], 5), pixels(*shape, within=2)
    kernel, S, t = torch.randn(5, c), torch.randn(c, c), torch.randn(c)
    pooled = torch.randn_like(ops.pool(x))
    given = x.double().requires_grad_()
    pool = F.avg_pool2d(given.permute(0, 3, 1, 2), [min(2, side) for side in shape[1:3]]).permute(0, 2, 3, 1)
    torch.testing.assert_close(ops.pool(x).double(), pool.detach(), rtol=1e-5, atol=1e-5)
    (of_pool,) = torch.autograd.grad((pool * pooled).sum(), given)
    step = ops.reduce(dz, None, x, kernel, None, (1, 1), 1)
    found = ops.adjoint(step, x, kernel, S + S.T, t, (1, 1), 1, add, pooled=pooled)
    expected = dz.double() @ kernel.double() + x.double() @ (S + S.T).double() + t + add + of_pool
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ops", [pytest.param(native, marks=needs_compiler), pytorch])
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 1), (3, 5, 7, 3), (4, 8, 8, 8), (5, 9, 9, 10), (2, 30, 31, 20), (3, 4, 4, 75)]
)
@pytest.mark.parametrize("relu", [True, False])
def test_a_batch_norm_is_torchs(ops, shape, relu):
    """Float64 is the oracle. One channel is large and nearly constant: the squares need a pivot."""
    torch.manual_seed(0)
    x, dout, gamma, beta = pixels(*shape), pixels(*shape), torch.randn(shape[3]), torch.randn(shape[3])
    x[..., 0] = 50 + 0.1 * x[..., 0]
    leaves = [v.double().requires_grad_() for v in (x, gamma, beta)]
    expected = F.batch_norm(leaves[0].flatten(0, 2), None, None, *leaves[1:], training=True, eps=1e-5).view(shape)
    out, mean, var = ops.normalise(x, gamma, beta, 1e-5, relu)
    torch.testing.assert_close(mean.double(), leaves[0].detach().mean((0, 1, 2)))
    torch.testing.assert_close(var.double(), leaves[0].detach().var((0, 1, 2), correction=0), rtol=1e-4, atol=1e-6)
    shown = expected * (out > 0) if relu else expected  # at a zero, rounding decides about the sign
    torch.testing.assert_close(out.double(), shown.detach(), rtol=1e-4, atol=1e-4)
    shown.backward(dout.double())
    found = ops.normalise_backward(dout, out if relu else None, x, gamma, 1e-5, mean, var)
    for ours, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(ours.double(), leaf.grad, rtol=1e-3, atol=1e-3)


@needs_compiler
def test_a_chain_of_compiled_norms_is_the_plain_chain():
    """Outputs, gradients and running statistics, with a ReLU and without."""
    torch.manual_seed(0)
    chains = []
    for _ in range(2):
        torch.manual_seed(1)
        chain = Chain(torch.nn.Conv2d(3, 6, 3, bias=False), torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True))
        chain.extend([torch.nn.Conv2d(6, 6, 3, groups=6, padding=1, bias=False), torch.nn.BatchNorm2d(6)])
        chains.append(chain.train())
    plain, ours = chains
    ours.mode = "folded"
    x = torch.randn(4, 3, 9, 7)
    expected, found = plain(x), ours(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    for y in (expected, found):
        (y * weights).sum().backward()
    for (name, theirs), mine in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)
    for (name, theirs), mine in zip(plain.named_buffers(), ours.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=name)


@needs_compiler
def test_equal_results_for_an_equal_number_of_threads():
    before = torch.get_num_threads()
    x = pixels(7, 9, 9, 12)
    try:
        found = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            first, second = native.moments(x, (3, 3), 1), native.moments(x, (3, 3), 1)
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            found[threads] = first[1]
        torch.testing.assert_close(found[1], found[3])
    finally:
        torch.set_num_threads(before)


def test_the_environment_chooses(monkeypatch):
    x = torch.randn(2, 3, 3, 4)
    monkeypatch.setenv("GHOST_KERNEL", "pytorch")
    assert kernels.of(x) is pytorch and kernels.status()["name"] == "pytorch"
    monkeypatch.setenv("GHOST_KERNEL", "fortran")
    with pytest.raises(UsageError, match="auto, pytorch, cpp"):
        kernels.of(x)
    monkeypatch.setenv("GHOST_KERNEL", "auto")
    assert kernels.of(x.double()) is pytorch
    assert set(kernels.status()) == {"name", "why"}


STATUS = "from ghostcli.zoo import kernels; s = kernels.status(); print(s['name'], '|', s['why'])"


def test_without_a_compiler_pytorch_runs(tmp_path):
    done = python(STATUS, PATH=str(tmp_path), CXX="", GHOST_CACHE=str(tmp_path))
    assert done.stdout.startswith("pytorch | No C++ compiler"), done.stderr


def test_with_a_broken_compiler_pytorch_runs(tmp_path):
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\necho "internal error" >&2\nexit 1\n')
    broken.chmod(0o755)
    done = python(STATUS, CXX=str(broken), GHOST_CACHE=str(tmp_path / "cache"))
    assert done.stdout.startswith("pytorch | ") and "internal error" in done.stdout, done.stderr


def test_a_training_says_why_it_has_no_kernels_and_when_it_compiles_them(tmp_path):
    """It took many times as long, and only the record said so."""
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\necho "internal error" >&2\nexit 1\n')
    broken.chmod(0o755)
    words = [*crash.COMMANDS["plain"], *crash.TINY, "--seed", "0", "--seed", "1", "--runs", str(tmp_path)]
    environment = crash.ENVIRONMENT | {"CXX": str(broken), "GHOST_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-m", "ghostcli", *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("compiling the kernels for this processor") == 1
    assert done.stderr.count("trains slower than it could, in plain PyTorch") == 1 and "internal error" in done.stderr


@needs_compiler
def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "file").write_text("")
    done = python(STATUS, GHOST_CACHE=str(tmp_path / "file"))
    assert done.stdout.startswith("pytorch | "), done.stderr


@pytest.mark.long
@needs_compiler
def test_two_processes_build_one_library(tmp_path):
    command = [sys.executable, "-c", STATUS]
    env = {**os.environ, "GHOST_CACHE": str(tmp_path)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=env) for _ in range(2)]
    assert all(p.communicate()[0].startswith("c++ | ") for p in both)
    assert [p.suffix for p in tmp_path.iterdir()] == [".so"]
