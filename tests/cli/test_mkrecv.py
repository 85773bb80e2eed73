"""`speadrx layout --from-mkrecv`: headers become layouts in files, with item IDs from a capture or from the user."""

from __future__ import annotations

import struct

import pytest

pytest.importorskip("click")

from click.testing import CliRunner

from speadrx import Layout
from speadrx.cli.group import group

HEADER = """\
NINDICES    2
IDX1_ITEM   0      # First item of a SPEAD heap
IDX1_STEP   4096
IDX2_ITEM   1
IDX2_LIST   0,1
IDX2_MASK   0x1
HEAP_SIZE   64
NGROUPS_DATA 16
MCAST_SOURCES 225.0.0.152+3
PORT        7148
IBV_IF      10.10.1.10
SLOTS_SKIP  10
"""


def write_capture(path, heap_bytes):
    """Heaps with the items 0x1600, 0x1601 and an addressed 0x3300, after heaps of another length."""
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for n, size in enumerate((8, heap_bytes)):
            items = [(1, 1, n + 2), (1, 2, size), (1, 3, 0), (1, 4, size)]
            first, second = (0x1601, 0x1600) if size == 8 else (0x1600, 0x1601)
            items += [(1, first, n), (1, second, 1), (0, 0x3300, 0)]
            words = [mode << 63 | item << 48 | value for mode, item, value in items]
            packet = struct.pack(f">4BHH{len(words)}Q", 0x53, 4, 2, 6, 0, len(words), *words) + bytes(size)
            udp = struct.pack(">4H", 1000, 7148, 8 + len(packet), 0) + packet
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0x4000, 4, 17, 0, b"\n\0\0\1", b"\xe1\0\0\x98")
            frame = bytes(12) + b"\x08\x00" + ip + udp
            file.write(struct.pack("<IIII", 1, n, len(frame), len(frame)) + frame)


@pytest.fixture
def header(tmp_path):
    path = tmp_path / "edd.cfg"
    path.write_text(HEADER)
    return path


def run(*args):
    return CliRunner().invoke(group, ["layout", *map(str, args)])


def test_ids_from_a_capture(header, tmp_path):
    write_capture(tmp_path / "packets.pcap", 64)
    result = run("--from-mkrecv", header, "--capture", tmp_path / "packets.pcap", "--set", "time.batches=4")
    assert result.exit_code == 0, result.output
    (tmp_path / "edd.toml").write_text(result.stdout)
    layout = Layout.from_toml(tmp_path / "edd.toml")
    assert (layout.time.item, layout.time.batches, layout.axes[0].item) == (0x1600, 4, 0x1601)
    comments = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert "--interface 10.10.1.10 225.0.0.152+3:7148" in comments[0]
    assert any(line.startswith("# line 12: SLOTS_SKIP: ") for line in comments)


def test_ids_from_the_user(header):
    result = run("--from-mkrecv", header, "--item", "0=0x1600", "--item", "1=0x3101")
    assert result.exit_code == 0, result.output
    assert "item = 0x3101" in result.stdout


def test_what_cannot_be_known_is_asked_for(header, tmp_path):
    result = run("--from-mkrecv", header)
    assert result.exit_code == 2
    assert "at position 0 (line 2, IDX1_ITEM), 1 (line 4, IDX2_ITEM)" in " ".join(result.output.split())
    write_capture(tmp_path / "packets.pcap", 72)
    result = run("--from-mkrecv", header, "--capture", tmp_path / "packets.pcap")
    assert result.exit_code == 2
    assert "has no heaps of 64 bytes" in result.output
    assert run("--from-mkrecv", header, "--item", "one=two").exit_code == 2
    assert run("--item", "0=1").exit_code == 2
    assert run("--from-mkrecv", tmp_path / "absent").exit_code == 2
    (tmp_path / "other").write_text("heap_bytes = 8\n")
    assert "not a header file of mkrecv" in run("--from-mkrecv", tmp_path / "other").output
