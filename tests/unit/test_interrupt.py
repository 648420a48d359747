from __future__ import annotations

import os
import signal
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from gos_adapt import interrupt
from gos_adapt.run_folder import JOURNAL, Journal
from tvm_passes.compat import IRModule, PassContext, Sequential, module_pass

if TYPE_CHECKING:
    from pathlib import Path


@module_pass(opt_level=0, name="PressCtrlC")
def press_ctrl_c(module: IRModule, _context: PassContext) -> IRModule:
    os.kill(os.getpid(), signal.SIGINT)
    return module


def test_ctrl_c_that_tvm_takes_for_an_error_is_raised_before_anything_is_remembered(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / JOURNAL)) as journal, interrupt.noted():
        with pytest.raises(RuntimeError):  # no KeyboardInterrupt
            Sequential([press_ctrl_c])(IRModule({}))
        with pytest.raises(KeyboardInterrupt):
            journal.put("candidate", "failed")
        assert "candidate" not in journal


def test_ctrl_c_ends_python_at_once_and_is_forgotten_by_the_next_command() -> None:
    with interrupt.noted(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with interrupt.noted():
        interrupt.check()


def test_the_handler_of_before_is_back_afterwards() -> None:
    before: Any = signal.getsignal(signal.SIGINT)
    with interrupt.noted():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
