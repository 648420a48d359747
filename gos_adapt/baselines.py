"""What people use today: the original model in ONNX Runtime, fp32 and int8."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from device_targets.threads import cores_for, tied
from gos_adapt.errors import Rejection, last_line
from gos_adapt.task import open_session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from gos_adapt.model.model import Model

Array = np.ndarray[Any, Any]

CALIBRATION_SAMPLES = 128


class OnnxRuntime:
    """One ONNX model in ONNX Runtime on the CPU, with fixed inputs bound, ready to be timed.

    Inputs and outputs are bound once, so that what is timed is the model and not the conversion of numpy arrays; one
    Python call remains in each sample (about 2 µs). Threads are tied to cores as they are for compiled models, the
    calling one while it runs: where two of them meet on one core, a sample takes twice as long.
    """

    def __init__(self, proto: onnx.ModelProto, threads: int, inputs: dict[str, Array]) -> None:
        self._cores = cores_for(threads)
        self.session = open_session(proto.SerializeToString(), threads, self._cores)
        self._inputs = inputs
        self._binding = self.session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_cpu_input(name, array)
        for output in self.session.get_outputs():
            self._binding.bind_output(output.name)

    def sample(self, count: int) -> list[float]:
        """Execute `count` times; return the seconds that each took by the monotonic clock."""
        latencies = []
        with tied(self._cores):
            for _ in range(count):
                start = time.perf_counter()
                self.session.run_with_iobinding(self._binding)
                latencies.append(time.perf_counter() - start)
        return latencies

    def outputs(self) -> list[Array]:
        """Execute once and return the outputs; one of two names counts twice, which the binding does not know."""
        outputs: list[Array] = self.session.run(None, self._inputs)
        return outputs


def quantize(model: Model, samples: Iterable[dict[str, Array]], folder: Path) -> onnx.ModelProto | Rejection:
    """Quantise a model with ONNX Runtime's static quantiser: QDQ, int8, per channel, min-max calibration.

    It is given the canonical graph, in which batch normalisation is folded: left apart, as in exports from torch, it
    makes a slow model. Its shapes are known, so ONNX Runtime's symbolic inference of them is left out.

    Args:
        model: The model.
        samples: Inputs by name, to calibrate on.
        folder: For ONNX Runtime's files; the caller removes it.

    Returns:
        The quantised model, which ran once, or why there is none: it is a baseline, and its absence is a finding.
    """
    source, prepared, target = (folder / f"{stage}.onnx" for stage in ("original", "prepared", "int8"))
    onnx.save(model.proto, source)
    reader, root = _Reader(iter(samples)), logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser logs advice there
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), str(target), reader, quant_format=QuantFormat.QDQ, per_channel=True)
        quantized = onnx.load(target)
        open_session(quantized.SerializeToString(), 1).run(None, reader.last)
    except Exception as failure:  # whatever the quantiser cannot do, or ONNX Runtime cannot run
        return Rejection(f"ONNX Runtime cannot quantise the model or run it then: {last_line(failure)}")
    finally:
        root.setLevel(level)
    return quantized


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives samples one after the other, and keeps the last."""

    def __init__(self, samples: Iterator[dict[str, Array]]) -> None:
        self._samples = samples
        self.last: dict[str, Array] = {}

    def get_next(self) -> dict[str, Array] | None:
        sample = next(self._samples, None)
        self.last = sample or self.last
        return sample
