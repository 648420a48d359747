from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from example_models import assert_close, in_onnx_runtime, model_input, normal, small_model, trained_model
from onnx import TensorProto, helper, numpy_helper
from tvm.script import ir as I
from tvm.script import relax as R

from gos_adapt.adaptation import Adaptation
from gos_adapt.errors import ModelImportError, Rejection
from gos_adapt.model.load import load_model
from gos_adapt.model.model import Replacement
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.operators.builder import Builder
from gos_adapt.operators.canonical import canonicalise
from gos_adapt.operators.seeds import seeds
from tvm_passes import ReplaceOperators
from tvm_passes.compat import Sequential, from_onnx, relax, tvm

SCRIPT = Path(__file__).parents[2] / "examples" / "tvm_pass" / "apply_adaptation.py"

FILTER, BIAS, SCALE = normal(2, 2, 3, 3), normal(2, seed=1), normal(2, seed=2)


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 4), "float32")) -> R.Tensor((1, 2, 4, 4), "float32"):  # noqa: N805
        with R.dataflow():
            product = R.nn.conv2d(x, R.const(FILTER), padding=[1, 1, 1, 1])
            column = R.reshape(R.const(BIAS), (1, 2, 1, 1))
            site = R.add(product, column)
            shifted = R.add(site, R.const(SCALE.reshape(1, 2, 1, 1)))
            y = R.nn.relu(shifted)
            R.output(y)
        return y


@I.ir_module
class Expected:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 4), "float32")) -> R.Tensor((1, 2, 4, 4), "float32"):  # noqa: N805
        with R.dataflow():
            column = R.reshape(R.const(SCALE), (1, 2, 1, 1))
            site = R.multiply(x, column)
            shifted = R.add(site, R.const(SCALE.reshape(1, 2, 1, 1)))
            y = R.nn.relu(shifted)
            R.output(y)
        return y


def scaling_instead_of_a_convolution(weight=FILTER):
    """An adaptation of `Before`: one ONNX node stands for its first three lines."""
    model = small_model(
        [
            ("Conv", "x w b", "site", {"pads": [1, 1, 1, 1]}),
            ("Add", "site s", "shifted", {}),
            ("Relu", "shifted", "y", {}),
        ],
        [1, 2, 4, 4],
        ["y"],
        [("w", weight), ("b", BIAS), ("s", SCALE.reshape(1, 2, 1, 1))],
    )
    b = Builder()
    b.apply("channel_scale", b.input(2, 4, 4))
    return Adaptation.of(model, [Replacement("site", b.graph(), (SCALE,))])


def test_the_region_of_a_site_becomes_its_new_operator_and_the_rest_stays():
    after = ReplaceOperators(scaling_instead_of_a_convolution())(Before)
    tvm.ir.assert_structural_equal(after, Expected)


def test_a_convolution_with_other_weights_is_not_the_site():
    with pytest.raises(ModelImportError, match=r"site site \(conv\): 0 places of the module compute it, expected 1"):
        ReplaceOperators(scaling_instead_of_a_convolution(FILTER + 1))(Before)


def test_the_same_weights_with_another_bias_are_not_the_site():
    adaptation = scaling_instead_of_a_convolution()
    (entry,) = adaptation.entries
    other = replace(adaptation, entries=(replace(entry, response=entry.response + 0.1),))
    with pytest.raises(ModelImportError, match="0 places"):
        ReplaceOperators(other)(Before)


