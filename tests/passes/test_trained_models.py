"""The trained models of the data folder, compiled whole."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from compiling import lowered, outputs_of, random
from example_models import TRAINED, trained_model

from device_targets import host
from tvm_passes.build import cpu_of


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_compiled_computes_what_the_original_computes(name: str) -> None:
    model = trained_model(name)
    array = random(*model.inputs[0].at_batch(1), seed=4)
    session = onnxruntime.InferenceSession(model.original.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {model.inputs[0].name: array})
    result = lowered(model.proto, cpu_of(host()))
    (got,) = outputs_of(result, array)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert not [kernel.name for kernel in result.kernels if kernel.rule.startswith("none")]
