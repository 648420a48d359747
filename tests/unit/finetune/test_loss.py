"""What a replacement costs right after fitting."""

import pytest
from example_models import normal
from example_search import residual_model, sites_named, task_for

from gos_adapt.finetune.distil import prepare_lessons
from gos_adapt.finetune.loss import MIN_SAMPLES, SAMPLES, LossJudge


@pytest.mark.parametrize(("side", "samples"), [(2, SAMPLES), (8, 128), (16, MIN_SAMPLES)])
def test_a_site_of_few_positions_is_judged_on_more_samples(side, samples):
    inputs = normal(384, 3, side, side)
    model = residual_model(8, inputs)
    (site,) = sites_named(model, "o1")
    lessons = prepare_lessons(model, task_for(model, inputs), SAMPLES)
    assert LossJudge(model, site, lessons)._taught.n == min(samples, lessons.samples.n)
