from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.numpy
from example_models import normal, small_model

from gos_adapt.adaptation import Adaptation, load_adaptation, sample, stimuli
from gos_adapt.errors import Rejection, RunFolderError
from gos_adapt.model.anchors import Anchor
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.operators.text import parse

LOW_RANK = """\
v0 = input 6
v1 = weight 6x2
v2 = matrix_product(v0, v1, channels=2)
v3 = weight 2x4
v4 = matrix_product(v2, v3, channels=4)"""
WEIGHTS = (normal(6, 2), normal(2, 4))


@pytest.fixture
def model():
    nodes = [("MatMul", "x w", "a", {}), ("MatMul", "x w", "b", {}), ("Mul", "a b", "y", {})]
    return small_model(nodes, [1, 6], ["y"], [("w", normal(6, 4, seed=1))])


@pytest.fixture
def adaptation(model):
    return Adaptation.of(model, [Replacement("b", parse(LOW_RANK), WEIGHTS, ("seed low_rank 2", "fit"))])


def test_an_entry_says_what_replaced_what_and_where(model, adaptation):
    (entry,) = adaptation.entries
    assert (adaptation.model, adaptation.key) == ("small", model.key)
    assert (entry.site, entry.kind, entry.lineage) == ("b", "linear", ("seed low_rank 2", "fit"))
    assert isinstance(entry.anchor, Anchor)
    assert [node.op_type for node in entry.anchor.nodes] == ["MatMul"]
    assert (entry.input_shape, entry.output_shape) == ((6,), (4,))


def test_sites_of_one_function_are_numbered_in_the_order_of_the_original(adaptation):
    assert (adaptation.entries[0].occurrence, adaptation.entries[0].occurrences) == (1, 2)


def test_the_response_is_what_the_original_operator_answers(model, adaptation):
    weight = next(site for site in find_sites(model) if site.name == "b").weights[0]
    np.testing.assert_allclose(adaptation.entries[0].response, stimuli((6,)) @ weight, rtol=1e-5)


def test_stimuli_differ_in_amplitude_only():
    small, medium, large = stimuli((2, 3))
    np.testing.assert_allclose(small.reshape(-1), np.sin([1, 2, 3, 4, 5, 6]), rtol=1e-6)
    np.testing.assert_allclose(medium, 16 * small, rtol=1e-6)
    np.testing.assert_allclose(large, 256 * small, rtol=1e-6)


def test_a_long_answer_is_sampled_from_its_first_to_its_last_number():
    answers = np.arange(2 * 2047, dtype=np.float32).reshape(2, 1, 2047)
    np.testing.assert_array_equal(sample(answers), answers[:, 0, ::2])


def test_an_unknown_site_is_our_bug(model):
    with pytest.raises(ValueError, match="no such site: c"):
        Adaptation.of(model, [Replacement("c", parse(LOW_RANK), WEIGHTS)])


def test_what_is_saved_is_loaded_from_the_folder_or_the_file(adaptation, tmp_path):
    adaptation.save(tmp_path)
    for path in (tmp_path, tmp_path / "adaptation.json"):
        loaded = load_adaptation(path)
        assert loaded.to_json() == adaptation.to_json()
        assert loaded.entries[0].anchor == adaptation.entries[0].anchor
        for name, array in adaptation.arrays().items():
            np.testing.assert_array_equal(loaded.arrays()[name], array)


def test_the_file_shows_operators_as_text_and_equation(adaptation):
    (entry,) = adaptation.to_json()["entries"]
    assert entry["operator"] == LOW_RANK
    assert entry["equation"].startswith("y = ")
    assert set(adaptation.arrays()) == {"0.0", "0.1", "0.response"}


def test_a_site_that_the_original_lacks_keeps_its_reason(adaptation, tmp_path):
    form = adaptation.to_json()
    form["entries"][0] |= {"anchor": None, "no_anchor": "not there"}
    assert Adaptation.from_json(form, adaptation.arrays()).entries[0].anchor == Rejection("not there")


