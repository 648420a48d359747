"""What a run leaves on disk while it goes on."""

import numpy as np
import onnx
from example_search import residual_model, sites_named

from gos_adapt import pipeline
from gos_adapt.model.model import Replacement
from gos_adapt.model.splice import splice
from gos_adapt.run_folder import RunFolder


def test_a_run_that_repeats_its_history_does_not_replace_what_has_been_better_since(tmp_path):
    model = residual_model()
    (site,) = sites_named(model, "r1")
    found = []
    for scale in (1.0, 0.5):
        weights = tuple(np.float32(scale) * weight for weight in site.weights)
        replacements = [Replacement(site.name, site.operator, weights)]
        found.append((splice(model, replacements), replacements))
    for again in (False, True):
        with RunFolder.open(tmp_path / "run", {"test": "keep"}, "resume") as folder:
            for adapted, replacements in found:
                pipeline._keep(folder, model, adapted, replacements)
                if again:
                    assert onnx.load(folder.path / "adapted.onnx") == found[-1][0].proto
            folder.save_json("result.json", {})
    assert (tmp_path / "run" / "result.json").exists()
    with RunFolder.open(tmp_path / "run", {"test": "keep"}, "resume") as folder:
        pipeline._keep(folder, model, model, [])
    assert not (tmp_path / "run" / "result.json").exists()
