"""Read the UDP datagrams of a capture: a pcap or pcapng file.

spead2 has a reader for such files too. This one also gives the time and the addresses of each datagram, knows more
link layers, compressed files and IP fragments, and reads a damaged file up to the damage.
"""

from __future__ import annotations

import collections
import os
from collections.abc import Iterator
from typing import NamedTuple

from speadrx import _core

#: Values of items that a survey keeps (8 bytes each). Heaps after that are only counted.
MOST_VALUES = 2**23


class Datagram(NamedTuple):
    """A UDP datagram, as it was captured."""

    #: When it was captured, in seconds. Most programs count them from 1970.
    time: float
    #: Host and port of the sender.
    source: tuple[str, int]
    #: Host and port that it was sent to.
    destination: tuple[str, int]
    #: Its payload, as far as it was captured.
    payload: bytes
    #: Bytes of payload that were sent: more than `payload` has, if the capture cut it short.
    length: int


class Capture(Iterator[Datagram]):
    """The datagrams of a capture, in order; `read_datagrams` opens one.

    It can be iterated over once. The file is closed after the last datagram, by `close`, and at the end of a ``with``
    block.

    Attributes
    ----------
    path
        The file.
    size
        Bytes of the file; None if that is not known (for a pipe).

    Raises
    ------
    ValueError
        If the file is empty, not a capture, or (when ``next`` reaches it) damaged. The message names the file.
    """

    def __init__(self, path: str, *, cut: bool = False) -> None:
        #: What reads it, in Rust.
        self.reader = _core.Capture(path, cut)
        self.path = path
        self.size = self.reader.size

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self.reader.position

    @property
    def frames(self) -> int:
        """Packets of any kind read so far."""
        return self.reader.frames

    @property
    def skipped(self) -> collections.Counter[str]:
        """Packets read so far that gave no datagram, by reason."""
        return collections.Counter(self.reader.skipped)

    @property
    def cut_short(self) -> int:
        """Datagrams so far that the capture has cut short, whether they were given or not."""
        return self.reader.cut_short

    @property
    def joined(self) -> int:
        """IP fragments so far that were put together, less one for each datagram that they made."""
        return self.reader.joined

    @property
    def split(self) -> int:
        """SPEAD packets so far that were found behind others in one datagram of the file."""
        return self.reader.split

    @property
    def truncated(self) -> bool:
        """At the end: whether the last packet of the file is incomplete. It was left out."""
        return self.reader.truncated

    def end(self) -> None:
        """Let a pipe end where it is: whoever waits for more of it does so no longer."""
        self.reader.end()

    def close(self) -> None:
        """Close the file."""
        self.reader.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Datagram:
        row = self.reader.next()
        if row is None:
            raise StopIteration
        return Datagram._make(row)


def read_datagrams(path: str | os.PathLike[str], *, cut: bool = False) -> Capture:
    """Read the UDP datagrams of a pcap or pcapng file, which may be compressed with gzip or zstd.

    The link layer may be Ethernet (with VLAN tags), Linux cooked, raw IP or loopback. The network may be IPv4 or IPv6.
    IP fragments are put together. SPEAD packets that are in one datagram of the file, because of segmentation or
    receive offload, are given one by one. Checksums are not checked.

    Parameters
    ----------
    path
        The file, which may be a pipe.
    cut
        Also give datagrams that the capture has cut short (``tcpdump --snapshot-length``), as far as they were
        captured.

    Returns
    -------
    Capture
        An iterator of the datagrams, in the order of the file. It counts the packets that it cannot use.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If the file is empty, not a capture, or (when the iterator reaches it) damaged. The message names the file.

    Examples
    --------
    >>> import tempfile
    >>> from speadrx.simulate import PcapSink
    >>> with tempfile.NamedTemporaryFile(suffix=".pcap") as file:
    ...     with PcapSink(file.name, endpoint=("239.1.2.3", 7148)) as sink:
    ...         sink.send(0, b"some payload")
    ...     [(datagram.destination, datagram.payload) for datagram in read_datagrams(file.name)]
    [(('239.1.2.3', 7148), b'some payload')]
    """
    return Capture(os.fsdecode(path), cut=cut)
