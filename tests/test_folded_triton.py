"""The Triton kernels against plain PyTorch, under Triton's interpreter and, where there is one, on the device."""

from __future__ import annotations

import importlib.util
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
for (n, h, w, c), stride, (relu, mask, add), within, dtype in [
    ((3, 5, 6, 5), 1, everything, 3, torch.float32),
    ((2, 7, 4, 20), 1, nothing, 0, torch.float32),
    ((3, 5, 6, 5), 2, (True, False, False), 3, torch.float32),
    ((2, 8, 8, 3), 2, nothing, 0, torch.float32),
    ((2, 1, 1, 3), 1, everything, 0, torch.float32),
    ((2, 6, 6, 4), 1, (False, False, True), 2, torch.bfloat16),
]:
    torch.manual_seed(0)

    def pixels(n, h, w, c):
        return (torch.randn(n, h, w, c + within)[..., :c] + 2).to(device, dtype)

    x, dz = pixels(n, h, w, c), pixels(n, -(-h // stride), -(-w // stride), c)
    extra = pixels(n, h, w, c) if add else None
    S = torch.randn(c, 9, 9)
    tables = [torch.randn(c, 9), torch.randn(c), S + S.transpose(1, 2), torch.randn(c, 9)]

    def run(ops, x, dz, extra):
        kernel, bias, S, t = (v.to(device, torch.promote_types(x.dtype, torch.float32)) for v in tables)
        z = ops.convolve(x, kernel, bias, (3, 3), stride, relu)
        step = ops.reduce(dz, z if relu else None, x, kernel, (3, 3), stride)
        dx = ops.adjoint(step, x, kernel, S, t, (3, 3), stride, extra, mask)
        return *ops.moments(x, (3, 3), stride), z, step.dkernel, step.dbias, dx

    found = run(ours, x, dz, extra)
    expected = run(pytorch, x.double(), dz.double(), None if extra is None else extra.double())
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = float((a.double() - b).norm() / b.norm().clamp(min=1e-6))
        # moments and reductions are in float32 whatever the input
        bound = 2e-2 if dtype == torch.bfloat16 and i in (2, 5) else 1e-5
        assert error < bound, (n, h, w, c, stride, i, error)
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


@needs_triton
def test_one_compilation_serves_every_size(monkeypatch):
    """A network has a dozen sizes of maps, and a kernel takes seconds to compile."""
    from ghostcli.zoo.kernels import triton_depthwise as ours

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
                    seen.add((self.kernel.__name__, parameter.name))

    for name in ("_moments", "_forward", "_reduce", "_adjoint"):
        monkeypatch.setattr(ours, name, Launch(getattr(ours, name)))
    x, kernel, bias, S = torch.randn(2, 4, 4, 8), torch.randn(8, 9), torch.randn(8), torch.randn(8, 9, 9)
    ours.moments(x, (3, 3), 1)
    step = ours.reduce(x, ours.convolve(x, kernel, bias, (3, 3), 1, True), x, kernel, (3, 3), 1)
    ours.adjoint(step, x, kernel, S, kernel, (3, 3), 1)
    assert len(seen) == 7 + 8 + 9 + 10


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_the_device():
    done = agree("cuda")
    assert done.stdout == "they agree\n", done.stderr
