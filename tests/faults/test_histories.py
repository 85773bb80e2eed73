"""Random histories: every heap is counted under exactly one name, no counter falls, and nothing is invented."""

import pytest

from histories import History

ENDS = ("drain at rest", "drain", "queues", "stop")


def run(seed, threads, steps):
    history = History(f"{seed} {threads}", threads, start=[4000, 2**37 - 40, 0][seed % 3])
    history.run(steps, ENDS[seed % len(ENDS)])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_accounts_add_up_in_any_history(seed, threads):
    run(seed, threads, steps=60)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("seed", range(100, 200))
def test_accounts_add_up_in_many_histories(seed, threads):
    run(seed, threads, steps=200)