def test_a_site_without_a_place_in_the_original_is_refused_with_its_reason():
    adaptation = scaling_instead_of_a_convolution()
    entries = (replace(adaptation.entries[0], anchor=Rejection("the original does not compute it")),)
    with pytest.raises(ModelImportError, match=r"the original does not compute it; compile adapted\.onnx instead"):
        ReplaceOperators(replace(adaptation, entries=entries))(Before)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """Batch normalisation, a residual block, a clip to [0, 6], two equal poolings, and a transposed Gemm; any batch."""
    nodes = [
        ("Conv", "x w1", "c1", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "c1 scale shift mean variance", "n1", {}),
        ("Clip", "n1 zero six", "stem", {}),
        ("MaxPool", "stem", "pool1", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("Conv", "pool1 w2", "c2", {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", "c2 shift scale mean variance", "n2", {}),
        ("Relu", "n2", "r2", {}),
        ("Conv", "r2 w3 b3", "c3", {"pads": [0, 0, 2, 2]}),
        ("BatchNormalization", "c3 scale shift mean variance", "n3", {}),
        ("Add", "n3 pool1", "sum", {}),
        ("Relu", "sum", "block", {}),
        ("MaxPool", "block", "pool2", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
        ("GlobalAveragePool", "pool2", "mean4", {}),
        ("Flatten", "mean4", "flat", {}),
        ("Gemm", "flat w4 b4", "y", {"transB": 1}),
    ]
    weights = {
        "w1": normal(8, 3, 3, 3, seed=1),
        "w2": normal(8, 8, 3, 3, seed=2) / 8,
        "w3": normal(8, 8, 3, 3, seed=3) / 8,
        "b3": normal(8, seed=4),
        "w4": normal(5, 8, seed=5),
        "b4": normal(5, seed=6),
        "scale": np.abs(normal(8, seed=7)) + 0.5,
        "shift": normal(8, seed=8),
        "mean": normal(8, seed=9),
        "variance": np.abs(normal(8, seed=10)) + 0.5,
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }
    graph = helper.make_graph(
        [helper.make_node(op, inputs.split(), [output], **settings) for op, inputs, output, settings in nodes],
        "cnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path_factory.mktemp("cnn") / "cnn.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return load_model(path, apart=False)


def seeded(model, **seed_of):
    """Replace sites, given by name, by the first of their seeds of that name."""
    sites = {site.name: site for site in find_sites(model)}
    replacements = []
    for name, wanted in seed_of.items():
        site = sites[name]
        seed = next(seed for seed in seeds(site.operator) if seed.name.startswith(wanted))
        weights = seed.initial(site.weights, np.random.default_rng(0))
        replacements.append(Replacement(name, seed.graph, weights, (seed.name,)))
    return replacements


def three_kinds(model):
    return seeded(model, stem="depthwise_pointwise", block="only v0", y="low_rank")


def imported(model, batch=1, **settings):
    shapes = {} if batch is None else {"shape_dict": {model.inputs[0].name: list(model.inputs[0].at_batch(batch))}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return from_onnx(model.original, **shapes, **settings)


def run(module, x):
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x)).numpy()


def assert_adapted(module, model, replacements, batch=1):
    x = model_input(model, batch)
    (expected,) = in_onnx_runtime(splice(model, replacements).proto, x)
    (original,) = in_onnx_runtime(model.original, x)
    assert np.abs(expected - original).max() > 1e-2 * np.abs(original).max()
    assert_close(run(module, x), expected)


BEFORE = {
    "FoldConstant": relax.transform.FoldConstant(),
    "CanonicalizeBindings": relax.transform.CanonicalizeBindings(),
    "DecomposeOpsForInference": relax.transform.DecomposeOpsForInference(),
    "zero": relax.get_pipeline("zero"),  # fuses, but each of these sites by itself
}


@pytest.mark.parametrize("before", BEFORE)
def test_three_kinds_of_sites_are_replaced_whatever_ran_before(cnn, before):
    replacements = three_kinds(cnn)
    passes = Sequential([BEFORE[before], ReplaceOperators(Adaptation.of(cnn, replacements))])
    assert_adapted(passes(imported(cnn)), cnn, replacements)


def test_the_users_own_passes_follow(cnn):
    replacements = three_kinds(cnn)
    passes = Sequential([ReplaceOperators(Adaptation.of(cnn, replacements)), relax.get_pipeline("zero")])
    assert_adapted(passes(imported(cnn)), cnn, replacements)


@pytest.mark.parametrize("batch", [3, None])
def test_a_fixed_and_a_symbolic_batch_are_kept(cnn, batch):
    replacements = three_kinds(cnn)
    module = ReplaceOperators(Adaptation.of(cnn, replacements))(imported(cnn, batch))
    assert_adapted(module, cnn, replacements, batch=3)


def test_weights_in_the_inputs_are_found_once_they_are_bound(cnn):
    replacements = three_kinds(cnn)
    adapt = ReplaceOperators(Adaptation.of(cnn, replacements))
    module, weights = relax.frontend.detach_params(imported(cnn, keep_params_in_input=True))
    with pytest.raises(ModelImportError, match="its weights bound"):
        adapt(module)
    names = [parameter.name for parameter in module["main"].params[1:]]
    bound = relax.transform.BindParams("main", dict(zip(names, weights["main"], strict=True)))(module)
    assert_adapted(adapt(bound), cnn, replacements)


def test_a_site_that_was_fused_with_its_neighbour_is_refused_by_name(cnn):
    adapt = ReplaceOperators(Adaptation.of(cnn, seeded(cnn, n3="grouped")))
    with pytest.raises(ModelImportError, match=r"site n3 \(conv\): 0 places .*; apply ReplaceOperators first"):
        adapt(relax.get_pipeline("zero")(imported(cnn)))


def test_of_two_equal_poolings_the_right_one_is_replaced(cnn):
    b = Builder()
    b.apply("average_pool", b.input(8, 8, 8), kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    replacements = [Replacement("pool2", canonicalise(b.graph()).graph, ())]
    adaptation = Adaptation.of(cnn, replacements)
    assert (adaptation.entries[0].occurrence, adaptation.entries[0].occurrences) == (1, 2)
    assert_adapted(ReplaceOperators(adaptation)(imported(cnn)), cnn, replacements)


def test_a_bound_that_no_small_input_reaches_belongs_to_the_site(cnn):
    """Without the clip at 6 inside the region, the new operator's output would still be clipped."""
    (replacement,) = seeded(cnn, stem="original")
    weights = tuple(2 * weight for weight in replacement.weights)
    unclipped = Builder()
    x = unclipped.input(3, 8, 8)
    unclipped.bias(unclipped.convolution(x, 8, (3, 3), padding=(1, 1, 1, 1)))
    replacements = [Replacement("stem", unclipped.graph(), weights)]
    assert_adapted(ReplaceOperators(Adaptation.of(cnn, replacements))(imported(cnn)), cnn, replacements)


def test_overlapping_sites_are_refused(cnn):
    adaptation = Adaptation.of(cnn, seeded(cnn, r2="grouped", block="only v0"))
    with pytest.raises(ModelImportError, match="site block overlaps another"):
        ReplaceOperators(adaptation)(imported(cnn))


def test_every_site_of_a_trained_network_can_be_replaced():
    model = trained_model("cifar10_resnet/resnet20_cifar10")
    sites = find_sites(model)
    branches = [site for site in sites if site.kind == "branch"]
    replacements = [
        *seeded(model, **{sites[0].name: "low_rank_in", sites[-1].name: "low_rank"}),
        *seeded(model, **{branches[1].name: "only v0", branches[3].name: "shortcut"}),
    ]
    assert_adapted(ReplaceOperators(Adaptation.of(model, replacements))(imported(model)), model, replacements)


def test_the_example_gets_what_adapted_onnx_computes(cnn, tmp_path):
    replacements = three_kinds(cnn)
    onnx.save(cnn.original, tmp_path / "original.onnx")
    onnx.save(splice(cnn, replacements).proto, tmp_path / "adapted.onnx")
    Adaptation.of(cnn, replacements).save(tmp_path)
    root = SCRIPT.parents[2]
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "original.onnx", tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(root), "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("largest difference from adapted.onnx in ONNX Runtime: ")
