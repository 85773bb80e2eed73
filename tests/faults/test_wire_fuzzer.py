"""Hostile packets against running receivers: a short slice of what `wire_fuzzer.py` does as a program."""

import random
from collections.abc import Callable

import pytest

import wire_fuzzer
from handmade import Heap, encode
from wire_fuzzer import GOOD_CNT, LAYOUTS, TRANSPORTS, Mutator


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.fault(13)
def test_good_heaps_arrive_among_hostile_packets(
    layout: str, transport: str, fault_report: Callable[..., None]
) -> None:
    report = wire_fuzzer.run(layout, transport, packets=2000, seed=7)
    fault_report(sent=report.good_heaps, lost=report.lost, residual=report.residual, note="2000 hostile packets each")
    assert report.lost == 0
    # Else it would prove nothing: mutants of all fates, and of nearly all kinds.
    assert report.hostile_packets >= 2000
    assert report.rejected["metadata_heaps"] > 0
    assert report.placed > report.good_heaps
    assert len(report.kinds) >= 15


def test_mutants_are_not_taken_for_good_heaps() -> None:
    layout = LAYOUTS["many"]
    mutator = Mutator(layout, 1, random.Random(1))
    front = 10 * layout.chunk_timestamp_step
    decoy = {2: 32, 0x1600: front, 0x4101: 2, 0x4104: 1, 0x4105: 1}

    def clashes(cnt: int, **changes: int) -> bool:
        items = decoy | {int(item[1:], 16): value for item, value in changes.items()}
        (packet,) = encode(Heap(items, bytes(32)), cnt, 48)
        return mutator.clashes(packet, front)

    assert not clashes(1)
    assert clashes(GOOD_CNT | 1)
    assert clashes(1, x4101=3)
    assert clashes(1, x1600=front + layout.chunk_timestamp_step)
    assert not clashes(1, x1600=front - layout.chunk_timestamp_step)
    assert not mutator.clashes(b"\x53\x04\x02\x06", front)
