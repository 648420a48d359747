"""The adaptation file: what replaced what, for whoever compiles the original model with tools of their own.

An adaptation and the original model are together the adapted model: nothing but the replaced operators has changed. Two
files hold it: `adaptation.json` (where each site is, old and new operator as text and equation, lineage) and
`adaptation.safetensors` (arrays).

A compiler's importer forgets tensor names and may rewrite what it imports. So an entry says twice where its site is: by
the `Anchor` (digests of its weights), and by a *response*: what the original operator answers to fixed stimuli.
Whatever holds these weights and answers the same is the site, however it is written.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from gos_adapt.errors import Rejection, RunFolderError
from gos_adapt.json_form import decode, encode
from gos_adapt.model.anchors import Anchor, find_anchor
from gos_adapt.model.sites import find_sites
from gos_adapt.model.wording import quote
from gos_adapt.operators.equation import equation
from gos_adapt.operators.evaluate import evaluate
from gos_adapt.operators.text import parse
from gos_adapt.run_folder import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gos_adapt.instructions.base import Shape
    from gos_adapt.model.model import Model, Replacements, Site
    from gos_adapt.operators.graph import OperatorGraph

    Array = np.ndarray[Any, Any]

FORMAT = 1
JSON_FILE, ARRAYS_FILE = "adaptation.json", "adaptation.safetensors"
MAX_JSON_BYTES = 2**24
MAX_ARRAYS_BYTES = 2**31
"""The most a whole ONNX file can hold."""
AMPLITUDES = (1.0, 16.0, 256.0)
"""Of the stimuli: small ones show every bias, large ones every bound."""
MAX_SAMPLES = 1024
"""Numbers kept of the answer to each stimulus."""


@dataclass(frozen=True)
class Entry:
    """One replaced site.

    Attributes:
        site: `Site.name`.
        kind: `Site.kind`.
        anchor: Where it is in the original model, or why that cannot be said.
        occurrence: Its place, in the order of the original, among the sites that compute the very same function.
        occurrences: How many those are.
        original: The operator that was there; its weights are in the original model.
        response: `sample` of what that answers to `stimuli`.
        operator: The operator that is there now.
        weights: In the operator's weight order, float32.
        lineage: How it came to be, oldest first.
    """

    site: str
    kind: str
    anchor: Anchor | Rejection
    occurrence: int
    occurrences: int
    original: OperatorGraph
    response: Array
    operator: OperatorGraph
    weights: tuple[Array, ...]
    lineage: tuple[str, ...]

    @property
    def input_shape(self) -> Shape:
        """Shape of the feature the site reads, without batch."""
        return self.original.types[self.original.inputs[0]].shape

    @property
    def output_shape(self) -> Shape:
        """Shape of the feature the site writes, without batch."""
        return self.original.output_shape


@dataclass(frozen=True)
class Adaptation:
    """Every replaced site of one model.

    Attributes:
        model: Name of the model.
        key: `Model.key`: content hash of the original.
        entries: In the order of the replacements.
    """

    model: str
    key: str
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, model: Model, replacements: Replacements) -> Adaptation:
        """Describe what `splice(model, replacements)` does to `model.original`.

        Args:
            model: As loaded: nothing spliced into it yet.
            replacements: Of its sites.

        Raises:
            ValueError: for an unknown site (our bug, not the user's).
        """
        sites = {site.name: site for site in find_sites(model)}
        unknown = [replacement.site for replacement in replacements if replacement.site not in sites]
        if unknown:
            raise ValueError(f"no such site: {', '.join(unknown)}")
        alike = _alike(model, tuple(sites.values()))
        entries = []
        for replacement in replacements:
            site = sites[replacement.site]
            entries.append(
                Entry(
                    site=site.name,
                    kind=site.kind,
                    anchor=find_anchor(model, site),
                    occurrence=alike[site.name].index(site.name),
                    occurrences=len(alike[site.name]),
                    original=site.operator,
                    response=sample(evaluate(site.operator, [stimuli(site.input_shape)], site.weights)),
                    operator=replacement.operator,
                    weights=tuple(np.ascontiguousarray(weight, np.float32) for weight in replacement.weights),
                    lineage=replacement.lineage,
                )
            )
        return cls(model.name, model.key, tuple(entries))

    def to_json(self) -> dict[str, Any]:
        """Return everything but the arrays as plain JSON values."""
        form: dict[str, Any] = encode(_File(FORMAT, self.model, self.key, tuple(map(_Record.of, self.entries))))
        return form

    def arrays(self) -> dict[str, Array]:
        """Return the arrays by name: weight `k` of entry `i` is ``"<i>.<k>"``, its response ``"<i>.response"``."""
        weights = {f"{i}.{k}": w for i, entry in enumerate(self.entries) for k, w in enumerate(entry.weights)}
        return weights | {f"{i}.response": entry.response for i, entry in enumerate(self.entries)}

    @classmethod
    def from_json(cls, form: Any, arrays: Mapping[str, Array]) -> Adaptation:
        """Inverse of `to_json` and `arrays`; neither is trusted.

        Raises:
            ValueError: what is wrong, and where.
        """
        file: _File = decode(_File, form, "adaptation")
        if file.format != FORMAT:
            raise ValueError(f"format {FORMAT} expected, got {file.format}")
        adaptation = cls(file.model, file.key, tuple(record.entry(i, arrays) for i, record in enumerate(file.entries)))
        unknown = sorted(arrays.keys() - adaptation.arrays().keys())
        if unknown:
            raise ValueError(f"arrays that belong to no entry: {', '.join(unknown[:8])}")
        return adaptation

    def save(self, folder: Path) -> None:
        """Write both files into a folder that exists.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        write_atomic(folder / ARRAYS_FILE, safetensors.numpy.save(self.arrays()))
        write_atomic(folder / JSON_FILE, json.dumps(self.to_json(), indent=2, allow_nan=False).encode() + b"\n")


def load_adaptation(path: Path | str) -> Adaptation:
    """Read what `Adaptation.save` or a run wrote; neither file is trusted.

    Args:
        path: The run folder, or `adaptation.json` in it.

    Raises:
        RunFolderError: a file is missing, damaged, or not what the other one says.
    """
    path = Path(path)
    path = path / JSON_FILE if path.is_dir() else path
    try:
        form = json.loads(_read(path, MAX_JSON_BYTES))
        arrays = safetensors.numpy.load(_read(path.with_name(ARRAYS_FILE), MAX_ARRAYS_BYTES))
        return Adaptation.from_json(form, arrays)
    except OSError as error:
        raise RunFolderError(f"cannot read {error.filename}: {error.strerror}; give the folder of a run") from None
    except (ValueError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        raise RunFolderError(f"{path} is damaged ({quote(str(error), 200)}); adapt the model again") from None


def stimuli(shape: Shape) -> Array:
    """Return the fixed inputs that sites are known by, ``(len(AMPLITUDES), *shape)``; in none are two places alike."""
    wave = np.sin(np.arange(1, 1 + math.prod(shape))).reshape(shape)
    return np.stack([amplitude * wave for amplitude in AMPLITUDES]).astype(np.float32)


def sample(answers: Array) -> Array:
    """Return evenly spaced numbers of each answer: ``(n, c, ...)`` to ``(n, sample_size((c, ...)))``."""
    flat = answers.reshape(len(answers), -1)
    samples: Array = flat[:, np.linspace(0, flat.shape[1] - 1, sample_size(answers.shape[1:])).astype(np.int64)]
    return np.ascontiguousarray(samples, np.float32)


def sample_size(shape: Shape) -> int:
    """Return how many numbers `sample` takes of an answer of this shape."""
    return min(math.prod(shape), MAX_SAMPLES)


def _alike(model: Model, sites: Sequence[Site]) -> dict[str, list[str]]:
    """For each site the names of all that compute the very same function, in the order of the original."""
    position = {name: i for i, node in enumerate(model.original.graph.node) for name in node.output}
    groups: dict[tuple[str, ...], list[str]] = {}
    for site in sorted(sites, key=lambda site: position.get(site.output, len(position))):
        function = (site.operator.key, *(sha256(weight.tobytes()).hexdigest() for weight in site.weights))
        groups.setdefault(function, []).append(site.name)
    return {name: group for group in groups.values() for name in group}


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path.name} has more than {limit} bytes")
    return content


# The JSON file as `json_form` reads and writes it. Equations are for people: nobody reads them back.


@dataclass(frozen=True)
class _Record:
    """An `Entry` without its arrays."""

    site: str
    kind: str
    anchor: Anchor | None
    no_anchor: str | None
    occurrence: int
    occurrences: int
    original: str
    original_equation: str
    operator: str
    equation: str
    lineage: tuple[str, ...]

    @classmethod
    def of(cls, entry: Entry) -> _Record:
        anchor = entry.anchor
        return cls(
            site=entry.site,
            kind=entry.kind,
            anchor=None if isinstance(anchor, Rejection) else anchor,
            no_anchor=anchor.reason if isinstance(anchor, Rejection) else None,
            occurrence=entry.occurrence,
            occurrences=entry.occurrences,
            original=entry.original.text,
            original_equation=equation(entry.original).text,
            operator=entry.operator.text,
            equation=equation(entry.operator).text,
            lineage=entry.lineage,
        )

    def entry(self, i: int, arrays: Mapping[str, Array]) -> Entry:
        where = f"entry {i}, site {quote(self.site)}"
        original, operator = (_operator(text, where) for text in (self.original, self.operator))
        entry = Entry(
            site=self.site,
            kind=self.kind,
            anchor=self.anchor or Rejection(self.no_anchor or "the adaptation does not say where it is"),
            occurrence=self.occurrence,
            occurrences=self.occurrences,
            original=original,
            response=_array(arrays, f"{i}.response", (len(AMPLITUDES), sample_size(original.output_shape))),
            operator=operator,
            weights=tuple(_array(arrays, f"{i}.{k}", shape) for k, shape in enumerate(operator.weight_shapes)),
            lineage=self.lineage,
        )
        if (entry.input_shape, entry.output_shape) != _shapes(operator):
            raise ValueError(f"{where}: maps {_shapes(original)}, its replacement {_shapes(operator)}")
        if not 0 <= self.occurrence < self.occurrences:
            raise ValueError(f"{where}: occurrence {self.occurrence} of {self.occurrences}")
        return entry


@dataclass(frozen=True)
class _File:
    format: int
    model: str
    key: str
    entries: tuple[_Record, ...]


def _operator(text: str, where: str) -> OperatorGraph:
    operator = parse(text)
    if isinstance(operator, Rejection):
        raise ValueError(f"{where}: {operator.reason}")
    if len(operator.inputs) != 1:
        raise ValueError(f"{where}: an operator of one input expected, got {len(operator.inputs)}")
    return operator


def _shapes(operator: OperatorGraph) -> tuple[Shape, Shape]:
    return operator.types[operator.inputs[0]].shape, operator.output_shape


def _array(arrays: Mapping[str, Array], name: str, shape: Shape) -> Array:
    array = arrays.get(name)
    if array is None or array.dtype != np.float32 or array.shape != shape:
        got = "nothing" if array is None else f"{array.dtype.name} {array.shape}"
        raise ValueError(f"array {name}: float32 {shape} expected, got {got}")
    if not np.isfinite(array).all():
        raise ValueError(f"array {name} holds NaN or infinity")
    return array
