from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from device_targets import host
from tvm_passes import peak_kernels
from tvm_passes.build import target_of
from tvm_passes.compat import IRModule, tvm
from tvm_passes.peak_kernels import ALONE, COMPUTE, READ, STEPS, build_peak_kernels

if TYPE_CHECKING:
    from pathlib import Path

    from device_targets import Device

SMALL: Device = replace(host(), threads=2, memory_bytes=2**20)
"""Reads an eighth of this: 128 KiB."""


@pytest.fixture(params=[SMALL.lanes, 4, 1], ids=["host", "4 lanes", "scalar"])
def device(request: pytest.FixtureRequest) -> Device:
    return replace(SMALL, lanes=request.param)


def run(library: Path, name: str, kernel: peak_kernels.PeakKernel) -> list[Any]:
    rng = np.random.default_rng(0)
    arguments = [tvm.runtime.tensor(rng.random(shape).astype(dtype)) for shape, dtype in kernel.parameters]
    tvm.runtime.load_module(str(library))[name](*arguments)
    return [argument.numpy() for argument in arguments]


def test_the_kernels_compute_what_they_are_counted_for(device: Device, tmp_path: Path) -> None:
    library = tmp_path / "peaks.so"
    kernels = build_peak_kernels(device, library)
    for name in (COMPUTE, ALONE):
        (values,) = run(library, name, kernels[name])
        np.testing.assert_array_equal(values, 2)  # the limit of x <- x/2 + 1, which float32 reaches
        assert kernels[name].work == 2 * STEPS * values.size
    assert kernels[COMPUTE].work == device.threads * kernels[ALONE].work
    array, sums = run(library, READ, kernels[READ])
    np.testing.assert_allclose(sums, array.sum(axis=2), rtol=1e-4)
    assert kernels[READ].work == array.nbytes == 2**17


def test_the_chains_stay_in_registers_and_are_not_left_out() -> None:
    fused = {"x86_64": ("fma", "vfmadd"), "aarch64": ("asimd", "fmla")}
    feature, mnemonic = fused.get(SMALL.architecture, ("", ""))
    if feature not in SMALL.features:
        pytest.skip("this machine has no fused multiply-add")
    chains = SMALL.registers * 3 // 4
    func = peak_kernels._multiply_add(2, chains, SMALL.lanes).with_attr("global_symbol", "multiply_add")
    assembly = tvm.compile(IRModule({"multiply_add": func}), target_of(SMALL)).mod.inspect_source("asm")
    operations = [line.split() for line in assembly.splitlines() if mnemonic in line]
    assert len(operations) % chains == 0
    assert len(operations) >= chains
    assert not any("(" in operand or "[" in operand for _, *operands in operations for operand in operands)
