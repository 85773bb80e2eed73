"""Instructions of what runs once per heap or packet, held to the limits in `budgets.toml`.

The compiled core is called under callgrind, which counts the same each time, if the core was built as `make` builds it:
a plain `cargo build`, which makes a library for Rust too, comes to other instructions. A figure is what the heaps of a
pass take, less what as many calls of a function that does nothing take, or a call with next to nothing to do.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import mmap
import os
import pathlib
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from speadrx.meerkat import AntennaChannelisedVoltageLayout, DigitiserLayout, TiedArrayChannelisedVoltageLayout

from speadrx import Axis, Layout, TimeAxis, _core
from speadrx.layout import DeclarativeLayout

LIMITS = pathlib.Path(__file__).with_name("budgets.toml")
#: A limit is above its figure by so much of it, and by so many instructions: the same sources may be compiled a little
#: differently, and hash tables are seeded.
MARGIN_RATIO, MARGIN = 0.02, 0.2
SOURCE_ITEM, TIME_ITEM = 0x4101, 0x1600

#: What would make counts differ: seeds, threads, and instructions that go through memory and are counted for each byte.
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824",
}

# Numbers of Valgrind's client requests, from callgrind.h.
_CALLGRIND = (ord("C") << 24) | (ord("T") << 16)
_ZERO, _DUMP, _START, _STOP = (_CALLGRIND + number for number in (1, 3, 4, 5))

Work = Callable[[], object]
#: What is counted, what is taken off that, and how many heaps or packets the difference is for.
Budget = tuple[Work, Work, int]


class Native:
    """Machine code (x86-64) in memory of its own: a function that does nothing, and one that asks Valgrind.

    The request is that of valgrind.h: mov rax, rdi; xor edx, edx; rol rdi, 3; rol rdi, 13; rol rdi, 61; rol rdi, 51;
    xchg rbx, rbx; ret.
    """

    CODE = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db c3")

    def __init__(self) -> None:
        memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        memory.write(self.CODE)
        self._code = ctypes.c_char.from_buffer(memory)
        address = ctypes.addressof(self._code)
        self.nothing = _core.foreign_capsule(address + len(self.CODE) - 1, 0)
        self._request = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)

    def request(self, number: int, argument: bytes | None = None) -> None:
        """Make a request with one argument."""
        words = (ctypes.c_uint64 * 6)(number, ctypes.cast(argument, ctypes.c_void_p).value or 0)
        self._request(ctypes.addressof(words))


NATIVE = Native()


def shuffled(count: int, together: int) -> np.ndarray:
    """Positions in an order that is the same everywhere: of so many at a time, by a hash."""
    position = np.arange(count)
    return np.lexsort((position * 0x9E3779B1 % 2**32, position // together))


def callback(
    layout: DeclarativeLayout, sources: int, *, user_data: Any = None, more_items: int = 0, shuffle: bool = False
) -> Budget:
    """The placement callback, for heaps of some chunks: in order, or shuffled over two chunks at a time."""
    time = layout.declaration.time
    step = next(axis.step for axis in layout.declaration.axes if axis.item is not None)
    batch, source = (index.ravel() for index in np.indices((8 * time.batches, sources)))
    items = np.zeros((batch.size, 3 + more_items), np.int64)
    items[:, 0] = batch * time.step
    items[:, 1] = layout.heap_bytes
    items[:, 2] = source * step
    if shuffle:
        items = items[shuffled(batch.size, 2 * time.batches * sources)]
    capsule, placement = layout.chunk_place(user_data)

    def call(of: object, heaps: bytes) -> None:
        _core.time_heaps(of, heaps, items.shape[1], b"", 1, layout.max_heap_extra)

    call(capsule, items.tobytes())  # after the first heaps, the callback knows its stream
    placed = np.frombuffer(placement.ledger.snapshot().placed, np.uint64).sum()
    assert placed == batch.size, f"{placed} of {batch.size} heaps were placed"
    items[:, 0] += 8 * layout.chunk_timestamp_step
    later = items.tobytes()
    return lambda: call(capsule, later), lambda: call(NATIVE.nothing, later), batch.size


def array(sources: int, batches: int, heap_bytes: int, order: tuple[str, ...]) -> Layout:
    return Layout(
        heap_bytes=heap_bytes,
        time=TimeAxis(item=TIME_ITEM, step=4096, batches=batches),
        axes=(Axis(name="source", item=SOURCE_ITEM, size=sources),),
        order=order,
        sources="source",
    )


def page_aligned(size: int) -> np.ndarray:
    """Memory whose place has no influence on how memory functions go through it."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


