"""Cost of one call of the placement callback, against numba callbacks for the same formats.

Every callback is called through its C function pointer by the same compiled loop, the callbacks taking turns; the
figures are per heap and include the loop, whose own cost the row "empty" shows. Bounds are for ratios with the loop on
both sides; those without it are further information, for a processor overlaps loop and callback. Before anything is
timed, the answers of every callback are compared with a reference.

What a call costs depends on where all that it touches happens to lie in memory. So each callback takes its turns at
many places, with a context, buffers and a depth of stack of its own at each. A place costs what its fastest turn does.
What is compared is the median of the places; the spread is that of the places, too.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numba_callbacks
import numpy as np
import rows
import spead2
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic
from spead2.recv.numba import chunk_place_data
from speadrx.meerkat import (
    AntennaChannelisedVoltageLayout,
    DigitiserLayout,
    TiedArrayChannelisedVoltageLayout,
)

from speadrx import _core
from speadrx.layout import Axis, DeclarativeLayout, Layout, TimeAxis

SEED = 20240611
PLACE_DATA_SIZE = chunk_place_data.size
#: Memory comes from malloc in units of so many bytes, and stacks are aligned to as many.
ALIGNMENT = 16
PAGE_BYTES = 4096
#: spead2 calls with space for this many statistics or more; the callbacks here use the last three.
N_STATS = 16
STATS_BASE = N_STATS - 3

CAPSULE_NAME = b"void (void *, size_t, void *)"

#: Largest ratio of our cost to that of each numba callback (None: shown, but not judged).
BOUNDS: dict[tuple[str, str], float | None] = {
    ("digitiser", "numba"): 0.15,
    ("digitiser", "numba, tuned"): None,
    ("antenna-channelised", "numba"): 1.4,
    ("tied-array", "numba"): 1.45,
}
FORMATS = ("digitiser", "antenna-channelised", "tied-array")
#: Largest ratio between our own costs with few and many sources, in order and shuffled.
SOURCES_BOUND = 1.15
#: A place is slow that costs so much more than the median of the places.
SLOW = 1.15
#: Most instructions of our callback per heap, the loop not counted.
INSTRUCTION_BOUNDS = {"digitiser": 65, "antenna-channelised": 40, "tied-array": 45}

# Numbers of Valgrind's client requests, from callgrind.h.
_CALLGRIND = (ord("C") << 24) | (ord("T") << 16)
CALLGRIND_DUMP_STATS, CALLGRIND_ZERO_STATS = _CALLGRIND, _CALLGRIND + 1
CALLGRIND_START, CALLGRIND_STOP = _CALLGRIND + 4, _CALLGRIND + 5


@intrinsic
def _call(typingctx: Any, function: Any, data: Any, size: Any, context: Any) -> Any:
    """Call ``void function(void *data, size_t size, void *context)``, all given as integers."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, size_t = ir.IntType(8).as_pointer(), ir.IntType(64)
        prototype = ir.FunctionType(ir.VoidType(), [pointer, size_t, pointer])
        builder.call(
            builder.inttoptr(args[0], prototype.as_pointer()),
            [builder.inttoptr(args[1], pointer), args[2], builder.inttoptr(args[3], pointer)],
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def _deepen(typingctx: Any, size: Any) -> Any:
    """Take so many bytes of the stack until the calling function returns."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        taken = builder.alloca(ir.IntType(8), size=args[0])
        keep = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [taken.type]), "", "r", side_effect=True)
        builder.call(keep, [taken])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def _client_request(typingctx: Any, request: Any) -> Any:
    """Make a request, an array of six words, of the Valgrind that runs us (x86-64 only)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        magic = "rolq $$3, %rdi; rolq $$13, %rdi; rolq $$61, %rdi; rolq $$51, %rdi; xchgq %rbx, %rbx"
        asm = ir.InlineAsm(
            ir.FunctionType(word, [word, word]), magic, "={rdx},{rax},0,~{cc},~{memory}", side_effect=True
        )
        return builder.call(asm, [args[0], word(0)])

    return types.int64(types.int64), codegen


@numba.njit
def callgrind_request(request: np.ndarray) -> int:
    return _client_request(request.ctypes.data)  # type: ignore[no-any-return]


@numba.njit
def _prepare(data: np.ndarray, items: int, batch_stats: int) -> None:
    """Set the fields that spead2 sets before each call."""
    data[0].packet = items
    data[0].packet_size = 0
    data[0].items = items
    data[0].batch_stats = batch_stats
    data[0].chunk_id = -1
    data[0].heap_index = 0
    data[0].heap_offset = 0
    data[0].extra_offset = 0
    data[0].extra_size = 0


@numba.njit
def place_rounds(
    function: int, context: int, data: np.ndarray, items: np.ndarray, span: int, rounds: int, depth: int
) -> int:
    """Call for every heap, `rounds` times over, each time `span` later; return the number of heaps placed.

    `depth` is by how many bytes further down the stack the callback is called.
    """
    _deepen(depth)
    address, first, row = data.ctypes.data, items.ctypes.data, items.strides[0]
    batch_stats = data[0].batch_stats
    placed = 0
    for _ in range(rounds):
        for i in range(items.shape[0]):
            _prepare(data, first + i * row, batch_stats)
            _call(function, address, PLACE_DATA_SIZE, context)
            placed += data[0].chunk_id >= 0
            items[i, 0] += span
    return placed


@numba.njit
def place_once(
    function: int, context: int, data: np.ndarray, items: np.ndarray, extra: np.ndarray, out: np.ndarray
) -> None:
    """Call for every heap and note where each is placed, with its side item."""
    address, first, row = data.ctypes.data, items.ctypes.data, items.strides[0]
    batch_stats = data[0].batch_stats
    for i in range(items.shape[0]):
        _prepare(data, first + i * row, batch_stats)
        _call(function, address, PLACE_DATA_SIZE, context)
        out[i, 0] = data[0].chunk_id
        out[i, 1] = data[0].heap_index
        out[i, 2] = data[0].heap_offset
        out[i, 3] = data[0].extra_offset
        out[i, 4] = data[0].extra_size
        out[i, 5] = extra[0] if data[0].extra_size else 0


@dataclass
class Heaps:
    """Item rows of heaps, and where the heaps belong."""

    items: np.ndarray
    expected: np.ndarray
    span: int  # of time, in ticks


def make_heaps(
    layout: DeclarativeLayout,
    index: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    sources: Sequence[int],
    chunks: int = 4,
    others: Sequence[int] = (),
    side: bool = False,
    shuffled: bool = False,
) -> Heaps:
    """Make the heaps of some chunks, time by time, with all sources at each time (or shuffled within chunks).

    Parameters
    ----------
    index
        Gives the heap index of a position in the chunk and a source.
    sources
        Value of the source's item, for each source.
    others
        Values of the items after the source's.
    side
        Whether the first of `others` is a side item, whose upper bits go to ``extra``.
    """
    step, batches = layout.declaration.time.step, layout.chunk_batches
    shape = (chunks * batches, len(sources))
    batch, source = np.indices(shape)
    items = np.empty((*shape, 3 + len(others)), np.int64)
    items[..., 0] = batch * step
    items[..., 1] = layout.heap_bytes
    items[..., 2] = np.asarray(sources)[source]
    items[..., 3:] = others
    expected = np.zeros((*shape, 6), np.int64)
    expected[..., 0] = batch // batches
    expected[..., 1] = index(batch % batches, source)
    expected[..., 2] = expected[..., 1] * layout.heap_bytes
    if side:
        items[..., 3] = (3 * batch + source) << 32
        expected[..., 3] = expected[..., 1] * 2
        expected[..., 4] = 2
        expected[..., 5] = (3 * batch + source) & 0xFFFF
    order = np.arange(batch.size)
    if shuffled:
        rng = np.random.default_rng(SEED)
        order = np.concatenate([rng.permutation(part) for part in np.split(order, chunks)])
    return Heaps(
        items=items.reshape(-1, items.shape[-1])[order],
        expected=expected.reshape(-1, 6)[order],
        span=chunks * batches * step,
    )


class Place:
    """A callback that has seen nothing, with the buffers that it is called with, somewhere in memory."""

    def __init__(self, heaps: Heaps, make: Any, rng: np.random.Generator) -> None:
        self.function, self.context, self.keep = make()
        self.items = heaps.items.copy()
        self.span = heaps.span
        self.depth = int(rng.integers(PAGE_BYTES // ALIGNMENT)) * ALIGNMENT
        self.stats = somewhere(rng, N_STATS, np.uint64)
        self.extra = somewhere(rng, 8, np.uint16)
        self.data = somewhere(rng, 1, chunk_place_data.dtype)
        self.data["batch_stats"] = self.stats.ctypes.data
        self.data["extra"] = self.extra.ctypes.data
        self.times: list[float] = []

    def run(self, rounds: int) -> int:
        return place_rounds(self.function, self.context, self.data, self.items, self.span, rounds, self.depth)


def somewhere(rng: np.random.Generator, count: int, dtype: Any) -> np.ndarray:
    """Zeros, anywhere in a page."""
    size = count * np.dtype(dtype).itemsize
    first = int(rng.integers(PAGE_BYTES // ALIGNMENT)) * ALIGNMENT
    return np.zeros(PAGE_BYTES + size, np.uint8)[first : first + size].view(dtype)


class Callback:
    """A callback, at some places."""

    def __init__(self, group: str, name: str, heaps: Heaps, make: Any) -> None:
        self.group = group
        self.name = name
        self.heaps = heaps
        self.make = make
        self.places: list[Place] = []
        self.times: list[float] = []

    def settle(self, places: int) -> None:
        """Go to so many places."""
        rng = np.random.default_rng([SEED, *f"{self.group}{self.name}".encode()])
        self.places = [Place(self.heaps, self.make, rng) for _ in range(places)]

    def verify(self) -> None:
        """Compare every placement with the reference, and see that bad heaps are left alone."""
        place = Place(self.heaps, self.make, np.random.default_rng(SEED))
        out = np.empty_like(self.heaps.expected)
        place_once(place.function, place.context, place.data, place.items, place.extra, out)
        wrong = np.flatnonzero((out != self.heaps.expected).any(axis=1))
        if wrong.size:
            i = wrong[0]
            raise AssertionError(f"{self.group}, {self.name}: heap {i} is {out[i]}, not {self.heaps.expected[i]}")
        bad = np.repeat(place.items[-1:], 4, axis=0)
        bad[0, 1] += 1
        bad[1, 0] = -1
        bad[2, 2] = -1
        bad[3, 0] += 1
        out = out[: len(bad)]
        place_once(place.function, place.context, place.data, bad, place.extra, out)
        if (out[:, 0] != -1).any():
            raise AssertionError(f"{self.group}, {self.name}: placed a bad heap: chunk IDs {out[:, 0]}")

    def run(self, place: Place, rounds: int) -> None:
        placed, heaps = place.run(rounds), rounds * len(place.items)
        if self.name != "empty" and placed != heaps:
            raise AssertionError(f"{self.group}, {self.name}: placed {placed} of {heaps} heaps")

    def time(self, place: Place, rounds: int) -> None:
        self.run(place, 1)  # what the others have pushed out of the caches
        start = time.perf_counter()
        self.run(place, rounds)
        self.times.append((time.perf_counter() - start) / (rounds * len(place.items)) * 1e9)
        place.times.append(self.times[-1])

    def costs(self) -> np.ndarray:
        """What each place costs."""
        return np.array([min(place.times) for place in self.places])


def from_layout(layout: DeclarativeLayout, user_data: np.ndarray | None = None) -> Any:
    """How to make speadrx's callback, counting in its ledger."""

    def make() -> tuple[int, int, Any]:
        place = layout.chunk_place(user_data)
        api = ctypes.pythonapi
        for getter in (api.PyCapsule_GetPointer, api.PyCapsule_GetContext):
            getter.restype = ctypes.c_void_p
        pointer = api.PyCapsule_GetPointer(ctypes.py_object(place[0]), CAPSULE_NAME)
        return pointer, api.PyCapsule_GetContext(ctypes.py_object(place[0])), place

    return make


def from_numba(cfunc: Any, user_data: np.ndarray) -> Any:
    def make() -> tuple[int, int, Any]:
        own = user_data.copy()
        return cfunc.address, own.ctypes.data, (cfunc, own)

    return make


def record(dtype: Any, **values: int) -> np.ndarray:
    result = np.zeros((), dtype)
    result["stats_base"] = STATS_BASE
    for name, value in values.items():
        result[name] = value
    return result


@numba.cfunc(types.void(types.voidptr, types.uintp, types.voidptr), nopython=True)
def _empty(data: Any, size: Any, user_data: Any) -> None:
    pass


def make_callbacks() -> list[Callback]:
    digitiser = DigitiserLayout(10, 4096, 2**20, False)
    stride = record(numba_callbacks.digitiser_user_data.dtype, stride=digitiser.pol_chunk_bytes)
    digitiser_heaps = make_heaps(
        digitiser,
        lambda position, pol: pol * digitiser.chunk_batches + position,
        sources=range(2),
        chunks=8,
        others=[0],
        side=True,
    )
    antenna = AntennaChannelisedVoltageLayout(80, 64, 256, 2**21, 8, 16)
    common = record(numba_callbacks.common_user_data.dtype)
    antenna_heaps = make_heaps(antenna, lambda position, antenna: position * 80 + antenna, sources=range(80))
    beam = TiedArrayChannelisedVoltageLayout(8, 4096, 64, 256, 16, 2**21)
    pol = record(numba_callbacks.tied_array_user_data.dtype, pol=1)
    beam_heaps = make_heaps(
        beam,
        lambda position, substream: (beam.chunk_batches + position) * 64 + substream,
        sources=range(0, 4096, 64),
        others=[0],
    )
    callbacks = [
        Callback("loop", "empty", antenna_heaps, from_numba(_empty, common)),
        Callback("digitiser", "speadrx", digitiser_heaps, from_layout(digitiser, stride)),
        Callback("digitiser", "numba", digitiser_heaps, from_numba(numba_callbacks.digitiser(digitiser), stride)),
        Callback(
            "digitiser",
            "numba, tuned",
            digitiser_heaps,
            from_numba(numba_callbacks.digitiser(digitiser, tuned=True), stride),
        ),
        Callback("antenna-channelised", "speadrx", antenna_heaps, from_layout(antenna)),
        Callback(
            "antenna-channelised",
            "numba",
            antenna_heaps,
            from_numba(numba_callbacks.antenna_channelised(antenna), common),
        ),
        Callback("tied-array", "speadrx", beam_heaps, from_layout(beam, pol)),
        Callback("tied-array", "numba", beam_heaps, from_numba(numba_callbacks.tied_array(beam), pol)),
    ]
    for n in (4, 1024):
        layout = Layout(
            heap_bytes=1024,
            time=TimeAxis(item=0x1600, step=4096, batches=4096 // n),
            axes=(Axis(name="antenna", item=0x4101, size=n),),
            sources="antenna",
        )
        for order in ("in order", "shuffled"):
            heaps = make_heaps(
                layout,
                lambda position, source, n=n: position * n + source,
                sources=range(n),
                shuffled=order == "shuffled",
            )
            callbacks.append(Callback("sources", f"{n} sources, {order}", heaps, from_layout(layout)))
    return callbacks


def measure(callbacks: list[Callback], places: int, repeats: int, heaps: int) -> None:
    rounds = {id(c): max(1, heaps // len(c.heaps.items)) for c in callbacks}
    for callback in callbacks:
        callback.settle(places)
    for turn in range(max(repeats, places)):
        for callback in callbacks:
            callback.time(callback.places[turn % places], rounds[id(callback)])
    for callback in callbacks:
        for place in callback.places:
            if isinstance(place.keep[1], _core.Placement):
                duplicates = np.frombuffer(place.keep[1].ledger.snapshot().duplicates, np.uint64).sum()
                assert not duplicates, f"{callback.group}, {callback.name}: {duplicates} heaps came twice"


def report(callbacks: list[Callback]) -> None:
    print(f"{'ns per heap, by place':40s} {'median':>8s} {'quartiles':>16s} {'least - most':>16s} {'slow':>8s}")
    for callback in callbacks:
        costs = callback.costs()
        least, low, median, high, most = np.percentile(costs, [0, 25, 50, 75, 100])
        name = f"{callback.group}: {callback.name}"
        slow = f"{np.count_nonzero(costs > SLOW * median)} of {len(costs)}"
        quartiles, extremes = f"{low:.2f} - {high:.2f}", f"{least:.2f} - {most:.2f}"
        print(f"{name:40s} {median:8.2f} {quartiles:>16s} {extremes:>16s} {slow:>8s}")
    print(f"slow: places that cost more than {SLOW} x the median")


def ratios(callbacks: list[Callback]) -> bool:
    """Print ratios of the places' medians, and medians of the turns' ratios; return whether the former are good."""
    times = {(c.group, c.name): c.times for c in callbacks}
    cost = {(c.group, c.name): float(np.median(c.costs())) for c in callbacks}
    pairs = [
        (f"{group}: speadrx / {name}", (group, "speadrx"), (group, name), bound)
        for (group, name), bound in BOUNDS.items()
    ]
    by_cost = sorted((key for key in cost if key[0] == "sources"), key=cost.__getitem__)
    pairs.append(("sources: most / least", by_cost[-1], by_cost[0], SOURCES_BOUND))
    loop = cost["loop", "empty"]
    within = True
    print(f"\n{'ratio':40s} {'places':>8s} {'turns':>8s} {'bound':>8s} {'less loop':>10s}")
    for name, ours, other, bound in pairs:
        ratio = cost[ours] / cost[other]
        within &= bound is None or ratio <= bound
        shown = "-" if bound is None else f"{bound:.2f}"
        less_loop = (cost[ours] - loop) / (cost[other] - loop)
        turns = np.median(np.divide(times[ours], times[other]))
        print(f"{name:40s} {ratio:8.3f} {turns:8.3f} {shown:>8s} {less_loop:10.3f}")
    return within


def table_rows(callbacks: list[Callback]) -> Iterator[dict[str, Any]]:
    """The rows for the table of all benchmarks: each format, and the geometric mean of the three."""
    times = {(c.group, c.name): c.times for c in callbacks}
    loop = np.median(times["loop", "empty"])
    for group in FORMATS:
        yield rows.row(f"callback, {group}", "numba", "ns", times[group, "speadrx"], times[group, "numba"])
    means = [
        np.exp(np.mean([np.log(times[group, name]) for group in FORMATS], axis=0)) for name in ("speadrx", "numba")
    ]
    yield rows.row("callback, geometric mean", "numba", "ns", *means, most=0.5)
    tuned = [times["digitiser", name] - loop for name in ("speadrx", "numba, tuned")]
    yield rows.row("callback, digitiser, less the loop", "numba, tuned", "ns", *tuned)


def count_instructions(callbacks: list[Callback], rounds: int) -> None:
    """Run each callback between two requests to the callgrind that runs this process."""

    def request(number: int) -> None:
        callgrind_request(np.array([number, 0, 0, 0, 0, 0], np.uint64))

    binding.initialize_native_asmparser()  # for the inline assembly of the requests
    for callback in callbacks:
        callback.settle(1)
        (place,) = callback.places
        place.run(1)
        request(CALLGRIND_START)
        request(CALLGRIND_ZERO_STATS)
        place.run(rounds)
        request(CALLGRIND_DUMP_STATS)
        request(CALLGRIND_STOP)


def report_instructions(callbacks: list[Callback]) -> bool:
    """Run this program under callgrind; print the instructions per heap; return whether they are within bounds."""
    if shutil.which("valgrind") is None or platform.machine() != "x86_64":
        sys.exit("--instructions: needs valgrind, on an x86-64 machine")
    rounds = 2
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, __file__, "--under-callgrind", str(rounds)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"--instructions: valgrind failed:\n{result.stderr}")
        print(f"\n{'instructions per heap':40s} {'total':>8s} {'less loop':>9s} {'bound':>8s}")
        empty = None
        within = True
        for i, callback in enumerate(callbacks, 1):
            text = pathlib.Path(folder, f"out.{i}").read_text()
            (total,) = re.findall(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)[:1]
            count = int(total) / (rounds * len(callback.heaps.items))
            empty = count if empty is None else empty
            bound = INSTRUCTION_BOUNDS.get(callback.group) if callback.name == "speadrx" else None
            within &= bound is None or count - empty <= bound
            shown = "-" if bound is None else str(bound)
            print(f"{callback.group + ': ' + callback.name:40s} {count:8.1f} {count - empty:9.1f} {shown:>8s}")
    return within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=450, help="times that each callback takes its turn [%(default)s]"
    )
    parser.add_argument("--places", type=int, default=15, help="places where it does so [%(default)s]")
    parser.add_argument("--heaps", type=int, default=40_000, help="heaps in a turn, about [%(default)s]")
    parser.add_argument("--instructions", action="store_true", help="also count instructions with callgrind (a minute)")
    parser.add_argument("--under-callgrind", type=int, metavar="ROUNDS", help=argparse.SUPPRESS)
    parser.add_argument("--json", metavar="FILE", help="write the rows of the table of all benchmarks to a file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is exceeded")
    args = parser.parse_args()

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    callbacks = make_callbacks()
    if args.under_callgrind:
        count_instructions(callbacks, args.under_callgrind)
        return
    for callback in callbacks:
        if callback.name != "empty":
            callback.verify()
    measure(callbacks, args.places, args.repeats, args.heaps)
    print(f"numba {numba.__version__}, spead2 {spead2.__version__}, Python {platform.python_version()}\n")
    report(callbacks)
    within = ratios(callbacks)
    rows.write(args.json, table_rows(callbacks))
    if args.instructions:
        within &= report_instructions(callbacks)
    if args.check and not within:
        sys.exit("A bound is exceeded.")


if __name__ == "__main__":
    main()
