"""What a schedule rule is: a template with a few knobs, and the settings of them worth measuring."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gos_adapt.errors import Rejection
    from tvm_passes.schedules.cpu import Cpu
    from tvm_passes.schedules.kernel import Fused, Scheduled


@dataclass(frozen=True)
class Rule:
    """A schedule template.

    Attributes:
        name: How reports and records call it.
        knobs: The dataclass of its knobs: numbers and words only.
        settings: The settings of the knobs worth measuring on a CPU, the best guess first; given the fastest one
            measured so far, its neighbours. A rejection says why the kernel is not this rule's.
        schedule: Applies the template.
        leads: Whether its best guess is better than those of all rules before it in the list.
    """

    name: str
    knobs: type
    settings: Callable[[Fused, Cpu, Any], Sequence[Any] | Rejection]
    schedule: Callable[[Fused, Cpu, frozenset[int], Any], Scheduled | Rejection]
    leads: Callable[[Fused, Any], bool] = lambda _kernel, _knobs: False


@dataclass(frozen=True)
class Variant:
    """One way to schedule a kernel: a rule by name, and a setting of its knobs."""

    rule: str
    knobs: Any

    def to_text(self) -> str:
        """Return the form that records keep; `parse` reads it."""
        return json.dumps({"rule": self.rule} | asdict(self.knobs))

    @classmethod
    def parse(cls, text: str, rules: Mapping[str, Rule]) -> Variant:
        """Read what `to_text` wrote.

        Raises:
            ValueError: this text was written by other rules, or by nobody.
        """
        try:
            form = json.loads(text)
        except RecursionError as error:
            raise ValueError(f"not a schedule of these rules: {text[:200]}") from error
        rule = rules.get(str(form.pop("rule", ""))) if isinstance(form, dict) else None
        knobs = get_type_hints(rule.knobs) if rule else {}
        if rule is None or set(form) != set(knobs) or not all(_is(form[name], hint) for name, hint in knobs.items()):
            raise ValueError(f"not a schedule of these rules: {text[:200]}")
        return cls(rule.name, rule.knobs(**form))


def _is(value: Any, hint: Any) -> bool:
    """Whether a knob is a number or, where it takes words, one of these."""
    return value in get_args(hint) if get_origin(hint) is Literal else type(value) is hint
