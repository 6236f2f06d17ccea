"""The fuzzers of the native kernels (``make fuzz``) on a few random inputs, under sanitizers."""

import subprocess

import pytest
from conftest import build_sanitized

KERNELS = {
    "sim3dr": ("Sim3DR", ["Sim3DR/mesh.cpp", "Sim3DR/rasterizer.cpp"]),
    "fused_norm": ("backbone_nets", ["backbone_nets/fused_norm_kernel.cpp"]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_few_inputs(tmp_path, name):
    folder, sources = KERNELS[name]
    program = tmp_path / name
    fuzzer = [f"tests/native/fuzz_{name}.cpp", "tests/native/fuzz_main.cpp"]
    sanitizers = "address,undefined,float-cast-overflow"
    build_sanitized(program, sanitizers, folder, [*fuzzer, *sources])
    done = subprocess.run([program, "1000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
