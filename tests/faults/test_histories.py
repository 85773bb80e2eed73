"""Random histories: every heap is counted under exactly one name, no counter falls, and nothing is invented."""

import pytest

from histories import History

ENDS = ("drain at rest", "drain", "queues", "stop")


def run(seed, threads, steps, fault_report):
    history, end = History(f"{seed} {threads}", threads, start=[4000, 2**37 - 40, 0][seed % 3]), ENDS[seed % len(ENDS)]
    history.run(steps, end)
    stats = history.rx.stats()
    fault_report(sent=stats.packets, lost=stats.packets - stats.present, residual=history.residual)
    history.compare(end)


@pytest.mark.fault(32)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_accounts_add_up_in_any_history(seed, threads, fault_report):
    run(seed, threads, 60, fault_report)


@pytest.mark.slow
@pytest.mark.fault(32)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("seed", range(100, 200))
def test_accounts_add_up_in_many_histories(seed, threads, fault_report):
    run(seed, threads, 200, fault_report)
