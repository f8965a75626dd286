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
from ghostcli.zoo.folded import Depthwise
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


SUMS = [((1, 1), 1), *((window, stride) for window in native.WINDOWS for stride in (1, 2))]
SHAPES = [(5, 8, 8, 8), (3, 7, 6, 19), (2, 1, 5, 3), (4, 2, 1, 16), (1, 16, 9, 40), (2, 12, 12, 2), (13, 1, 1, 20)]


def parameters(k: tuple[int, int], stride: int, c: int, o: int, *, whole: bool = True) -> tuple[Branches, Running]:
    """Three branches, with scale and identity where there is one. One branch alone, as of a `Chain`, if not `whole`."""

    def norm(*shape: int, there: bool = True) -> tuple[torch.Tensor | None, ...]:
        return (torch.rand(*shape) + 0.5, torch.randn(*shape)) if there else (None, None)

    dense, count = k == (1, 1), 3 if whole else 1
    scale = torch.rand(o) + 0.5 if whole and not dense else None
    weight = torch.randn(count, o, c if dense else 1, *k)
    weight += 0.3 * weight.sign()  # of one pixel, batch norm would enlarge a tiny weight, with its rounding
    norms = *norm(count, o), scale, *norm(o, there=scale is not None), *norm(o, there=whole and stride == 1 and o == c)
    branches = Branches(weight, *norms)
    gains = (branches.gamma, branches.scale_gamma, branches.identity_gamma)
    running = [(torch.zeros_like(gain), torch.ones_like(gain)) for gain in gains if gain is not None]
    return branches, Running(tuple(running), 0.1, torch.tensor(0))


def as_type(dtype: torch.dtype, branches: Branches, running: Running) -> tuple[Branches, Running]:
    """Copies of that precision."""
    norms = tuple(tuple(t.to(dtype, copy=True) for t in pair) for pair in running.norms)
    own = Branches(*(None if t is None else t.to(dtype, copy=True) for t in branches))
    return own, running._replace(norms=norms, batches=running.batches.clone())


