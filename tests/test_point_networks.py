"""The point networks on rows equal the published layout, (B, C, 68) through 1x1 convolutions."""

import copy
import os
import sys

import pytest
import torch
from conftest import run_python

from backbone_nets.fused_norm import fuse_batch_norm
from backbone_nets.point_networks import LandmarkRefiner, LandmarksTo3DMM
from benchmarks.train_step import PublishedRefiner, PublishedRegressor


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_rows_equal_the_published_layout(signed, training):
    torch.manual_seed(0)
    twins = (
        (LandmarkRefiner(9, signed), PublishedRefiner(9, signed)),
        (
            LandmarksTo3DMM(signed),
            PublishedRegressor(signed),
        ),
    )
    arguments = torch.randn(3, 3, 68), torch.randn(3, 9), torch.randn(3, 50)
    for (ours, published), inputs in zip(twins, (arguments, arguments[:1]), strict=True):
        published.load_state_dict(ours.state_dict())
        results = []
        for network in (ours, published):
            network.double().train(training)
            own = [x.double().requires_grad_() for x in inputs]
            y = network(*own)
            y.square().sum().backward()
            gradients = {name: p.grad for name, p in network.named_parameters()}
            results.append((y, [x.grad for x in own], gradients, dict(network.named_buffers())))
        torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_fused_equals_unfused():
    torch.manual_seed(0)
    plain = LandmarksTo3DMM()
    fused, landmarks = fuse_batch_norm(copy.deepcopy(plain)), torch.randn(4, 3, 68)
    exact = copy.deepcopy(plain).double()(landmarks.double())
    torch.testing.assert_close(fused(landmarks).double(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(sys.platform == "win32", reason="resource is POSIX")
def test_keeping_freed_memory():
    """Memory freed and taken again is not asked of the system again (no page faults)."""
    code = """
import resource, sys, numpy as np
from utils.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
if faults() < 10_000 or not keep_freed_memory():
    sys.exit("skip")
faults()
assert faults() < 1000
"""
    # numpy asks for huge pages by itself, and then there are few faults anyhow
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
    run = run_python("-c", code, env=environment)
    if run.stderr.strip() == "skip":
        pytest.skip("needs glibc, and a system without huge pages for everything")
    assert run.returncode == 0, run.stderr
