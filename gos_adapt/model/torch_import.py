"""Turn a torch module or a `torch.export` archive into an ONNX model.

`torch.export.load` unpickles objects, evaluates expressions and compiles source text made of names in the archive:
loading a foreign archive that way runs what its author wants. So an archive is first reduced to what a model needs
(the graph as JSON and raw weights), every word of the graph is checked against what the exporter writes, and the
reduced copy alone is loaded. Pickled weights, sample inputs, custom objects, compiled code and guards never are.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import warnings
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.export.pt2_archive._package import load_pt2

from gos_adapt.errors import ModelImportError
from gos_adapt.model.wording import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

OPSET = 20  # what torch.onnx writes by default
MAX_ARCHIVE_BYTES = 2**31 - 1
MAX_JSON_BYTES = 2**26
MAX_ENTRIES = 2**16

_GRAPH = "models/model.json"
_CONFIGS = {
    "data/weights/": "data/weights/model_weights_config.json",
    "data/constants/": "data/constants/model_constants_config.json",
}
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_PLAIN = re.compile(r"archive_format|archive_version|byteorder|\.data/version")
_RAW = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_WORD = re.compile(r"[\w.+-]*", re.ASCII)
_TARGET = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod|neg)", re.ASCII)
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_TREE_CONTEXT = re.compile(r'null|\[("\w*"(, )?)*\]', re.ASCII)
# Sums and products of named sizes and small numbers, as sympy's srepr writes them; torch evaluates them as Python.
_SIZE = re.compile(
    r"((Add|Mul|Integer|Symbol)\(|'[su]\d{1,9}'|(positive|nonnegative|integer)=True|-?\d{1,9}|, |\)){1,64}", re.ASCII
)
_ANY = re.compile(r"(?s).*")
# String arguments of operators, which are only ever quoted, and call signatures, which `_check_tree` checks.
_LEGAL = {"expr_str": _SIZE, "as_string": _ANY, "in_spec": _ANY, "out_spec": _ANY}
# What torch raises on a program it cannot take, whatever the reason; it documents none.
_TORCH_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def import_archive(content: bytes) -> onnx.ModelProto:
    """Convert the bytes of a `.pt2` archive, written by `torch.export.save`, to ONNX.

    Raises:
        ModelImportError: it is not such an archive, is damaged, too large, or holds more than a graph and its weights.
    """
    safe = io.BytesIO(_reduced(content))
    with _quiet():
        try:
            programs = load_pt2(safe).exported_programs
            return _to_onnx(programs["model"])
        except _TORCH_ERRORS as error:
            raise ModelImportError(
                f"torch {torch.__version__} cannot load the archive: {quote(str(error), 200)}; "
                "save it again with the same torch version, or export to ONNX"
            ) from None


def import_module(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> onnx.ModelProto:
    """Export a module in evaluation mode to ONNX, with a dynamic batch axis where the module allows one.

    Args:
        module: Its training mode is put back afterwards.
        example_inputs: Positional arguments of `forward`; the first axis of every tensor of rank >= 1 is the batch.

    Raises:
        ModelImportError: torch cannot export it.
    """
    training = module.training
    module.eval()
    with _quiet():
        try:
            return _to_onnx(_exported(module, example_inputs))
        except _TORCH_ERRORS as error:
            raise ModelImportError(
                f"torch cannot export {type(module).__name__}: {quote(str(error), 200)}; "
                "see that torch.export.export(module, example_inputs) works"
            ) from None
        finally:
            module.train(training)


def _exported(module: torch.nn.Module, example_inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    def batched(value: object) -> bool:
        return isinstance(value, torch.Tensor) and value.ndim > 0

    # torch takes a size of 1 for a constant, so one sample is repeated.
    examples = tuple(torch.cat([x, x]) if batched(x) and len(x) == 1 else x for x in example_inputs)
    axes = tuple({0: torch.export.Dim.DYNAMIC} if batched(x) else None for x in example_inputs)
    try:
        return torch.export.export(module, examples, dynamic_shapes=axes)
    except _TORCH_ERRORS:  # the batch is fixed in the module: export it for the size given
        return torch.export.export(module, example_inputs)


def _to_onnx(program: torch.export.ExportedProgram) -> onnx.ModelProto:
    # Not optimised: that would compute constants of any size; `canonicalise` folds them, bounded.
    exported = torch.onnx.export(program, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return exported.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's warnings and log lines about its own internals from the user."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _reduced(content: bytes) -> bytes:
    """Copy an archive with nothing in it but the checked graph, configurations and raw weights."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = _entries(archive)
            parts = {name: archive.read(entry) for name, entry in entries.items()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelImportError(
            f"not a .pt2 archive, or a damaged one: {quote(str(error))}; write it with torch.export.save"
        ) from None
    for folder, config in _CONFIGS.items():
        _check_config(_json(parts, config), {name: len(part) for name, part in parts.items()}, folder)
    graph = _json(parts, _GRAPH)
    parts[_GRAPH] = json.dumps(_checked_graph(graph)).encode()
    parts[_SAMPLE_INPUTS] = b""
    reduced = io.BytesIO()
    with zipfile.ZipFile(reduced, "w", zipfile.ZIP_STORED) as archive:
        for name, part in parts.items():
            archive.writestr(f"model/{name}", part)
    return reduced.getvalue()


def _entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the entries to read by name without the archive's root folder; the directory tells their sizes."""
    found = archive.infolist()
    if len(found) > MAX_ENTRIES or sum(entry.file_size for entry in found) > MAX_ARCHIVE_BYTES:
        raise ModelImportError(
            f"the archive holds {len(found)} entries of {sum(entry.file_size for entry in found)} bytes unpacked, more "
            f"than the {MAX_ENTRIES} and {MAX_ARCHIVE_BYTES} allowed; export to ONNX with weights beside the model"
        )
    named = {entry.filename.partition("/")[2]: entry for entry in found}
    if len(named) < len(found):
        raise ModelImportError("the archive names an entry twice; write it with torch.export.save")
    foreign = [name for name in named if name.startswith(("data/aotinductor/", "models/")) and name != _GRAPH]
    if foreign:
        raise ModelImportError(
            f"the archive holds {quote(foreign[0])}; only archives of one model, without compiled code, are read: "
            "write it with torch.export.save"
        )
    described = {_GRAPH, *_CONFIGS.values()}
    for name in described & named.keys():
        if named[name].file_size > MAX_JSON_BYTES:
            raise ModelImportError(f"{name} in the archive exceeds {MAX_JSON_BYTES} bytes; export to ONNX instead")
    return {n: entry for n, entry in named.items() if n in described or _PLAIN.fullmatch(n) or _RAW.fullmatch(n)}


def _json(parts: dict[str, bytes], name: str) -> dict[str, Any]:
    try:
        value = json.loads(parts[name])
    except (KeyError, ValueError, RecursionError) as error:
        reason = "it is missing" if isinstance(error, KeyError) else str(error)
        raise ModelImportError(
            f"the archive's {name} cannot be read: {quote(reason)}; write it with torch.export.save (torch >= 2.8)"
        ) from None
    if not isinstance(value, dict):
        raise ModelImportError(f"the archive's {name} is not an object; write it with torch.export.save")
    return value


def _check_config(config: dict[str, Any], sizes: dict[str, int], folder: str) -> None:
    """Check that every tensor is raw bytes in the archive, all of them there."""
    try:
        for tensor in config["config"].values():
            if tensor["use_pickle"] or not _RAW.fullmatch(folder + tensor["path_name"]):
                raise _unsafe(f"{tensor['path_name']} in {folder} is a pickled object")
            elements = math.prod(size["as_int"] for size in tensor["tensor_meta"]["sizes"])
            # Every element takes at least a byte; strides of 0 could otherwise make much of little.
            if elements > sizes[folder + tensor["path_name"]] or tensor["tensor_meta"]["device"]["type"] != "cpu":
                raise _unsafe(f"{tensor['path_name']} in {folder} does not hold its {elements} elements")
            _check_words(tensor)
    except (KeyError, TypeError, AttributeError) as error:
        raise _unsafe(f"the description of the tensors in {folder} is not as torch writes it ({error})") from None


def _checked_graph(program: dict[str, Any]) -> dict[str, Any]:
    """Return the program without guards and stack traces, every text in it one that the exporter could have written."""
    try:
        graph_module = program["graph_module"]
        calls = [call for call in graph_module["module_call_graph"] if call["fqn"] == ""]
        for call in calls:
            for key in ("in_spec", "out_spec"):
                _check_tree(json.loads(call["signature"][key])[1])
        for node in graph_module["graph"]["nodes"]:
            if not _TARGET.fullmatch(node["target"]):
                raise _unsafe(f"it calls {node['target']}, which is no ATen operator")
        nodes = [node | {"metadata": {}} for node in graph_module["graph"]["nodes"]]
        checked = program | {
            "guards_code": [],
            "graph_module": graph_module
            | {"graph": graph_module["graph"] | {"nodes": nodes}, "module_call_graph": calls, "metadata": {}},
        }
        _check_words(checked)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise _unsafe(f"its graph is not as torch writes it ({error})") from None
    return checked


def _check_words(value: object, key: str = "") -> None:
    """Check every string in a JSON value: names end up in source text that torch compiles, sizes are evaluated."""
    if isinstance(value, dict):
        for name, item in value.items():
            _check_words(name)
            _check_words(item, name)
    elif isinstance(value, list):
        for item in value:
            _check_words(item, key)
    elif isinstance(value, str) and not _LEGAL.get(key, _WORD).fullmatch(value):
        raise _unsafe(f"{key or 'a name'} is {value!r}")


def _check_tree(spec: dict[str, Any]) -> None:
    """Check the structure of arguments: tuples, lists and dictionaries; a context could name any class."""
    if spec["type"] not in _TREE_TYPES or not _TREE_CONTEXT.fullmatch(spec["context"] or "null"):
        raise _unsafe(f"its arguments are of type {spec['type']}")
    for child in spec["children_spec"]:
        _check_tree(child)


def _unsafe(reason: str) -> ModelImportError:
    return ModelImportError(
        f"the archive was not loaded, since it could run foreign code: {quote(reason, 160)}; "
        "export tensors in, tensors out with torch.export, or export to ONNX"
    )
