"""The Triton kernels against plain PyTorch, under Triton's interpreter and, where there is one, on the device."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

AGREE = """
import sys
import torch
from ghostcli.zoo.kernels import pytorch, triton_depthwise as ours

device = sys.argv[1]
everything, nothing = (True, True, True), (False, False, False)  # relu, mask, add
one, three = (1, 1), (3, 3)
for k, (n, h, w, c), stride, (relu, mask, add), within, dtype in [
    (three, (3, 5, 6, 5), 1, everything, 3, torch.float32),
    (three, (2, 7, 4, 20), 1, nothing, 0, torch.float32),
    (three, (3, 5, 6, 5), 2, (True, False, False), 3, torch.float32),
    (three, (2, 8, 8, 3), 2, nothing, 0, torch.float32),
    (three, (2, 1, 1, 3), 1, everything, 0, torch.float32),
    (three, (2, 6, 6, 4), 1, (False, False, True), 2, torch.bfloat16),
    ((1, 5), (3, 4, 6, 9), 1, everything, 1, torch.float32),
    ((5, 1), (3, 5, 3, 17), 1, nothing, 0, torch.float32),
    ((5, 1), (2, 7, 3, 4), 2, nothing, 0, torch.float32),
    (one, (3, 5, 6, 5), 1, (True, False, False), 3, torch.float32),
    (one, (1, 3, 3, 70), 1, nothing, 2, torch.float32),
    (one, (1, 1, 2, 16), 1, nothing, 0, torch.float32),
    (one, (2, 6, 6, 16), 1, nothing, 16, torch.bfloat16),
    (one, (2, 4, 4, 6), 1, everything, 1, torch.float32),
]:
    torch.manual_seed(0)
    out, taps = (c + 3 if k == one else c), k[0] * k[1]

    def pixels(n, h, w, c):
        return (torch.randn(n, h, w, c + within)[..., :c] + 2).to(device, dtype)

    x, dz = pixels(n, h, w, c), pixels(n, -(-h // stride), -(-w // stride), out)
    extra = pixels(n, h, w, c) if add else None
    columns = c if k == one else taps
    S = torch.randn(columns, columns) if k == one else torch.randn(c, columns, columns)
    tables = [torch.randn(out, columns), torch.randn(out), S + S.mT, torch.randn(S.shape[:-1])]

    def run(ops, x, dz, extra):
        kernel, bias, S, t = (v.to(device, torch.promote_types(x.dtype, torch.float32)) for v in tables)
        room = x.new_zeros(*dz.shape[:3], 2 * out)[..., :out]  # a slice of a wider map
        ops.convolve(x, kernel, bias, k, stride, relu, room)
        step = ops.reduce(dz, room if relu else None, x, kernel, bias, k, stride)
        dx = ops.adjoint(step, x, kernel, S, t, k, stride, extra, mask)
        parts = step.dkernel.dim() == 3  # that `unfold` adds
        gradients = [g.sum(0) if parts else g for g in step[:2]]
        return *ops.moments(x, k, stride), room, *gradients, dx

    found = run(ours, x, dz, extra)
    expected = run(pytorch, x.double(), dz.double(), None if extra is None else extra.double())
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = float((a.double() - b).norm() / b.norm().clamp(min=1e-6))
        # moments and reductions are in float32 whatever the input
        bound = 2e-2 if dtype == torch.bfloat16 and i in (2, 5) else 1e-5
        assert error < bound, (k, n, h, w, c, stride, i, error)

from ghostcli.zoo.kernels import algebra, triton_algebra

for dense, out, taps, b, scale, identity in [
    (True, 12, 12, 3, False, True), (True, 20, 45, 3, False, False), (True, 40, 40, 1, False, True),
    (False, 5, 9, 3, True, True), (False, 4, 9, 2, True, False), (False, 3, 25, 1, False, False),
]:
    torch.manual_seed(0)
    shape = (b, out, taps, 1, 1) if dense else (b, out, 1, round(taps**0.5), round(taps**0.5))
    here = [True] * 3 + [scale] * 3 + [identity] * 2
    values = [torch.randn(shape), torch.rand(b, out) + 0.5, torch.randn(b, out), *(torch.randn(5, out))]
    patches = torch.randn(*(() if dense else (out,)), 50, taps) + 0.3
    centred = patches - patches.mean(-2, keepdim=True)
    given = [patches.mean(-2), centred.transpose(-1, -2) @ centred / 50, torch.randn(out, taps), torch.randn(out)]

    def run(ops, dtype):
        p = algebra.Branches(*(v.to(device, dtype) if there else None for v, there in zip(values, here)))
        mean, cov, dkernel, dbias = (v.to(device, dtype) for v in given)
        batches = torch.full((), 6, device=device)
        running = [(torch.zeros(b, out).to(mean), torch.ones(b, out).to(mean))]
        running += [(torch.zeros(out).to(mean), torch.ones(out).to(mean)) for _ in range(scale + identity)]
        fold = ops.fold(p, mean, cov, algebra.Running(tuple(running), 0.1, batches), 50)
        grads, S, t = ops.unfold(p, fold, dkernel, dbias, 50)
        kept = [statistic for pair in running for statistic in pair]
        there = [g for g in grads if g is not None]
        return [fold.kernel, fold.bias, fold.mean, fold.var, *there, S, t, *kept, batches.double()]

    for i, (a, b) in enumerate(zip(run(triton_algebra, torch.float32), run(algebra, torch.float64), strict=True)):
        # a scale branch's weight has a gradient of nearly nothing, the rest of what its batch norm takes back
        error = float((a.double() - b).norm() / b.norm().clamp(min=1 if b.dim() == 1 else 1e-6))
        assert a.shape == b.shape and error < 1e-5, (dense, out, taps, scale, identity, i, error)

def near(found, expected, dtype, said):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None), said
        if b is not None:
            error = float((a.double() - b).norm() / b.norm())
            assert error < (1e-2 if dtype == torch.bfloat16 else 1e-6), (said, error)

for (n, h, w, c), (tall, wide), dtype in [
    ((2, 3, 2, 5), (2, 2), torch.float32), ((1, 2, 2, 20), (1, 3), torch.float32),
    ((2, 1, 1, 3), (6, 6), torch.float32), ((2, 2, 3, 8), (2, 2), torch.bfloat16),
]:
    for gated, scaled in ((True, False), (False, True), (True, True)):
        x, dout = (torch.randn(n, h * tall, w * wide, c + 3)[..., :c].to(device, dtype) for _ in range(2))
        gate = torch.randn(n, h, w, c).to(device, dtype) if gated else None
        scale, dtotal = (torch.randn(n, c).to(device, dtype), torch.randn(n, c).to(device)) if scaled else (None, None)

        def run(ops, *given):
            x, dout, gate, scale, dtotal = given
            gate = None if gate is None else ops.opened(gate)
            products = ops.total(x, gate), ops.total(x, gate, dout), ops.weigh(x, gate, scale)
            return *products, *ops.weigh_backward(dout, x, gate, scale, dtotal)

        given = x, dout, gate, scale, dtotal
        found = run(ours, *given)
        assert {v.dtype for v in found[2:] if v is not None} == {dtype} and found[0].dtype == torch.float32
        near(found, run(pytorch, *(None if v is None else v.double() for v in given)), dtype, (n, h, w, c, gated))

for (n, h, w, c), within, dtype in [
    ((2, 4, 6, 5), 3, torch.float32), ((1, 7, 5, 20), 0, torch.float32), ((3, 1, 4, 16), 0, torch.float32),
    ((2, 4, 4, 16), 16, torch.bfloat16),
]:
    torch.manual_seed(0)
    x, more = (torch.randn(n, h, w, k * c + within)[..., :k * c].to(device, dtype) for k in (1, 2))
    dz, add, pooled = torch.randn(n, h, w, 6), torch.randn(n, h, w, c + within)[..., :c], torch.randn_like(ours.pool(x))
    S = torch.randn(c, c)
    tables = [torch.randn(c, 9), torch.randn(c), torch.randn(6, c), S + S.mT, torch.randn(c)]
    maps = [v.to(device, dtype) for v in (dz, add, pooled)]

    def run(ops, x, beside, dz, add, pooled):
        cheap, bias, kernel, S, t = (v.to(device, torch.promote_types(x.dtype, torch.float32)) for v in tables)
        step = pytorch.Step(None, None, dz)
        more = ((add, pooled), (None, pooled))
        gradients = (ops.adjoint(step, x, kernel, S, t, one, 1, a, pooled=p) for a, p in more)
        return ops.beside(x, cheap, bias, beside), *gradients

    expected = run(pytorch, *(v.double() for v in (x, more, *maps)))
    near(run(ours, x, more, *maps), expected, dtype, (n, h, w, c))

import copy
from ghostcli.zoo import ghost, kernels

torch.manual_seed(0)
net = ghost.GhostNet((ghost.Row(3, 6, 4, 0, 1), ghost.Row(3, 6, 6, 0.25, 2), ghost.Row(3, 8, 6, 0, 1)), 1.0, 3)
for parameter in net.parameters():
    torch.nn.init.normal_(parameter, 0.2, 0.5)
exact, x = copy.deepcopy(net).double(), torch.randn(3, 3, 8, 8)
for module in exact.modules():
    module.mode = "plain"
kernels.of = lambda x: pytorch if x.dtype == torch.float64 else ours
results = []
for one, images in ((net.to(device), x.to(device)), (exact, x.double())):
    one.train()
    out = one(images)
    out.square().sum().backward()
    results.append([out, *(p.grad for p in one.parameters()), *(v.double() for v in one.state_dict().values())])
scale = max(float(g.norm()) for g in results[1])
for i, (a, b) in enumerate(zip(*results, strict=True)):
    assert float((a.cpu().double() - b).norm()) < 1e-4 * max(float(b.norm()), 1e-2 * scale), (i, a, b)
print("they agree")
"""

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton cannot be imported")


def agree(device: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AGREE, device],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **environment},
    )


@pytest.mark.long
@needs_triton
def test_under_the_interpreter():
    done = agree("cpu", TRITON_INTERPRET="1")
    assert done.stdout == "they agree\n", done.stderr


COMPILED = """
import subprocess, sys, tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from ghostcli.zoo.kernels import triton_algebra as algebra, triton_depthwise as depthwise
from ghostcli.zoo.kernels import triton_pointwise as pointwise, triton_weigh as weigh

def tile(warps=depthwise.WARPS, **more):
    return {"S": 1, "U": 3, "V": 3, "P": 2 * warps, "B": 16, **more}, warps

dense = {"B": 3, "IDENTITY": True}
sums = {"T": 9, "B": 3, "SCALE": True, "IDENTITY": True, "WIDTH": 16}
flags = {"V": 4, "EXACT": True}
last = {"RELU": False, "MORE": True, "ADD": True, "POOL": True}
product = {**flags, **last, "P": pointwise.PIXELS, "D": pointwise.DEPTH}
kernels = [
    (depthwise._moments, *tile()), (depthwise._finish, {"T": 9, "PARTS": 32, "B": 16}, 4),
    (depthwise._forward, *tile(RELU=True, BESIDE=True)), (depthwise._reduce, *tile(RELU=True)),
    (depthwise._adjoint, *tile(depthwise.WARPS // 2, RELU=True, ADD=True, MASK=True)),
    *((pointwise._apply, {**product, "B": side}, pointwise._warps(side)) for side in (16, 64)),
    *(
        (pointwise._outer, {**flags, "SAME": same, "P": pointwise.AREA // side, "B": side}, pointwise._warps(side))
        for side in (16, 64) for same in (True, False)
    ),
    (pointwise._finish, {"PARTS": pointwise.PARTS, "B": 32}, 4),
    (weigh._weigh, {"GATE": True, "SCALE": True, "P": 16, "B": 16}, weigh.WARPS),
    (weigh._total, {"GATE": True, "BY": True, "P": 16, "B": 16}, weigh.WARPS),
    (weigh._weigh_backward, {"GATE": True, "SCALE": True, "TOTAL": True, "P": 16, "B": 16}, weigh.WARPS),
    (algebra._dense_fold, dense | {"TRACK": True, "COUNT": True, "WIDTH": 256, "ROWS": 16}, 4),
    (algebra._dense_branches, dense | {"WIDTH": 256, "PARTS": 16}, 4),
    (algebra._dense_patches, dense | {"SIDE": algebra.TILE}, 4),
    (algebra._depthwise_fold, sums | {"TRACK": True, "COUNT": True}, 1),
    (algebra._depthwise_unfold, sums | {"PARTS": 64}, 2),
]
integers = set(depthwise.SIZES + pointwise.SIZES + algebra.SIZES + weigh.SIZES)
reals = {"eps", "patches", "momentum", "unbias"}
tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
for capability in (80, 90):
    for kernel, constants, warps in kernels:
        names = [parameter.name for parameter in kernel.params]
        types = {name: "i32" if name in integers else "fp32" if name in reals else "*fp32" for name in names}
        types |= {"batches": "*i64"} if "batches" in names else {}
        types |= dict.fromkeys(constants, "constexpr")
        places = {(names.index(n),): value for n, value in constants.items()}
        more = {"maxnreg": depthwise.REGISTERS} if kernel is depthwise._adjoint else {}
        source = ASTSource(fn=kernel, signature=types, constexprs=places)
        made = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, **more})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(made.asm["cubin"])
            told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True).stdout
        words = dict(word.split(":")[:2] for word in told.split() if ":" in word and word[0].isupper())
        print(capability, kernel.__name__, words["REG"], words["STACK"], made.metadata.shared, sep="\\t")
"""


@pytest.mark.long
@needs_triton
def test_every_kernel_compiles_without_a_device_and_stays_in_its_registers():
    """For an A100 (8.0) and an H100 (9.0): registers a thread, bytes of stack (spills), bytes of shared memory."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == 2 * 20
    for capability, kernel, registers, stack, shared in rows:
        assert int(registers) <= 168 and int(stack) == 0 and int(shared) <= 48 << 10, (capability, kernel)


@needs_triton
def test_a_step_starts_no_more_kernels_than_its_budget():
    """benchmarks/results/launches.json; `python benchmarks/launches.py --write` after a change for the better."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        import launches
    finally:
        sys.path.pop(0)
    budget = json.loads(launches.RECORD.read_text())["models"]["gns:1.0"]
    found = launches.count("gns:1.0")
    # another torch may take an operation apart in another way
    assert found["kernels"] <= 1.02 * budget["kernels"] and found["small"] <= 1.02 * budget["small"]
    assert found["gigabytes"] <= 1.02 * budget["gigabytes"]
    assert found["by name"]["triton:adjoint"] == 43  # a depthwise sum each: the count sees the kernels


@needs_triton
def test_one_compilation_serves_every_size(monkeypatch):
    """A network has a dozen sizes of maps, and a kernel takes seconds to compile."""
    from ghostcli.zoo.kernels import triton_depthwise as ours
    from ghostcli.zoo.kernels import triton_pointwise, triton_weigh

    seen = set()

    class Launch:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return self

        def __call__(self, *arguments, **constants):
            for parameter, value in zip(self.kernel.params, arguments, strict=False):
                if isinstance(value, int):
                    assert parameter.do_not_specialize, (self.kernel.__name__, parameter.name)
                    seen.add(self.kernel.__name__)

    for module in (ours, triton_pointwise, triton_weigh):
        for name in [name for name, value in vars(module).items() if hasattr(value, "params")]:
            monkeypatch.setattr(module, name, Launch(getattr(module, name)))
    x, bias = torch.randn(2, 4, 4, 8), torch.randn(8)
    for k, kernel, S, t in [
        ((3, 3), torch.randn(8, 9), torch.randn(8, 9, 9), torch.randn(8, 9)),
        ((1, 1), torch.randn(8, 8), torch.randn(8, 8), torch.randn(8)),
    ]:
        ours.moments(x, k, 1)
        step = ours.reduce(x, ours.convolve(x, kernel, bias, k, 1, True), x, kernel, bias, k, 1)
        ours.adjoint(step, x, kernel, S, t, k, 1)
    gate, scale = torch.randn(2, 2, 2, 8), torch.randn(2, 8)
    ours.total(x, gate, x)
    ours.weigh(x, gate, scale)
    ours.weigh_backward(x, x, gate, scale, scale)
    kernels = {"_moments", "_finish", "_forward", "_reduce", "_adjoint", "_outer", "_apply"}
    assert seen == kernels | {"_weigh", "_total", "_weigh_backward"}


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device():
    done = agree("cuda")
    assert done.stdout == "they agree\n", done.stderr
