"""How long stages took, over several processes of a run."""

from contextlib import closing

import pytest

from gos_adapt.run_folder import Journal
from gos_adapt.stage_times import StageTimes


def test_stages_of_two_processes_add_up_to_what_the_run_worked(tmp_path, clock):
    with closing(Journal(tmp_path / "journal")) as journal:
        with StageTimes(journal).time("search"):
            clock.now += 10.0
        clock.now += 3.0
        journal.mark()  # killed in the next stage

    clock.now += 1000.0  # nobody works
    with closing(Journal(tmp_path / "journal")) as journal:
        times = StageTimes(journal)
        with times.time("search"):
            clock.now += 2.0
        with times.time("verify"):
            clock.now += 4.0
        assert times.seconds == pytest.approx({"search": 15.0, "verify": 4.0})
        assert list(times.seconds) == ["search", "verify"]
        assert sum(times.seconds.values()) == pytest.approx(journal.elapsed_s)


def test_a_stage_that_fails_is_not_finished(tmp_path):
    with closing(Journal(tmp_path / "journal")) as journal:
        times = StageTimes(journal)
        with pytest.raises(ZeroDivisionError), times.time("verify"):
            _ = 1 / 0
        assert times.seconds == {}
