"""The iterative strategy on this machine: several steps, each on the model as it is by then."""

import math
import shutil
from functools import partial

import example_strategies
import numpy as np
import pytest
from example_search import residual_model
from example_strategies import INPUTS

from device_targets import DEVICES
from device_targets.session import Session
from gos_adapt.finetune.distil import AccuracyJudge, Training
from gos_adapt.finetune.fit import FitSettings
from gos_adapt.model.sites import find_sites
from gos_adapt.model.splice import splice
from gos_adapt.search.cascade import Settings
from gos_adapt.strategies import iterative
from gos_adapt.strategies.iterative import Iterative
from gos_adapt.strategies.setting import Request
from gos_adapt.workbench import Workbench

pytestmark = pytest.mark.rpc
SETTINGS = Settings(generations=1, population=8, offspring=4, measurements=8, judgements=2, max_fit_error=0.9)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Short fits and little training: the tests are about what is done, not how well."""
    hasty = partial(AccuracyJudge, fitting=FitSettings(steps=5), fit_samples=32, training=Training(steps=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterative, "AccuracyJudge", hasty)
        patch.setattr(iterative, "RECOVERY_STEPS", 4)
        patch.setattr(iterative, "PASSES", 1)
        yield


@pytest.fixture(scope="module")
def workbench():
    with Session(DEVICES["host"]()) as session, Workbench(session) as bench:
        yield bench


@pytest.fixture(scope="module")
def model():
    return residual_model(32, INPUTS)


def opened(model, workbench, path, kept, *, seconds=math.inf, **options):
    request = Request(seed=0, settings=SETTINGS, **{"epsilon": 0.5, "max_sites": 2, "group_limit": 1, **options})
    return example_strategies.opened(Iterative, model, workbench, path, kept, request, seconds=seconds)


@pytest.fixture(scope="module")
def finished(model, workbench, tmp_path_factory):
    path, kept = tmp_path_factory.mktemp("iterative") / "run", []
    with opened(model, workbench, path, kept, train_all=True) as strategy:
        return path, strategy.run(), kept


def test_one_site_after_the_other_is_replaced(finished, model):
    _, adapted, kept = finished
    assert len(adapted.steps) > 1
    # That one is replaced is certain enough to ask for; whether a second one gains, too, is for the clock to say.
    chosen = [name for step in adapted.steps for name in step.chosen]
    assert chosen
    for i, step in enumerate(adapted.steps):
        assert not {site.name for site in step.sites} & {name for before in adapted.steps[:i] for name in before.chosen}
    replaced = {r.site for r in adapted.replacements if not r.retrained}
    assert replaced == set(chosen)
    assert [len([r for r in own if not r.retrained]) for own in kept][: len(chosen)] == list(range(1, len(chosen) + 1))
    assert splice(model, adapted.replacements).proto == adapted.model.proto


def test_every_replaced_site_is_one_of_the_original(finished, model):
    _, adapted, _ = finished
    own = {site.name: site.nodes for site in find_sites(model)}
    assert all(own[site.name] == site.nodes for step in adapted.steps for site in step.sites)


@pytest.mark.parametrize("forgotten", [(), ("recovered:", "step:1", "profile:after")])
def test_a_run_that_goes_on_ends_the_same(finished, model, workbench, tmp_path, forgotten):
    path, adapted, _ = finished
    shutil.copytree(path, tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    records = journal.read_text().splitlines(keepends=True)
    cut = next((i for i, record in enumerate(records) if any(f'["{name}' in record for name in forgotten)), None)
    journal.write_text("".join(records[:cut]))
    with opened(model, workbench, tmp_path / "run", [], train_all=True) as strategy:
        again = strategy.run()
    first = [sorted(step.chosen) for step in adapted.steps][: 1 if forgotten else None]
    assert [sorted(step.chosen) for step in again.steps][: len(first)] == first
    if not forgotten:
        for one, other in zip(adapted.replacements, again.replacements, strict=True):
            assert one.site == other.site
            for mine, theirs in zip(one.weights, other.weights, strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"seconds": 0.0}, "the time was over"),
        ({"target_latency_s": 1e9}, "the latency that was asked for is reached"),
    ],
)
def test_why_nothing_more_is_searched_is_said_of_every_site(model, workbench, tmp_path, options, why):
    with opened(model, workbench, tmp_path / "run", [], **options) as strategy:
        adapted = strategy.run()
    assert (adapted.replacements, adapted.steps) == ((), ())
    assert any(why in reason for reason in adapted.selection.reasons.values())


def test_a_model_too_large_for_the_device_is_searched_however_fast(finished, model, workbench, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run")
    monkeypatch.setattr(iterative, "model_bytes", lambda _: 2**60)
    with opened(model, workbench, tmp_path / "run", [], target_latency_s=1e9) as strategy:
        (profile,) = strategy.profiles("original", model)
        selection = strategy._select(model, strategy.eligible(model), profile, set(), ())
        assert "exceed the device's" in " ".join(selection.reasons.values())
        assert strategy._stop(model, profile, selection, (), 1e9, 0) == ""
