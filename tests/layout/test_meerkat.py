"""MeerKAT's three layouts at their real sizes, received through real streams, byte by byte."""

import dataclasses

import numpy as np
import pytest
import spead2
from speadrx.meerkat import (
    BEAM_ANTS_ID,
    DIGITISER_ID_ID,
    DIGITISER_STATUS_ID,
    FENG_ID_ID,
    FENG_RAW_ID,
    FREQUENCY_ID,
    RAW_DATA_ID,
    TIMESTAMP_ID,
    AntennaChannelisedVoltageLayout,
    DigitiserLayout,
    TiedArrayChannelisedVoltageLayout,
)

from receiving import assert_accounts, assert_data, receiver
from speadrx.simulate import Faults, InprocSink, Simulator

#: Every heap has several packets, which come in any order and mixed with those of other heaps; and heaps
#: without any data come in between.
FAULTS = Faults(
    loss=0.02,
    packet_loss=0.002,
    reorder=5,
    packet_reorder=40,
    duplicate=0.02,
    garbage=0.1,
    garbage_kinds=("descriptor", "stop", "length", "absent", "unsized"),
)
#: The digitisers' only axis is one bit wide: it has no bad values.
AXIS_FAULTS = dataclasses.replace(FAULTS, garbage_kinds=("axis", *(FAULTS.garbage_kinds or ())))
#: What a stream needs for that.
REORDERED = {"allow_out_of_order": True, "max_heaps": 256}

DIGITISER = DigitiserLayout(10, 4096, 65536, mask_timestamp=True)
ANTENNA = AntennaChannelisedVoltageLayout(
    n_ants=80,
    n_channels_per_substream=16,
    n_spectra_per_heap=256,
    heap_timestamp_step=2 * 4096 * 256,
    sample_bits=8,
    heaps_per_fengine_per_chunk=2,
)
TIED_ARRAY = TiedArrayChannelisedVoltageLayout(
    sample_bits=8,
    n_channels=4096,
    n_channels_per_substream=64,
    n_spectra_per_heap=256,
    n_batches_per_chunk=2,
    heap_timestamp_step=2 * 4096 * 256,
)


@pytest.mark.parametrize("padding", [None, 0, 4096])
def test_digitiser(padding):
    """One antenna, both polarisations, timestamps with low bits set, and padding between polarisations."""
    user_data = None
    if padding is not None:
        user_data = np.zeros(1, [("stats_base", np.uintp), ("stride", np.uintp)])
        user_data["stride"] = DIGITISER.pol_chunk_bytes + padding
    simulator = Simulator(
        DIGITISER,
        seed=1,
        first_timestamp=2**30,
        faults=FAULTS,
        timestamp_jitter=4095,
        side_values={"saturated": lambda batch, indices: (7 * batch + indices[0]) % 4097},
        payload_item=RAW_DATA_ID,
    )
    with receiver(DIGITISER, user_data=user_data, **REORDERED) as rx:
        simulator.send(InprocSink(rx.queues[0]), 6 * DIGITISER.chunk_batches)
        rx.finish()
        assert [chunk.timestamp for chunk in rx.chunks] == [2**30 + 65536 * i for i in range(6)]
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
    # What the simulator makes of the layout is what the interface document says.
    items = simulator.items(2**18 + 5, (1,))
    assert items[DIGITISER_ID_ID] == 1
    assert items[TIMESTAMP_ID] // 4096 == 2**18 + 5
    assert items[DIGITISER_STATUS_ID] == (7 * (2**18 + 5) + 1) % 4097 << 32
    chunk = rx.chunks[0]
    assert chunk.present.shape == (2, 16)
    assert chunk.extra["saturated"][1, 5] == (7 * (2**18 + 5) + 1) % 4097
    assert simulator.truth.rejected == {"metadata_heaps": sum(simulator.truth.rejected.values())}


def test_digitiser_that_does_not_mask():
    layout = dataclasses.replace(DIGITISER, mask_timestamp=False)
    faults = dataclasses.replace(FAULTS, garbage_kinds=("timestamp", "stop"))
    simulator = Simulator(layout, faults=faults)
    with receiver(layout, **REORDERED) as rx:
        simulator.send(InprocSink(rx.queues[0]), 6 * layout.chunk_batches)
        rx.finish()
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
        assert rx.stat("speadrx.bad_timestamp_heaps") > 0


