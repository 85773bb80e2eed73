"""Readers of captures in files, whole and damaged."""

import os
import pathlib
import re
import struct

import numpy as np
import pytest

from handmade import SMALL
from loopback import wait_for
from speadrx import add_reader
from speadrx.simulate import PcapSink, Simulator


class TestPcap:
    """Captures in files."""

    @pytest.fixture
    def simulator(self):
        return Simulator(SMALL)

    @pytest.fixture
    def path(self, simulator, tmp_path):
        path = tmp_path / "heaps.pcap"
        with PcapSink(path) as sink:
            simulator.send(sink, 8)
        return path

    @staticmethod
    def records(path):
        """The link-layer frames of a (little-endian) pcap file."""
        data = path.read_bytes()
        offset = 24
        while offset < len(data):
            (length,) = struct.unpack_from("<I", data, offset + 8)
            yield data[offset + 16 : offset + 16 + length]
            offset += 16 + length

    def check(self, stream, simulator, path):
        add_reader(stream, src=path)
        chunks = list(stream.data_ringbuffer)
        assert [chunk.chunk_id for chunk in chunks] == [0, 1]
        for chunk in chunks:
            assert chunk.present.all()
            np.testing.assert_array_equal(chunk.data, simulator.chunk_data(chunk.chunk_id * 64))

    @pytest.mark.parametrize("kind", [str, pathlib.Path])
    def test_receives(self, stream, simulator, path, kind):
        self.check(stream, simulator, kind(path))

    def test_what_came_through_a_pipe_is_received_before_more_comes(self, stream, simulator, path, tmp_path):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        held = os.open(pipe, os.O_RDWR)  # neither end waits for the other
        try:
            os.write(held, path.read_bytes())
            add_reader(stream, src=pipe)
            wait_for(lambda: stream.stats["packets"] == simulator.truth.packets)
        finally:
            os.close(held)
            stream.stop()

    def test_other_settings_have_no_use(self, stream, path):
        """The settings of the network are left alone, as they come with the same options of a program."""
        add_reader(stream, src=str(path), interface="10.0.0.1", ibv=True, comp_vector=3, buffer=2**20)
        assert len(list(stream.data_ringbuffer)) == 2

    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("magic", [0xA1B2C3D4, 0xA1B23C4D])
    def test_kinds(self, stream, simulator, path, tmp_path, order, magic):
        other = tmp_path / "other.pcap"
        with other.open("wb") as file:
            file.write(struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, 1))
            for frame in self.records(path):
                file.write(struct.pack(order + "IIII", 1, 2, len(frame), len(frame)) + frame)
        self.check(stream, simulator, str(other))

    def make_pcapng(self, path, order):
        blocks = [
            struct.pack(order + "IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28),
            struct.pack(order + "IIHHII", 1, 20, 1, 0, 65535, 20),
        ]
        for frame in self.records(path):
            padded = frame + bytes(-len(frame) % 4)
            size = 32 + len(padded)
            blocks.append(
                struct.pack(order + "IIIIIII", 6, size, 0, 0, 0, len(frame), len(frame))
                + padded
                + struct.pack(order + "I", size)
            )
        return b"".join(blocks)

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_pcapng(self, stream, simulator, path, tmp_path, order):
        other = tmp_path / "other.pcapng"
        other.write_bytes(self.make_pcapng(path, order))
        self.check(stream, simulator, str(other))

    @pytest.mark.fault(21)
    @pytest.mark.parametrize("cut", [1, 3, 40, "header", "global header"])
    @pytest.mark.parametrize("kind", ["pcap", "pcapng"])
    def test_truncated(self, stream, path, tmp_path, cut, kind):
        """All but the last packet is received."""
        data = path.read_bytes() if kind == "pcap" else self.make_pcapng(path, "<")
        last = len(list(self.records(path))[-1])
        last += 16 if kind == "pcap" else 32 + -last % 4
        length = {"header": len(data) - last + 5, "global header": 20 if kind == "pcap" else 7}.get(
            cut, len(data) - (cut if isinstance(cut, int) else 0)
        )
        short = tmp_path / "short"
        short.write_bytes(data[:length])
        add_reader(stream, src=str(short))
        chunks = list(stream.data_ringbuffer)
        assert sum(chunk.present.sum() for chunk in chunks) == (
            0 if cut == "global header" else len(list(self.records(path))) - 1
        )

    @pytest.mark.fault(21)
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty: wanted a pcap or pcapng file"),
            (b"\xd4", "is not a pcap or pcapng file: it starts with the bytes d4$"),
            (b"just some text", "is not a pcap or pcapng file: it starts with the bytes 6a 75 73 74"),
        ],
    )
    def test_no_capture(self, stream, tmp_path, content, message):
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"src: {re.escape(str(path))} {message}"):
            add_reader(stream, src=path)

    @pytest.mark.fault(21)
    def test_damaged(self, stream, path, caplog):
        """What comes before the damage is received, and the damage is said."""
        data, sizes = path.read_bytes(), [16 + len(record) for record in self.records(path)]
        path.write_bytes(data[: 24 + sum(sizes[:5])] + struct.pack("<4I", 0, 0, 2**31, 2**31) + bytes(100))
        add_reader(stream, src=path)
        assert sum(chunk.present.sum() for chunk in stream.data_ringbuffer) == 5
        stream.stop()
        assert re.search(f"{re.escape(str(path))} is damaged: ", caplog.text)

    @pytest.mark.fault(21)
    def test_missing(self, stream, tmp_path):
        path = tmp_path / "missing.pcap"
        with pytest.raises(FileNotFoundError, match=f"src: {re.escape(str(path))} cannot be read: No such file"):
            add_reader(stream, src=str(path))
        with pytest.raises(FileNotFoundError, match=r"src: 127.0.0.1:7148 .* \(for UDP, give \[\(host, port\)\]\)"):
            add_reader(stream, src="127.0.0.1:7148")

    def test_no_name(self, stream):
        with pytest.raises(ValueError, match=r"src: 'a\\x00b' cannot be read: .*embedded null (byte|character)"):
            add_reader(stream, src="a\0b")

    def test_not_allowed(self, stream, path):
        """As root nothing is forbidden, so the system is asked for something else."""
        with pytest.raises(OSError, match=f"src: {re.escape(str(path / 'x'))} cannot be read: Not a directory"):
            add_reader(stream, src=path / "x")

    def test_not_a_file(self, stream, tmp_path):
        with pytest.raises(OSError, match=rf"src: {re.escape(str(tmp_path))} cannot be read: Is a directory"):
            add_reader(stream, src=str(tmp_path))
