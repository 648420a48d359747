"""Random search: the breeding of the search without its selection."""

from example_search import residual_model, sites_named

from gos_adapt.search.candidate import Outcome
from gos_adapt.search.cascade import Settings, Tally
from gos_adapt.search.nsga import assign
from gos_adapt.search.random_search import random_search
from gos_adapt.search.search import seed_candidates

SETTINGS = Settings(population=4, offspring=6)


def generations(seed, count):
    """Keys of what is asked for, nothing of which ever becomes feasible, and what is left to breed from."""
    seeds = seed_candidates(sites_named(residual_model(), "o1"))[:5]
    algorithm = random_search(seeds, SETTINGS, seed, Tally())
    asked = []
    for _ in range(count):
        offspring = algorithm.ask()
        outcomes = [Outcome(individual.X[0], 1, "fit").stopped("too bad") for individual in offspring]
        assign(list(offspring), outcomes, SETTINGS)
        algorithm.tell(infills=offspring)
        asked.append([individual.X[0].operator.key for individual in offspring])
    return [candidate.operator.key for candidate in seeds], asked, [i.X[0].operator.key for i in algorithm.pop]


def test_it_begins_with_the_seeds_and_keeps_everyone_as_a_parent():
    seeds, asked, parents = generations(seed=1, count=4)
    assert asked[0] == seeds
    assert parents == [key for generation in asked for key in generation]
    assert len(set(parents)) == len(parents) > SETTINGS.population


def test_it_is_determined_by_its_seed():
    assert generations(1, 3) == generations(1, 3)
    assert generations(1, 3)[1] != generations(2, 3)[1]
