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
    from collections.abc import Callable

    from device_targets import Device

NUMBERS = {"threads", "lanes", "registers", "memory_bytes", "features"}
every_device = pytest.mark.parametrize("describe", DEVICES.values(), ids=DEVICES)
every_board = pytest.mark.parametrize(
    "describe",
    [describe for describe in DEVICES.values() if not describe().local],
    ids=lambda describe: describe().name,
)


@every_device
def test_a_device_is_listed_under_its_name_and_every_number_has_a_source(describe: Callable[[], Device]) -> None:
    device = describe()
    assert DEVICES[device.name] is describe
    assert {name for name, source in device.sources.items() if source.strip()} >= NUMBERS


@every_device
def test_code_for_a_device_uses_only_features_that_it_has(describe: Callable[[], Device]) -> None:
    device = describe()
    assert used_features(target_of(device)) <= device.features


@every_board
def test_llvm_knows_the_cpu_of_a_board_and_agrees_on_its_vectors(describe: Callable[[], Device]) -> None:
    device, target = describe(), target_of(describe())
    assert tvm.get_global_func("target.llvm_is_valid_cpu")(str(target.attrs["mcpu"]), str(target.attrs["mtriple"]))
    assert tvm.get_global_func("target.llvm_get_vector_width")(target) == 32 * device.lanes


@every_board
def test_what_the_cpu_could_have_and_the_board_lacks_is_left_out_of_its_target(describe: Callable[[], Device]) -> None:
    device = describe()
    poorer = replace(device, features=device.features - {"asimd", "crc32"})
    assert "asimd" in used_features(target_of(device))
    assert used_features(target_of(poorer)) <= poorer.features


def test_only_the_board_with_dot_products_gets_code_with_dot_products() -> None:
    having = {name for name, describe in DEVICES.items() if "asimddp" in used_features(target_of(describe()))}
    assert having - {"host"} == {"rpi5"}
