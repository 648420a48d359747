"""What the schedules become on Arm boards, read in the assembly: no board is needed to see a register spilled."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

import pytest
from compiling import generated, graph, random
from onnx import helper

from device_targets import DEVICES
from gos_adapt.errors import Rejection
from tvm_passes.build import cpu_of, prepare_functions, target_of
from tvm_passes.compat import IRModule, tvm
from tvm_passes.schedules import Scheduled, schedule_kernel, variants

BOARDS = ["rpi3", "rpi4", "rpi5"]
CHANNELS, SIZE = 32, 14
KERNELS = {"3x3": (3, 1), "1x1": (1, 1), "depthwise": (3, CHANNELS)}  # window, groups

LABEL = re.compile(r"([\w.$]+):")
BRANCH = re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?([\w.$]+)")
FULL_VECTOR_FMLA = re.compile(r"fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.(?:4s|s\[\d\])")
FLOAT_ARITHMETIC = re.compile(r"f(?:n?m(?:add|sub|ul)|ml[as]|add|sub)\s")
LOAD, STORE = re.compile(r"ld\w+\s"), re.compile(r"st\w+\s")


@dataclass(frozen=True)
class Loop:
    """The innermost loop of a kernel's reduction: what runs between a label and the branch back to it."""

    instructions: tuple[str, ...]

    def matching(self, pattern: re.Pattern[str]) -> list[str]:
        return [instruction for instruction in self.instructions if pattern.match(instruction)]

    @property
    def fmlas(self) -> int:
        return len(self.matching(FULL_VECTOR_FMLA))

    @property
    def arithmetic(self) -> Counter[str]:
        """Floating-point instructions by name and the shape of their result."""
        return Counter(
            re.sub(r"(\w+)\s+[a-z]\d+(\.\w+)?.*", r"\1\2", found) for found in self.matching(FLOAT_ARITHMETIC)
        )

    @property
    def stores(self) -> list[str]:
        return self.matching(STORE)

    @property
    def stack(self) -> list[str]:
        return [instruction for instruction in self.instructions if "[sp" in instruction]

    @property
    def loads_per_fmla(self) -> float:
        """Load instructions (of one or two registers) for each multiply-add."""
        return len(self.matching(LOAD)) / self.fmlas


def hottest_loop(assembly: str) -> Loop:
    """Find the loop with most multiply-adds among those that hold no other loop with any."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    found: dict[range, Loop] = {}
    for line in assembly.splitlines():
        text = line.partition("//")[0].strip()
        if label := LABEL.fullmatch(text):
            labels[label[1]] = len(instructions)
        elif text and not text.startswith("."):
            instructions.append(text)
            branch = BRANCH.fullmatch(text)
            if branch and branch[1] in labels:  # seen already: it leads back
                body = range(labels[branch[1]], len(instructions))
                found[body] = Loop(tuple(instructions[body.start : body.stop]))
    computing = {body: loop for body, loop in found.items() if loop.fmlas}
    innermost = [
        loop
        for body, loop in computing.items()
        if not any(body.start <= other.start and other.stop <= body.stop for other in computing if other != body)
    ]
    return max(innermost, key=lambda loop: loop.fmlas)


@cache
def loops(board: str, name: str) -> dict[str, Loop]:
    """The hottest loop of a kernel under each setting that its rule finds worth measuring on a board, by setting."""
    window, groups = KERNELS[name]
    padding = window // 2
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[window] * 2, pads=[padding] * 4, group=groups),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    weights = {"w": random(CHANNELS, CHANNELS // groups, window, window), "b": random(CHANNELS, seed=1)}
    proto = graph(nodes, (1, CHANNELS, SIZE, SIZE), weights, {"y": 4})
    device = DEVICES[board]()
    ((func, constants),) = prepare_functions({"main": proto}, device, 1).kernels.values()
    found = variants(func, cpu_of(device))
    assert not isinstance(found, Rejection)
    result = {}
    for variant in found:
        if variant.rule == "tiled reduction":
            scheduled = schedule_kernel(func, cpu_of(device), constants, variant)
            assert isinstance(scheduled, Scheduled)
            module = IRModule({"kernel": scheduled.func.with_attr("global_symbol", "kernel")})
            result[variant.to_text()] = hottest_loop(generated(tvm.compile(module, target_of(device)), "asm"))
    return result


def guessed_loop(board: str, name: str) -> Loop:
    """The loop of the setting that is compiled where nothing was measured."""
    return next(iter(loops(board, name).values()))


every_kernel = pytest.mark.parametrize("name", KERNELS)
every_board = pytest.mark.parametrize("board", BOARDS)


@every_board
@every_kernel
def test_every_setting_computes_in_full_vectors_with_one_instruction_for_each_multiply_add(
    board: str, name: str
) -> None:
    assert loops(board, name)
    for setting, loop in loops(board, name).items():
        epilogue = (
            {"fadd.4s"} if loop.stores else set()
        )  # where the whole window is unrolled, the tile is finished here
        assert set(loop.arithmetic) - epilogue == {"fmla.4s"}, setting


@every_board
@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_the_sums_of_a_convolution_stay_in_registers(board: str, name: str) -> None:
    loop = guessed_loop(board, name)
    assert loop.stores == []
    assert loop.stack == []
    assert loop.loads_per_fmla < 0.45  # of two registers at most each: a tile of 8 x 2 reads 10 operands for 16 sums


@every_board
def test_the_sums_of_a_depthwise_convolution_stay_in_registers_until_they_are_finished(board: str) -> None:
    loop = guessed_loop(board, "depthwise")
    assert loop.fmlas % 9 == 0  # whole windows
    stored = sum(2 if store.startswith("stp") else 1 for store in loop.stores)
    assert stored == loop.fmlas // 9
    assert not any("[sp" in store for store in loop.stores)
    assert loop.loads_per_fmla < 0.3


def test_the_finder_takes_the_innermost_loop_and_counts_what_is_spilled() -> None:
    loop = hottest_loop(
        """
kernel:
    .cfi_startproc
.LBB0_1:                                // outer
    ldr q9, [x2]
.LBB0_2:
    ldr q0, [x0], #16
    ldp q1, q2, [x1]
    fmla v3.4s, v1.4s, v0.s[1]
    fmla v4.4s, v2.4s, v0.4s
    str q4, [sp, #16]
    fmadd s5, s6, s7, s5
    fmla v5.2s, v6.2s, v7.2s
    cbnz x3, .LBB0_4
    b.ne .LBB0_2
    fadd v3.4s, v3.4s, v9.4s
    tbz w4, #3, .LBB0_1
.LBB0_4:
    ret
"""
    )
    assert len(loop.instructions) == 9
    assert (loop.fmlas, loop.loads_per_fmla) == (2, 1.0)
    assert loop.arithmetic == {"fmla.4s": 2, "fmadd": 1, "fmla.2s": 1}
    assert loop.stack == loop.stores == ["str q4, [sp, #16]"]
