"""The benchmark of the search, on a small model with counted latencies and a few generations."""

import csv
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import search as benchmark
from example_search import context_for, residual_model, sites_named, task_for

from gos_adapt.finetune.capture import capture
from gos_adapt.finetune.distil import prepare_lessons
from gos_adapt.finetune.loss import LossJudge
from gos_adapt.run_folder import RunFolder
from gos_adapt.search.cascade import LEVELS
from gos_adapt.search.search import Front, seed_candidates
from gos_adapt.strategies.joint import ANY_LOSS

SETTINGS = replace(benchmark._search_settings(), generations=2, population=8, offspring=6, measurements=6, judgements=6)


@pytest.fixture(scope="module")
def model():
    return residual_model()


@pytest.fixture(scope="module")
def lessons(model):
    return prepare_lessons(model, task_for(model), 64)


@pytest.fixture(scope="module")
def unfitted(model, lessons):
    (site,) = sites_named(model, "o1")
    return benchmark.Unfitted(model, site, lessons, capture(model, [site], lessons.samples.arrays()[0])["o1"])


@pytest.fixture
def contexts(model, lessons, unfitted, tmp_path):
    sites, folders = sites_named(model, "o1", "o2"), iter(range(100))

    @contextmanager
    def make(variant, time_left):
        judge = LossJudge(model, sites[0], lessons)
        with RunFolder.open(tmp_path / str(next(folders)), {}) as folder:
            context = context_for(model, sites, folder, judge=judge, time_left=time_left)
            yield context if variant.fitted else replace(context, fit_error=unfitted.error, judge=unfitted.judge)

    return make


def searched(command, contexts):
    return [benchmark.search_with(v, contexts, 0, 1e9) for v in benchmark.variants(command, SETTINGS)]


def test_searches_that_are_compared_begin_with_the_same_seeds_and_share_a_reference(contexts):
    nsga, random = searched("random", contexts)
    bred = [[o.candidate.operator.key for o in run.front.outcomes] for run in (nsga, random)]
    seeds = len(seed_candidates(sites_named(residual_model(), "o1")))
    assert bred[0][:seeds] == bred[1][:seeds]
    assert bred[0] != bred[1]
    volumes = benchmark.volumes([nsga, random])
    assert all(0 < volumes[i] <= 1 for i in (0, 1))
    lines = benchmark.comparison([nsga, random], 1e9, 0.1)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| NSGA-II", "| random"] * 2
    assert len({line.count("|") for line in lines}) == 1


def test_what_is_left_out_makes_the_difference_it_should(contexts):
    full, unfitted, every, uncrossed = searched("ablate", contexts)
    assert not any(origin.startswith("cross ") for o in uncrossed.front.outcomes for origin in o.candidate.lineage)
    assert any(origin.startswith("cross ") for o in full.front.outcomes for origin in o.candidate.lineage)
    assert every.judged == len(every.front.outcomes) - 1  # all but the original
    assert 0 < full.judged < every.judged
    assert benchmark.volumes([full, unfitted])[0] > benchmark.volumes([full, unfitted])[1]


def test_every_candidate_of_the_table_of_levels_is_accounted_for(contexts):
    (run,) = searched("throughput", contexts)
    rows = [line.strip("| ").split(" | ") for line in benchmark.throughput([run])[2:]]
    late, entered, stopped, went_on = ([int(row[k]) for row in rows] for k in (3, 4, 5, 6))
    assert [row[2] for row in rows][2:] == [*LEVELS, "accuracy"]
    assert [a - b for a, b in zip(entered, stopped, strict=True)] == went_on
    assert entered[1:-1] == went_on[:-2]
    assert set(late) == {0}
    waiting = sum(outcome.waiting for outcome in run.front.outcomes)
    assert entered[-1] + waiting == went_on[-2]
    assert went_on[-1] == sum(o.feasible and not o.is_original for o in run.front.outcomes)