def test_a_folder_without_an_adaptation_is_named(tmp_path):
    with pytest.raises(
        RunFolderError, match=r"cannot read .*adaptation\.json: No such file.*; give the folder of a run"
    ):
        load_adaptation(tmp_path)


WRONG_FORMS = {
    "not an object": lambda form: [form],
    "another format": lambda form: form | {"format": 2},
    "no entries": lambda form: {key: form[key] for key in ("format", "model", "key")},
    "entries of another type": lambda form: form | {"entries": {"0": 1}},
    "a name that is a number": lambda form: form | {"model": 7},
    "not an operator": lambda form: _with(form, operator="v0 = input 6\nimport os"),
    "an ill-typed operator": lambda form: _with(form, operator=LOW_RANK.replace("2x4", "3x4")),
    "an operator of another shape": lambda form: _with(form, operator="v0 = input 6\nv1 = relu(v0)"),
    "an operator of two inputs": lambda form: _with(form, operator="v0 = input 6\nv1 = input 6\nv2 = add(v0, v1)"),
    "an endless operator": lambda form: _with(form, operator="v0 = input 6\n" * 10_000),
    "an occurrence too many": lambda form: _with(form, occurrence=2),
    "a lineage that is no list": lambda form: _with(form, lineage="seed"),
    "an anchor that is no anchor": lambda form: _with(form, anchor={"nodes": 3, "entries": []}),
    "an entry without arrays": lambda form: form | {"entries": form["entries"] * 2},
}
WRONG_ARRAYS = {
    "a weight missing": lambda arrays: {name: arrays[name] for name in ("0.0", "0.response")},
    "a response missing": lambda arrays: {name: arrays[name] for name in ("0.0", "0.1")},
    "another shape": lambda arrays: arrays | {"0.0": arrays["0.0"].T},
    "another type": lambda arrays: arrays | {"0.0": arrays["0.0"].astype(np.float64)},
    "a NaN": lambda arrays: arrays | {"0.1": np.full((2, 4), np.nan, np.float32)},
    "an array of nobody": lambda arrays: arrays | {"1.0": arrays["0.0"]},
}


@pytest.mark.parametrize("damage", WRONG_FORMS)
def test_a_damaged_description_is_refused_in_one_line(adaptation, tmp_path, damage):
    adaptation.save(tmp_path)
    form = WRONG_FORMS[damage](adaptation.to_json())
    (tmp_path / "adaptation.json").write_text(json.dumps(form))
    _assert_refused(tmp_path)


@pytest.mark.parametrize("damage", WRONG_ARRAYS)
def test_arrays_that_do_not_fit_are_refused_in_one_line(adaptation, tmp_path, damage):
    adaptation.save(tmp_path)
    arrays = {name: np.ascontiguousarray(array) for name, array in WRONG_ARRAYS[damage](adaptation.arrays()).items()}
    (tmp_path / "adaptation.safetensors").write_bytes(safetensors.numpy.save(arrays))
    _assert_refused(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[" * 100_000, b"NaN", b"{}", b" " * (2**24 + 1)],
    ids=lambda content: content[:3].hex(),
)
@pytest.mark.parametrize("name", ["adaptation.json", "adaptation.safetensors"])
def test_a_file_that_is_something_else_is_refused_in_one_line(adaptation, tmp_path, name, content):
    adaptation.save(tmp_path)
    (tmp_path / name).write_bytes(content)
    _assert_refused(tmp_path)


def test_truncated_arrays_are_refused_in_one_line(adaptation, tmp_path):
    adaptation.save(tmp_path)
    path = tmp_path / "adaptation.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    _assert_refused(tmp_path)


def _with(form, **changes):
    return form | {"entries": [form["entries"][0] | changes]}


def _assert_refused(folder):
    with pytest.raises(RunFolderError) as refusal:
        load_adaptation(folder)
    assert "\n" not in str(refusal.value)
    assert "adapt the model again" in str(refusal.value)
