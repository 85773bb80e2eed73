"""A panic in the placement callback: one heap lost, and nothing else."""

import pytest
import spead2

from handmade import SMALL, encode, small_heap
from loopback import wait_for
from receiving import assert_data, receiver, residual
from speadrx.simulate import InprocSink, Simulator

BATCHES = SMALL.chunk_batches
ROUNDS = 50


@pytest.mark.fault(14)
@pytest.mark.parametrize("members", [None, 2], ids=["stream", "group"])
@pytest.mark.parametrize("victim", ["good", "garbage"])
def test_panic_in_the_callback(members, victim, fault_report, capfd):
    """Again and again, of a good heap that opens a chunk, or of one that is rejected anyway."""
    simulator = Simulator(SMALL, seed=1)
    with receiver(SMALL, members=members) as rx:
        queue, ledger = rx.queues[0], rx.stream.ledger
        sink = InprocSink(queue)
        simulator.send(sink, BATCHES)
        sent, extra = simulator.truth.copies, 0
        for _ in range(ROUNDS):
            wait_for(lambda sent=sent: ledger.snapshot().seen == sent)
            rx.stream._placements[0]._panic_next()
            if victim == "garbage":
                extra += 1
                queue.add_packet(encode(small_heap({spead2.HEAP_LENGTH_ID: 5}, bytes(5)), 2**39 + extra, 48)[0])
            simulator.send(sink, BATCHES)
            sent = simulator.truth.copies + extra
        rx.finish()
        snapshot, present = ledger.snapshot(), rx.iterator.accounting.present
        left = residual(rx, [simulator.truth]) + extra
        fault_report(sent=sent, lost=sent - present, residual=left)
        assert left == 0
        assert {reason: n for reason, n in snapshot.rejected.items() if n} == {"internal_error_heaps": ROUNDS}
        assert rx.stat("speadrx.internal_error_heaps") == rx.stat("rejected_heaps") == ROUNDS
        assert present == snapshot.placed == sent - ROUNDS
        # The heap that opens a chunk is of the first antenna.
        lost = [ROUNDS if victim == "good" else 0, 0, 0]
        assert rx.iterator.accounting.missing_by_source.tolist() == lost
        assert_data(rx, [simulator])
    # Rust says what has happened, in the log of the process.
    assert capfd.readouterr().err.count("panicked at") == ROUNDS