def test_what_came_too_late_did_not_enter_its_level(contexts):
    run = benchmark.search_with(*benchmark.variants("throughput", SETTINGS), contexts, 0, 0.0)
    levels = {row[0]: [int(cell) for cell in row[1:5]] for row in benchmark._levels(run)}
    late, entered, stopped, went_on = levels["fit"]
    assert late == levels["predicted latency"][3] > 0
    assert (entered, stopped, went_on) == (0, 0, 0)


def test_no_operator_is_larger_than_the_size_asked_for(contexts):
    runs = searched("size", contexts)
    for size, run in zip(benchmark.SIZES, runs, strict=True):
        sizes = [len(o.candidate.operator.nodes) for o in run.front.outcomes if not o.is_original]
        assert max(sizes, default=0) <= size
    largest = [max((len(o.candidate.operator.nodes) for o in run.front.outcomes), default=0) for run in runs]
    assert largest[-1] > largest[0]


def test_the_thesis_limits_are_among_the_sizes():
    limits = {v.settings.limits for v in benchmark.variants("size", SETTINGS)}
    assert SETTINGS.limits in limits


def test_the_initial_weights_are_judged_as_they_are(model, lessons, unfitted):
    (site,) = sites_named(model, "o1")
    fitted = LossJudge(model, site, lessons)
    original, *others = seed_candidates([site])
    own = unfitted.judge(original.operator, original.weights).drop
    assert unfitted.error(original.operator, original.weights[0]) < 1e-9
    assert own == pytest.approx(fitted(original.operator, original.weights).drop, abs=1e-4)
    worse = [unfitted.judge(c.operator, c.weights).drop - fitted(c.operator, c.weights).drop for c in others[:8]]
    assert sum(worse) > 0


def test_a_loss_that_is_not_finite_is_the_largest(model, unfitted):
    (site,) = sites_named(model, "o1")
    original = seed_candidates([site])[0]
    broken = tuple(weight * math.inf for weight in original.weights[0])
    assert unfitted.judge(original.operator, (broken,)).drop == ANY_LOSS


def run_with(variant, *curve):
    points = tuple((at, tuple(benchmark.Point(*p) for p in front)) for at, front in curve)
    return benchmark.Run(variant, "o1", 0, points, Front((), (), {}, {}))


def test_hypervolume_by_hand():
    first = run_with("a", (1.0, [(2e-6, 0.4)]), (3.0, [(2e-6, 0.4), (4e-6, 1.0)]))
    second = run_with("b", (2.0, [(1e-6, 0.0)]))
    # Box: 4 µs x 1.1. First: 2 x 1.1-0.4, and 2 more x 1.1-1.0.  Second: 1 x 1.1.
    box = 4 * 1.1
    volumes = benchmark.volumes([first, second])
    assert volumes[0] == pytest.approx((2 * 0.7 + 2 * 0.1) / box)
    assert volumes[1] == pytest.approx(1.1 / box)
    assert benchmark.volumes([first, second], 1.5) == {0: pytest.approx(2 * 0.7 / box), 1: 0.0}
    assert benchmark.fastest(first, 0.5) == pytest.approx(2.0)
    assert benchmark.fastest(second, 0.0) is None


def test_a_dominated_point_does_not_move_the_reference():
    points = [benchmark.Point(4e-6, 1.0), benchmark.Point(1e-6, 50.0)]
    assert benchmark.reference(points) == (4e-6, pytest.approx(1.1))
    assert benchmark.volume(points, *benchmark.reference(points)) == pytest.approx(0.1 / 1.1)
    assert benchmark.volumes([run_with("a")]) == {0: 0.0}


def test_curves_are_written_as_numbers_and_as_a_picture(tmp_path):
    benchmark.write_curves([run_with("a", (1.0, [(2e-6, 0.4)]), (3.0, [(4e-6, 0.4)]))], tmp_path / "out")
    with (tmp_path / "out" / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["seconds"]) for row in rows] == [1.0, 3.0]
    assert float(rows[0]["hypervolume"]) < float(rows[1]["hypervolume"])
    assert "hypervolume" in (tmp_path / "out" / "curves.html").read_text()