def presence(order: tuple[str, ...]) -> Budget:
    """The heaps of a finished chunk, counted by source; so many that the call itself does not matter."""
    compiled = array(80, 512, 8192, order).declaration._compiled
    present = page_aligned(80 * 512)
    present[:] = np.arange(present.size) % 100 != 0
    nothing = array(1, 1, 8192, order).declaration._compiled
    return lambda: compiled.account_present(present), lambda: nothing.account_present(present[:1]), present.size


def fill(pattern: bytes) -> Budget:
    """Missing heaps of 640 bytes, overwritten: every fifth, and a run of sixteen in sixty-four."""
    layout = array(16, 256, 640, ("time", "source"))
    geometry = layout.declaration._compiled.geometry({})
    data, present = page_aligned(layout.chunk_bytes), page_aligned(layout.chunk_heaps)
    index = np.arange(present.size)
    present[:] = (index % 5 != 0) & (index % 64 < 48)
    complete = np.ones_like(present)
    missing = int(present.size - present.sum())
    return (
        lambda: geometry.fill_missing(data, present, pattern),
        lambda: geometry.fill_missing(data, complete, pattern),
        missing,
    )


def packets(heaps: int, packets_per_heap: int) -> bytes:
    """A capture of packets of 1024 bytes from 64 antennas, made of nothing but structs."""
    file = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for heap in range(heaps):
        for part in range(packets_per_heap):
            values = {1: heap + 1, 2: 1024 * packets_per_heap, 3: 1024 * part, 4: 1024}
            values |= {TIME_ITEM: heap // 64 * 4096, SOURCE_ITEM: heap % 64}
            pointers = b"".join(struct.pack(">Q", 1 << 63 | item << 48 | value) for item, value in values.items())
            spead = struct.pack(">8B", 0x53, 4, 2, 6, 0, 0, 0, 7) + pointers + struct.pack(">Q", 0x3300 << 48)
            udp = struct.pack(">4H", 7148, 7148, 8 + len(spead) + 1024, 0) + spead + bytes(1024)
            ip = struct.pack(">6H2I", 0x4500, 20 + len(udp), 1, 0x4000, 0x0411, 0, 0x0A000001 + heap % 64, 0xEF010203)
            frame = bytes(12) + b"\x08\x00" + ip + udp
            file += struct.pack("<4I", 1000, heap, len(frame), len(frame)) + frame
    return file


def decode(folder: pathlib.Path, packets_per_heap: int) -> Budget:
    """Packets of a capture, decoded and gathered into heaps."""
    count = 2048

    def reader(heaps: int) -> Work:
        path = folder / f"{heaps}-{packets_per_heap}.pcap"
        path.write_bytes(packets(heaps, packets_per_heap))

        def read() -> None:
            survey, capture = _core.Survey(2**20), _core.Capture(str(path), False)
            while survey.read(capture, 256):
                pass
            assert survey.counts["heaps"] == heaps
            capture.close()

        read()  # files and code are loaded
        return read

    return reader(2 * count // packets_per_heap), reader(count // packets_per_heap), count


def budgets(folder: pathlib.Path) -> dict[str, Budget]:
    """All that has a limit."""
    digitiser = DigitiserLayout(10, 4096, 2**20, False)
    stride = np.zeros((), [("stride", np.uintp)])
    stride["stride"] = digitiser.pol_chunk_bytes
    antenna = AntennaChannelisedVoltageLayout(80, 64, 256, 2**21, 8, 16)
    beam = TiedArrayChannelisedVoltageLayout(8, 4096, 64, 256, 16, 2**21)
    pol = np.zeros((), [("pol", np.uintp)])
    made: dict[str, Budget] = {}
    for order, shuffle in (("in order", False), ("shuffled", True)):
        made |= {
            f"callback: digitiser, {order}": callback(digitiser, 2, user_data=stride, more_items=1, shuffle=shuffle),
            f"callback: antenna-channelised, {order}": callback(antenna, 80, shuffle=shuffle),
            f"callback: tied-array, {order}": callback(beam, 64, user_data=pol, more_items=1, shuffle=shuffle),
        }
    return made | {
        "presence: sources side by side": presence(("time", "source")),
        "presence: source after source": presence(("source", "time")),
        "fill: one byte": fill(b"\0"),
        "fill: elements of two bytes": fill(b"\x80\0"),
        "fill: a heap": fill(bytes(range(64)) * 10),
        "decode: heaps of one packet": decode(folder, 1),
        "decode: heaps of eight packets": decode(folder, 8),
    }


# Counting


def count_here() -> None:
    """Count in this process, which callgrind runs: two counts for each budget, with its name and its number."""
    request = NATIVE.request
    with tempfile.TemporaryDirectory() as folder:
        for name, (work, less, number) in budgets(pathlib.Path(folder)).items():
            for part, function in (("less", less), ("work", work)):
                request(_START)
                request(_ZERO)
                function()
                request(_DUMP, f"{part} {number} {name}".encode())
                request(_STOP)


def parse(dumps: list[str]) -> dict[str, float]:
    """Instructions per heap or packet, of the files that callgrind has written."""
    counts: dict[tuple[str, str], int] = {}
    numbers: dict[str, int] = {}
    for text in dumps:
        label = re.search(r"^desc: Trigger: Client Request: (work|less) (\d+) (.+)$", text, re.MULTILINE)
        total = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        if label and total:
            part, number, name = label.groups()
            numbers[name] = int(number)
            counts[name, part] = int(total[1])
    return {name: (counts[name, "work"] - counts[name, "less"]) / number for name, number in numbers.items()}


def count() -> dict[str, float]:
    """Run this program under callgrind."""
    if shutil.which("valgrind") is None or platform.machine() != "x86_64":
        sys.exit("budgets.py: needs valgrind, on an x86-64 machine; on Debian: apt-get install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/out"]
        command += [sys.executable, __file__, "--under-callgrind"]
        environment = os.environ | ENVIRONMENT
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            sys.exit(f"budgets.py: valgrind failed:\n{result.stderr}")
        return parse([file.read_text("utf-8") for file in pathlib.Path(folder).iterdir()])


# Comparing


def limit_of(figure: float) -> float:
    """The limit for a figure: a little above it, for counts of the same sources differ a little between machines."""
    return math.ceil(10 * (figure + max(MARGIN, MARGIN_RATIO * figure))) / 10


def compare(figures: Mapping[str, float], limits: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Say what is wrong, with both figures, and which limits can be lowered."""
    wrong = [f"{name}: has no limit" for name in figures if name not in limits]
    wrong += [f"{name}: has a limit, but was not counted" for name in limits if name not in figures]
    lower = []
    for name in figures.keys() & limits.keys():
        figure, limit = figures[name], limits[name]
        if figure > limit:
            wrong.append(f"{name}: {figure:.1f} instructions, and {limit:.1f} are allowed")
        elif limit_of(figure) < limit - max(MARGIN, MARGIN_RATIO * figure) / 2:
            lower.append(f"{name}: {figure:.1f} instructions; the limit may be {limit_of(figure):.1f}, not {limit:.1f}")
    return sorted(wrong), sorted(lower)


def compiler() -> str:
    """The version of the Rust compiler: another makes other instructions."""
    return subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]


def write_limits(figures: Mapping[str, float], path: pathlib.Path) -> None:
    """Write limits for figures."""
    lines = [
        "# Most instructions per heap or packet: `make budgets`. `make budgets ARGS=--update` writes this file.",
        f'rustc = "{compiler()}"',
        "",
        "[limits]",
        *(f'"{name}" = {limit_of(figure):.1f}' for name, figure in sorted(figures.items())),
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the limits that follow from what is counted")
    parser.add_argument("--under-callgrind", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.under_callgrind:
        count_here()
        return
    figures = count()
    if args.update:
        write_limits(figures, LIMITS)
    stored = tomllib.loads(LIMITS.read_text("utf-8"))
    limits = stored["limits"]
    print(f"{'instructions per heap or packet':44s} {'counted':>8s} {'allowed':>8s}")
    for name, figure in sorted(figures.items()):
        print(f"{name:44s} {figure:8.1f} {limits.get(name, math.nan):8.1f}")
    wrong, lower = compare(figures, limits)
    if lower:
        print("\nFewer than allowed. Keep it so (make budgets ARGS=--update), and commit benches/budgets.toml:")
        print(*lower, sep="\n")
    if wrong:
        if (other := compiler()) != stored["rustc"]:
            wrong.append(f"The limits are for rustc {stored['rustc']}, and this is {other}.")
        sys.exit("\n".join(["", *wrong, "Find what was added. If it must be: make budgets ARGS=--update"]))


if __name__ == "__main__":
    main()
