from __future__ import annotations

import io
import json
import pickle
import zipfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from gos_adapt.errors import ModelImportError
from gos_adapt.model.load import load_model as load_model_apart
from gos_adapt.model.load import load_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from gos_adapt.model.model import Model

Parts = dict[str, bytes]

# In this process, for speed; what another process adds is tested in `test_load_apart.py`.
load_model = partial(load_model_apart, apart=False)


class SmallCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.fc(self.drop(x.view(x.size(0), -1)))


@pytest.fixture(scope="module")
def module() -> SmallCnn:
    torch.manual_seed(0)
    return SmallCnn()


@pytest.fixture(scope="module")
def archive(module: SmallCnn) -> bytes:
    program = torch.export.export(
        module.eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    stream = io.BytesIO()
    torch.export.save(program, stream)
    return stream.getvalue()


def assert_computes(model: Model, module: nn.Module, batch: int) -> None:
    x = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
    session = ort.InferenceSession(model.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    actual = session.run(None, {model.inputs[0].name: x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(actual, module.eval()(x).numpy(), rtol=1e-4, atol=1e-5)


def rewritten(archive: bytes, change: Callable[[Parts], object]) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        parts = {name.partition("/")[2]: source.read(name) for name in source.namelist()}
    change(parts)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        for name, part in parts.items():
            target.writestr(f"m/{name}", part)
    return stream.getvalue()


def edit(name: str, change: Callable[[Any], object]) -> Callable[[Parts], object]:
    def change_part(parts: Parts) -> None:
        value = json.loads(parts[name])
        change(value)
        parts[name] = json.dumps(value).encode()

    return change_part


def test_archive_loads_with_a_dynamic_batch(archive: bytes, module: SmallCnn, tmp_path: Path) -> None:
    path = tmp_path / "small.pt2"
    path.write_bytes(archive)
    model = load_model(path)
    assert model.name == "small"
    assert model.inputs[0].shape == ("N", 3, 8, 8)
    assert [node.op_type for node in model.proto.graph.node] == ["Conv", "Relu", "MaxPool", "Reshape", "Gemm"]
    assert_computes(model, module, 3)
    assert str(tmp_path).encode() not in model.proto.SerializeToString()


@pytest.mark.parametrize("batch", [1, 4])
def test_module_loads_with_a_dynamic_batch_and_keeps_its_mode(batch: int) -> None:
    module = SmallCnn().train()
    model = load_module(module, (torch.randn(batch, 3, 8, 8),))
    assert module.training
    assert model.name == "SmallCnn"
    assert model.inputs[0].shape == ("N", 3, 8, 8)
    assert_computes(model, module, 5)


def test_module_with_its_batch_fixed_loads_fixed() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.reshape(1, 6))

    assert load_module(Fixed(), (torch.randn(1, 2, 3),)).inputs[0].shape == (1, 2, 3)


def test_module_torch_cannot_export_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelImportError, match="torch cannot export Branching"):
        load_module(Branching(), (torch.randn(1, 2),))


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_sample_inputs_are_never_unpickled(archive: bytes, tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    path = tmp_path / "m.pt2"
    path.write_bytes(rewritten(archive, lambda parts: parts.update({"data/sample_inputs/model.pt": trap})))
    load_model(path)
    assert not (tmp_path / "sprung").exists()


WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
GRAPH = "models/model.json"
UNSAFE = "could run foreign code"


def _first_weight(config: Any) -> Any:
    return config["config"]["conv.weight"]


def _size(graph: Any) -> Any:
    values = graph["graph_module"]["graph"]["tensor_values"].values()
    return next(size["as_expr"] for value in values for size in value["sizes"] if "as_expr" in size)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (edit(WEIGHTS, lambda c: _first_weight(c).update(use_pickle=True)), UNSAFE),
        (edit(WEIGHTS, lambda c: _first_weight(c).update(path_name="../../model")), UNSAFE),
        (edit(WEIGHTS, lambda c: _first_weight(c)["tensor_meta"].update(sizes=[{"as_int": 2**40}])), "does not hold"),
        (edit(CONSTANTS, lambda c: c["config"].update(a={"path_name": "opaque_obj_0", "use_pickle": False})), UNSAFE),
        (edit(GRAPH, lambda g: _size(g).update(expr_str="__import__('os').getcwd()")), UNSAFE),
        (edit(GRAPH, lambda g: _size(g).update(expr_str="Pow(Integer(9), Integer(999999999))")), UNSAFE),
        (edit(GRAPH, lambda g: g["graph_module"]["graph"]["nodes"][0].update(target="torch.load")), "no ATen operator"),
        (edit(GRAPH, lambda g: g["graph_module"]["graph"]["nodes"][0].update(name="a\nimport os")), UNSAFE),
        (edit(GRAPH, lambda g: g["graph_module"].update(module_call_graph="x")), UNSAFE),
        (edit(GRAPH, lambda g: g["graph_module"]["graph"]["nodes"][0].update(inputs=[])), "cannot load the archive"),
        (lambda parts: parts.pop(GRAPH), "it is missing"),
        (lambda parts: parts.pop("data/weights/weight_0"), UNSAFE),
        (lambda parts: parts.update({GRAPH: b"[" * 100_000}), "cannot be read"),
        (lambda parts: parts.update({"data/aotinductor/model/a.so": b"\x7fELF"}), "compiled code"),
        (lambda parts: parts.update({"models/other.json": b"{}"}), "one model"),
    ],
)
def test_hostile_archive_is_refused(
    change: Callable[[Parts], object], says: str, archive: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(rewritten(archive, change))
    with pytest.raises(ModelImportError, match=says) as caught:
        load_model(path)
    assert str(caught.value).isprintable()


def test_guards_are_never_run(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    guard = f"__import__('pathlib').Path({str(tmp_path / 'sprung')!r}).touch()"
    path.write_bytes(rewritten(archive, edit(GRAPH, lambda g: g.update(guards_code=[guard]))))
    load_model(path)
    assert not (tmp_path / "sprung").exists()


def test_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:
        for i in range(40):
            target.writestr(f"m/data/weights/weight_{i}", bytes(2**20))
    bomb = bytearray(stream.getvalue())
    # Raise what the directory says each entry unpacks to, as a bomb's would: 40 entries of 64 MiB.
    start = 0
    while (start := bomb.find(b"PK\x01\x02", start)) >= 0:
        bomb[start + 24 : start + 28] = (2**26).to_bytes(4, "little")
        start += 4
    path = tmp_path / "bomb.pt2"
    path.write_bytes(bytes(bomb))
    with pytest.raises(ModelImportError, match=r"2684354560 bytes unpacked"):
        load_model(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04 no archive", b"not a zip file at all"])
def test_file_that_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_bytes(content)
    with pytest.raises(ModelImportError, match=r"not a \.pt2 archive"):
        load_model(path)
