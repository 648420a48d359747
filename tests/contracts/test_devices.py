"""Every device, by being listed: its numbers have sources, and what is compiled for it runs on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from device_targets import DEVICES
from tvm_passes.build import target_of
from tvm_passes.compat import tvm
from tvm_passes.cpu_features import used_features

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from device_targets import Device

NUMBERS = {"threads", "lanes", "registers", "memory_bytes", "features"}
OPTIONAL = {"clock_hz", "macs_per_cycle", "line_bytes", "caches", "bandwidth", "copy_bandwidth", "power_w"}
WIDTHS = {"avx512f": 16, "avx2": 8, "asimd": 4}
LOCAL = [describe for describe in DEVICES.values() if describe().local]
CPUS = [describe for describe in DEVICES.values() if describe().kind == "cpu"]
ARM = [describe for describe in CPUS if describe().architecture == "aarch64" and describe not in LOCAL]


def of(devices: Iterable[Callable[[], Device]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("describe", devices, ids=lambda describe: describe().name)


@of(DEVICES.values())
def test_a_device_is_listed_under_its_name_and_every_number_has_a_source(describe: Callable[[], Device]) -> None:
    device = describe()
    assert DEVICES[device.name] is describe
    known = {name for name in OPTIONAL if getattr(device, name)}
    assert {name for name, source in device.sources.items() if source.strip()} - {"target"} == NUMBERS | known


@of(DEVICES.values())
def test_caches_grow_away_from_the_core_and_power_grows_with_work(describe: Callable[[], Device]) -> None:
    device = describe()
    sizes = [cache.size_bytes / cache.cores for cache in device.caches[:1]] + [c.size_bytes for c in device.caches]
    assert sizes == sorted(sizes)
    assert [cache.cores for cache in device.caches] == sorted(cache.cores for cache in device.caches)
    assert device.power_w is None or 0 < device.power_w[0] < device.power_w[1]
    assert device.copy_bandwidth is None or device.bandwidth is None or device.copy_bandwidth < device.bandwidth


def test_peaks_are_what_others_measured_on_all_cores() -> None:
    """Registers only: github.com/pigirons/cpufp, benchmark_result/arm64, Broadcom_BCM2711.md and BCM2712.md."""
    for name, measured in {"rpi4": 47.88e9, "rpi5": 153.5e9}.items():
        peak = DEVICES[name]().peak_flops
        assert peak is not None
        assert measured == pytest.approx(peak, rel=0.01)


@of(CPUS)
def test_code_for_a_device_uses_only_features_that_it_has(describe: Callable[[], Device]) -> None:
    device = describe()
    assert used_features(target_of(device)) <= device.features


@of([describe for describe in CPUS if describe not in LOCAL])
def test_llvm_knows_the_cpu_and_its_vectors_are_as_wide_as_its_features_say(describe: Callable[[], Device]) -> None:
    device, target = describe(), target_of(describe())
    assert tvm.get_global_func("target.llvm_is_valid_cpu")(str(target.attrs["mcpu"]), str(target.attrs["mtriple"]))
    widest = next(lanes for feature, lanes in WIDTHS.items() if feature in used_features(target))
    assert device.lanes == widest


@of(ARM)
def test_what_the_cpu_could_have_and_the_board_lacks_is_left_out_of_its_target(describe: Callable[[], Device]) -> None:
    device = describe()
    poorer = replace(device, features=device.features - {"asimd", "crc32"})
    assert "asimd" in used_features(target_of(device))
    assert used_features(target_of(poorer)) <= poorer.features


def test_only_the_board_with_dot_products_gets_code_with_dot_products() -> None:
    having = {describe().name for describe in ARM if "asimddp" in used_features(target_of(describe()))}
    assert having == {"rpi5"}
