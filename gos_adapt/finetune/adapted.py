"""A model in torch with some sites computed by other operators, cut where the first of them begins.

Everything before the first replaced site is the same for all candidates of a group, so it runs once: the tensors at the
*cut*, those that the changed part reads from the unchanged one, are all that a candidate needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gos_adapt.model.torch_executor import TorchExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gos_adapt.model.model import Array, Model, Site

BATCH = 128
MAX_BYTES = 2**29
"""Of cached tensors at a cut; beyond that the unchanged part runs again for every batch."""

Tensors = dict[str, Tensor]


class AdaptedModel(nn.Module):
    """A model with replaceable sites; gives some of its tensors.

    Args:
        model: The original.
        sites: Of it, none overlapping another.
        wanted: Names of the tensors it gives, none inside a site; the first output unless given.
        whole: As the attribute.

    Attributes:
        sites: In model order.
        whole: Whether everything before the first site can change too; then "the first cut" is the model's input.
        cuts: For each site, then for the end, the tensors that everything from there on depends on.
    """

    def __init__(self, model: Model, sites: Sequence[Site], wanted: Sequence[str] = (), *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        order = {name: i for i, node in enumerate(model.proto.graph.node) for name in node.output}
        self.sites = tuple(sorted(sites, key=lambda site: order[site.output]))
        wanted = tuple(wanted) or (model.outputs[0].name,)
        # inside a site the executor would go on computing what the model computed before
        assert not any(name in site.nodes and name != site.output for name in wanted for site in sites)
        self.cuts = (*(cut(model, self.sites[k:], wanted) for k in range(len(self.sites))), wanted)
        self.source = model.inputs[0].name
        self.executor = TorchExecutor(model.proto)

    def at_first_cut(self, samples: Tensor) -> Tensors:
        """Run the unchanged part on model inputs ``(n, ...)``."""
        given = {self.source: samples}
        return given if self.whole else self._advance(given, 0)

    def forward(self, tensors: Tensors, operators: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
        """From the tensors at the first cut to the first of the wanted, with `operators` at the sites."""
        return self.compute(tensors, operators)[0]

    def compute(self, tensors: Tensors, operators: Sequence[Callable[[Tensor], Tensor]]) -> tuple[Tensor, ...]:
        """Likewise, to all that are wanted."""
        if self.whole:
            tensors = self._advance(tensors, 0)
        for k, operator in enumerate(operators):
            tensors = self.pass_site(tensors, k, operator(tensors[self.sites[k].input]))
        return tuple(tensors[name] for name in self.cuts[-1])

    def pass_site(self, tensors: Tensors, k: int, output: Tensor) -> Tensors:
        """From the tensors at cut k and what site k wrote to the tensors at the next cut."""
        return self._advance(tensors | {self.sites[k].output: output}, k + 1)

    def _advance(self, tensors: Tensors, k: int) -> Tensors:
        return dict(zip(self.cuts[k], self.executor.compute(tensors, self.cuts[k]), strict=True))


def cut(model: Model, sites: Sequence[Site], wanted: Sequence[str]) -> tuple[str, ...]:
    """Name the tensors that `sites` and whatever depends on them read, but do not change; in order, without repeats.

    Args:
        model: The original.
        sites: Of it.
        wanted: Tensors needed at the end; they count as read.
    """
    graph = model.proto.graph
    covered = {name for site in sites for name in site.nodes}
    changed = {site.output for site in sites}
    read = {site.input: None for site in sites}
    for node in graph.node:
        if covered.isdisjoint(node.output) and not changed.isdisjoint(node.input):
            changed.update(node.output)
            read |= dict.fromkeys(node.input)
    stored = {initializer.name for initializer in graph.initializer} | {""}
    read |= dict.fromkeys(wanted)
    return tuple(name for name in read if name not in changed and name not in stored)


class CutSamples:
    """The tensors at a model's first cut for samples that are asked for again and again."""

    def __init__(self, adapted: AdaptedModel, samples: Callable[[slice | Array], Array], n: int) -> None:
        self.n = n
        self._adapted = adapted
        self._samples = samples
        probe = self._compute(slice(0, 1))
        if n * sum(tensor.nbytes for tensor in probe.values()) <= MAX_BYTES:
            batches = [self._compute(slice(start, start + BATCH)) for start in range(0, n, BATCH)]
            self._cached: Tensors | None = {name: torch.cat([batch[name] for batch in batches]) for name in probe}
        else:
            self._cached = None

    def __getitem__(self, which: slice | Array) -> Tensors:
        """Return the tensors of a slice or an index array of samples."""
        if self._cached is None:
            return self._compute(which)
        return {name: tensor[which] for name, tensor in self._cached.items()}

    def _compute(self, which: slice | Array) -> Tensors:
        with torch.no_grad():
            return self._adapted.at_first_cut(torch.from_numpy(self._samples(which)))
