"""Memory that training frees stays in the process."""

import subprocess
import sys

FAULTS = """
import resource, sys
import torch
from gos_adapt.finetune.freed_memory import keep_freed_memory

weight = torch.ones(32, 32, requires_grad=True)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        x = torch.ones(64, 16, 32, 32)
        for _ in range(16):
            x = x @ weight
        torch.autograd.backward(x.sum())
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "kept":
    assert keep_freed_memory()
faults()
print(faults())
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def test_tensors_are_allocated_again_without_new_pages() -> None:
    kept, by_default = page_faults("kept"), page_faults("default")
    assert by_default > 10_000
    assert kept < by_default / 3
