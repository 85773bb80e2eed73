"""Surveys of simulated streams, and what real streams make of the layouts that are proposed for them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import spead2

from random_layouts import ID_BITS, Case
from receiving import receiver
from speadrx import Layout
from speadrx.layout.items import TIMESTAMP_BITS
from speadrx.simulate import GARBAGE_KINDS, Faults, Simulator
from speadrx.simulate.packets import axis_size
from speadrx.survey import Survey

SENDER, GROUP = ("10.1.2.3", 7148), ("239.1.2.3", 7148)


class SurveySink:
    """Hands packets to a survey, and keeps them."""

    def __init__(self) -> None:
        self.survey = Survey()
        self.packets: list[bytes] = []

    def send(self, flow: int, packet: bytes) -> None:
        self.packets.append(packet)
        self.survey.add(len(self.packets) * 1e-6, SENDER, GROUP, packet)


@dataclass(frozen=True)
class Account:
    """What a stream says of the heaps that it got."""

    present: int
    duplicates: int
    rejected: int
    too_old: int


def receive(layout: Layout, packets: list[bytes]) -> Account:
    """Receive packets through a real stream."""
    with receiver(layout) as rx:
        for packet in packets:
            rx.queues[0].add_packet(packet)
        rx.finish()
        ledger = rx.stream.ledger.snapshot()
        return Account(
            present=rx.iterator.accounting.present,
            duplicates=ledger.duplicates,
            rejected=sum(ledger.rejected.values()),
            too_old=rx.stat("too_old_heaps"),
        )


def random_simulator(case: Case, rng: random.Random, faults: Faults) -> Simulator:
    """A simulator of a random layout, with the garbage among the faults that can be told from good heaps."""
    declaration = case.layout.declaration
    flavour = spead2.Flavour(4, 64, ID_BITS[case.id_bits], 0)
    used = {declaration.time.item, *declaration.required_items}
    used |= {axis.item for axis in declaration.axes if axis.item is not None}
    used |= {side.item for side in declaration.side_items}
    payload_item = next(item for item in iter(lambda: rng.randrange(7, 2**case.id_bits), None) if item not in used)

    def make(kinds: tuple[str, ...] | None) -> Simulator:
        return Simulator(
            case.layout,
            seed=rng.randrange(2**32),
            faults=replace(faults, garbage_kinds=kinds),
            user_data=case.user_data,
            payload_item=payload_item,
            flavour=flavour,
        )

    kinds = set(make(None)._garbage_maker.kinds)
    # What no heap shows, no survey can find. Of an item that has one value in all good heaps, only garbage shows
    # that there must be that value: but not if the item is absent from it, nor if its slot is free.
    if any(axis_size(axis) == 1 for axis in declaration.axes):
        faults = replace(faults, loss=0)
        kinds -= {"absent"}
    if declaration.required_items:
        kinds -= {"absent"}
    return make(tuple(kind for kind in GARBAGE_KINDS if kind in kinds))


def has_observable_time(layout: Layout) -> bool:
    """Whether time is not so coarse that it wraps again and again, and what is before 0 could also be to come."""
    return layout.declaration.time.step < 2**TIMESTAMP_BITS // 256