@needs_compiler
@pytest.mark.parametrize("k, stride", SUMS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("within, whole", [(0, True), (5, True), (5, False)])
@pytest.mark.parametrize("way", ["alone", "into a slice", "beside"])
def test_a_sum_is_that_of_float64(k, stride, shape, within, whole, way):
    """Output, all gradients and the running statistics. Maps of one or two pixels go by plain PyTorch."""
    if way == "beside" and (k, stride) != ((3, 3), 1):
        pytest.skip("only a 3 x 3 sum of stride 1 is written beside its input")
    torch.manual_seed(0)
    dense, relu, (n, h, w, c) = k == (1, 1), way == "alone", shape
    o = c + 5 if dense and within else c
    side = n, -(-h // stride), -(-w // stride)
    known = parameters(k, stride, c, o, whole=whole)
    maps = [pixels(*size, within=within) for size in (shape, shape, (*side, o), (n, h, w, 2 * c))]
    of_pool = torch.randn_like(pytorch.pool(maps[0]))

    def everything(ops, dtype):
        branches, running = as_type(dtype, *known)
        x, add, dz, beside = (t.to(dtype) for t in maps)
        wide = torch.zeros(*side, o + 4, dtype=dtype)
        into = {"into a slice": {"out": wide[..., 2:-2]}, "beside": {"add": beside}}.get(way, {})
        out, kept = sums.forward(ops, x, branches, running, k, stride, relu, **into)
        more = {"add": add} | ({"pooled": of_pool.to(dtype)} if dense else {"mask": True})
        back = sums.backward(ops, dz, out if relu else None, x, branches, kept, k, stride, **more)
        none, again = sums.backward(ops, dz, out if relu else None, x, branches, kept, k, stride, needed=False)
        assert none is None
        for a, b in zip(back[1], again, strict=True):
            assert a is b is None or torch.equal(a, b)
        followed = [statistic for pair in running.norms for statistic in pair]
        return [out, wide, back[0], *(g for g in back[1] if g is not None), *followed, running.batches]

    for ours, theirs in zip(everything(native, torch.float32), everything(pytorch, torch.float64), strict=True):
        close = {"rtol": 1e-4, "atol": 5e-5 * float(theirs.abs().max().clamp(min=1))}
        torch.testing.assert_close(ours.double(), theirs.double(), **close)


@needs_compiler
@pytest.mark.parametrize("k", [(1, 1), (3, 3)])
@pytest.mark.parametrize("what", ["bfloat16", "a slice", "one pixel"])
def test_what_the_kernels_cannot_read_is_a_sum_of_plain_pytorch(k, what):
    if what == "one pixel" and k == (1, 1):
        pytest.skip("a 1x1 sum reads one pixel as any other")
    torch.manual_seed(0)
    x = pixels(6, 1, 1, 8) if what == "one pixel" else pixels(2, 5, 5, 8)
    branches, running = parameters(k, 1, 8, 8)
    if what == "bfloat16":
        branches, running = as_type(torch.bfloat16, branches, running)
    elif what == "a slice":
        branches = branches._replace(gamma=torch.rand(8, 3).T)

    def everything(ops):
        mine = running._replace(norms=tuple((mean.clone(), var.clone()) for mean, var in running.norms))
        out, kept = sums.forward(ops, x, branches, mine, k, 1, True)
        assert len(kept) == len(Fold._fields)
        dx, grads = sums.backward(ops, torch.ones_like(out), out, x, branches, kept, k, 1)
        return [out, dx, *(g for g in grads if g is not None), *mine.norms[0]]

    for ours, theirs in zip(everything(native), everything(pytorch), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("ops", [pytest.param(native, marks=needs_compiler), pytorch])
@pytest.mark.parametrize("k, stride", SUMS[1:], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("within", [0, 5])
def test_a_depthwise_convolution_alone_is_torchs(ops, k, stride, shape, within):
    torch.manual_seed(0)
    step, x, weight = Depthwise(stride), pixels(*shape, within=within), torch.randn(shape[3], 1, *k)
    leaves = [t.double().requires_grad_() for t in (x, weight)]
    padding = [taps // 2 for taps in k]
    expected = F.conv2d(leaves[0].permute(0, 3, 1, 2), leaves[1], None, stride, padding, 1, shape[3])
    expected = expected.permute(0, 2, 3, 1)
    out, kept = step.forward(ops, x, (weight,))
    dz = pixels(*out.shape, within=within)
    dx, (dweight,) = step.backward(ops, dz, (weight,), kept, True)
    assert step.backward(ops, dz, (weight,), kept, False)[0] is None
    found = *torch.autograd.grad((expected * dz).sum(), leaves), expected.detach()
    for ours, theirs in zip((dx, dweight, out), found, strict=True):
        close = {"rtol": 2e-5, "atol": 2e-5 * float(theirs.abs().max().clamp(min=1))}
        torch.testing.assert_close(ours.double(), theirs, **close)


@pytest.mark.parametrize("ops", [pytest.param(native, marks=needs_compiler), pytorch])
@pytest.mark.parametrize("k, stride", SUMS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("within, relu", [(0, False), (5, True)])
def test_a_convolution_with_a_bias_is_torchs(ops, k, stride, shape, within, relu):
    """As a folded network has it. The output may be a slice of a wider map."""
    torch.manual_seed(0)
    x, c = pixels(*shape, within=within), shape[3]
    o, inputs = (c + 5, c) if k == (1, 1) else (c, 1)
    weight, bias = torch.randn(o, inputs, *k), torch.randn(o)
    padding = [taps // 2 for taps in k]
    images, groups = x.permute(0, 3, 1, 2).double(), c // inputs
    expected = F.conv2d(images, weight.double(), bias.double(), stride, padding, 1, groups).permute(0, 2, 3, 1)
    wide = torch.zeros(*expected.shape[:3], o + within)[..., within // 2 : within // 2 + o]
    out = ops.convolve(x, weight.flatten(1), bias, k, stride, relu, wide if within else None)
    assert not within or torch.equal(out, wide)
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(out.double(), expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


@needs_compiler
@pytest.mark.parametrize("c", [16, 40, 60])
def test_long_vectors_and_short_ones_agree(c, monkeypatch):
    """A processor without AVX-512 has short ones only: a run goes on there."""
    if library.wide_library() is None:
        pytest.skip("this processor has no AVX-512")
    torch.manual_seed(0)
    x, gamma, beta = pixels(3, 8, 8, c), torch.rand(c), torch.randn(c)
    branches, running = parameters((3, 3), 1, c, c)

    def everything():
        z, kept = sums.forward(native, x, branches, running, (3, 3), 1, True)
        dx, grads = sums.backward(native, z, None, x, branches, kept, (3, 3), 1)
        return z, dx, grads[0], *native.normalise(x, gamma, beta, 1e-5, True)

    wide = everything()
    monkeypatch.setattr(library, "wide_library", lambda: None)
    for a, b in zip(wide, everything(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


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


@pytest.mark.parametrize("shape", [(3, 5, 4, 6), (2, 1, 1, 20), (2, 8, 8, 16), (1, 3, 9, 3)])
@pytest.mark.parametrize("within", [0, 3])
def test_a_map_beside_its_convolution_and_another_map_added(shape, within):
    torch.manual_seed(0)
    c = shape[3]
    x, add = pixels(*shape, within=within), pixels(*shape[:3], 2 * c, within=within)
    kernel, bias = torch.randn(c, 9), torch.randn(c)
    alone = F.conv2d(x.permute(0, 3, 1, 2).double(), kernel.view(c, 1, 3, 3).double(), bias.double(), 1, 1, 1, c)
    expected = torch.cat([x.double(), alone.permute(0, 2, 3, 1)], 3) + add
    torch.testing.assert_close(pytorch.beside(x, kernel, bias, add).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8, 8, 6), (2, 7, 5, 20), (3, 1, 6, 16), (2, 1, 1, 3)])
def test_the_gradients_of_a_pool_and_of_a_shortcut_are_added(shape):
    """`adjoint` of a 1x1 sum, of whose input an average pool and a shortcut are taken too."""
    torch.manual_seed(0)
    c = shape[3]
    x, dz, add = pixels(*shape), pixels(*shape[:3], 5), pixels(*shape, within=2)
    kernel, S, t = torch.randn(5, c), torch.randn(c, c), torch.randn(c)
    pooled = torch.randn_like(pytorch.pool(x))
    given = x.double().requires_grad_()
    pool = F.avg_pool2d(given.permute(0, 3, 1, 2), [min(2, side) for side in shape[1:3]]).permute(0, 2, 3, 1)
    torch.testing.assert_close(pytorch.pool(x).double(), pool.detach(), rtol=1e-5, atol=1e-5)
    (of_pool,) = torch.autograd.grad((pool * pooled).sum(), given)
    step = pytorch.reduce(dz, None, x, kernel, None, (1, 1), 1)
    found = pytorch.adjoint(step, x, kernel, S + S.T, t, (1, 1), 1, add, pooled=pooled)
    expected = dz.double() @ kernel.double() + x.double() @ (S + S.T).double() + t + add + of_pool
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 1), (3, 5, 7, 3), (4, 8, 8, 8), (5, 9, 9, 10), (2, 30, 31, 20), (3, 4, 4, 75)]
)
@pytest.mark.parametrize("relu", [True, False])
def test_a_batch_norm_is_torchs(shape, relu):
    """Float64 is the oracle. One channel is large and nearly constant: the squares need a pivot."""
    torch.manual_seed(0)
    x, dout, gamma, beta = pixels(*shape), pixels(*shape), torch.randn(shape[3]), torch.randn(shape[3])
    x[..., 0] = 50 + 0.1 * x[..., 0]
    leaves = [v.double().requires_grad_() for v in (x, gamma, beta)]
    expected = F.batch_norm(leaves[0].flatten(0, 2), None, None, *leaves[1:], training=True, eps=1e-5).view(shape)
    out, mean, var = native.normalise(x, gamma, beta, 1e-5, relu)
    torch.testing.assert_close(mean.double(), leaves[0].detach().mean((0, 1, 2)))
    torch.testing.assert_close(var.double(), leaves[0].detach().var((0, 1, 2), correction=0), rtol=1e-4, atol=1e-6)
    shown = expected * (out > 0) if relu else expected  # at a zero, rounding decides about the sign
    torch.testing.assert_close(out.double(), shown.detach(), rtol=1e-4, atol=1e-4)
    shown.backward(dout.double())
    found = native.normalise_backward(dout, out if relu else None, x, gamma, 1e-5, mean, var)
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
    x, known = pixels(7, 9, 9, 12), parameters((3, 3), 1, 12, 12)
    try:
        found = {}
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            first, second = (sums.forward(native, x, *known, (3, 3), 1, False)[0] for _ in range(2))
            assert torch.equal(first, second)
            found[threads] = first
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