def test_digitiser_heaps_of_one_packet():
    """As digitisers send them: a heap of 5120 bytes in a jumbo frame."""
    simulator = Simulator(DIGITISER, faults=dataclasses.replace(FAULTS, packet_reorder=0), max_packet_size=9000)
    with receiver(DIGITISER) as rx:
        simulator.send(InprocSink(rx.queues[0]), 6 * DIGITISER.chunk_batches)
        rx.finish()
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
        assert simulator.truth.packets == simulator.truth.copies == rx.stat("packets")


def test_antenna_channelised_voltage():
    simulator = Simulator(ANTENNA, seed=2, faults=AXIS_FAULTS, payload_item=FENG_RAW_ID, items={FREQUENCY_ID: 1024})
    with receiver(ANTENNA, **REORDERED) as rx:
        simulator.send(InprocSink(rx.queues[0]), 3 * ANTENNA.chunk_batches)
        rx.finish()
        assert [chunk.timestamp for chunk in rx.chunks] == [0, 2**22, 2**23]
        assert rx.chunks[0].present.shape == (2, 80)
        assert_data(rx, [simulator])
        assert_accounts(rx, [simulator])
        assert rx.stat("speadrx.bad_feng_id_heaps") > 0
    assert simulator.items(0, (79,))[FENG_ID_ID] == 79


def test_tied_array_channelised_voltage():
    """A group of two streams, one for each polarisation, into the same chunks."""
    user_data = np.zeros(2, TIED_ARRAY.user_data_dtype)
    user_data["pol"] = [0, 1]
    simulators = [
        Simulator(
            TIED_ARRAY,
            seed=3,
            first_timestamp=2**40,
            faults=AXIS_FAULTS,
            user_data={"pol": pol},
            items={BEAM_ANTS_ID: 62},
            max_packet_size=4400,
        )
        for pol in range(2)
    ]
    # The window holds all chunks: in a group, a stream that runs ahead would else evict the other's heaps.
    with receiver(TIED_ARRAY, members=2, user_data=user_data, window=3, pool=5, **REORDERED) as rx:
        for simulator, queue in zip(simulators, rx.queues, strict=True):
            simulator.send(InprocSink(queue), 3 * TIED_ARRAY.chunk_batches)
        rx.finish()
        assert [chunk.timestamp for chunk in rx.chunks] == [2**40 + 2**22 * i for i in range(3)]
        assert rx.chunks[0].present.shape == (2, 2, 64)
        assert_data(rx, simulators)
        assert_accounts(rx, simulators)
        assert rx.stat("speadrx.bad_frequency_heaps") > 0
        # Each member counts its own.
        for simulator, ledger in zip(simulators, rx.stream.ledgers, strict=True):
            np.testing.assert_array_equal(ledger.snapshot().placed_by_source, simulator.truth.sent)
    assert simulators[0].items(0, (63, 0))[FREQUENCY_ID] == 63 * 64


def test_stop_item_ends_a_stream_that_listens_to_it():
    """With spead2's default, a stop heap is the end, and is counted."""
    simulator = Simulator(DIGITISER, max_packet_size=9000)
    last = Simulator(DIGITISER, faults=Faults(loss=1, garbage=1, garbage_kinds=("stop",)))
    with receiver(DIGITISER, stop_on_stop_item=True) as rx:
        sink = InprocSink(rx.queues[0])
        simulator.send(sink, 2 * DIGITISER.chunk_batches)
        last.send(sink, 1)
        rx.wait()
        assert len(rx.chunks) == 2
        assert all(chunk.present.all() for chunk in rx.chunks)
        assert_data(rx, [simulator])
        assert rx.stat("speadrx.metadata_heaps") == 1
        with pytest.raises(spead2.Stopped):
            rx.stream.data_ringbuffer.get_nowait()


@pytest.mark.parametrize(("bits", "dtype"), [(4, "int8"), (10, "int16")])
def test_antennas_of_packed_samples(bits, dtype):
    """As katgpucbf's F-engines send with --send-sample-bits 4, say: the real part comes first."""
    layout = dataclasses.replace(ANTENNA, sample_bits=bits, n_ants=1, heaps_per_fengine_per_chunk=1)
    rng = np.random.default_rng(bits)
    values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (1, 1, 16, 256, 2, 2))
    each_bit = (values[..., np.newaxis] >> np.arange(bits)[::-1]) & 1
    data = np.packbits(each_bit.astype(np.uint8).reshape(-1))
    assert data.nbytes == layout.heap_bytes
    samples = layout.samples(data)
    assert samples.dtype == dtype
    np.testing.assert_array_equal(samples, values)
