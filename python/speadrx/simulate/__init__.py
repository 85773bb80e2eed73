"""Simulated senders of any layout, and the truth about what they sent."""

from .blocks import Packet, Packets
from .faults import Faults, Truth
from .garbage import GARBAGE_KINDS
from .pacing import VirtualClock, WallClock
from .simulator import DEFAULT_FLAVOUR, DEFAULT_PAYLOAD_ITEM, Simulator
from .sinks import BlockSink, InprocSink, PcapSink, Sink, UdpSink

__all__ = [
    "DEFAULT_FLAVOUR",
    "DEFAULT_PAYLOAD_ITEM",
    "GARBAGE_KINDS",
    "BlockSink",
    "Faults",
    "InprocSink",
    "Packet",
    "Packets",
    "PcapSink",
    "Simulator",
    "Sink",
    "Truth",
    "UdpSink",
    "VirtualClock",
    "WallClock",
]
