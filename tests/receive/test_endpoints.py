"""Endpoints as text, at interfaces, and which of them overlap."""

import socket

import pytest

import speadrx
from handmade import SMALL
from loopback import packets, wait_for
from speadrx.receive.endpoints import format_endpoint, parse_endpoints, resolve


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost:7148", [("localhost", 7148)]),
        ("239.1.2.3:1", [("239.1.2.3", 1)]),
        ("239.1.2.3+0:65535", [("239.1.2.3", 65535)]),
        ("239.1.2.254+2:7148", [("239.1.2.254", 7148), ("239.1.2.255", 7148), ("239.1.3.0", 7148)]),
        (":7148", [("0.0.0.0", 7148)]),
        ("[::1]:7148", [("::1", 7148)]),
        ("[ff12::1]+1:7148", [("ff12::1", 7148), ("ff12::2", 7148)]),
        ("[fe80::1%lo]:7148", [("fe80::1%lo", 7148)]),
        ("[ff12::1%lo]+1:7148", [("ff12::1%lo", 7148), ("ff12::2%lo", 7148)]),
        ("a.example:1, b.example:2", [("a.example", 1), ("b.example", 2)]),
        ("eth1/239.1.2.3+1:7148", [("eth1/239.1.2.3", 7148), ("eth1/239.1.2.4", 7148)]),
        ("eth1.5/:7148,10.0.0.1/:7149", [("eth1.5/0.0.0.0", 7148), ("10.0.0.1/0.0.0.0", 7149)]),
        ("eth1/[ff15::1]+1:7148", [("eth1/ff15::1", 7148), ("eth1/ff15::2", 7148)]),
        ("fe80::1/[ff15::1]:7148", [("fe80::1/ff15::1", 7148)]),
    ],
)
def test_parse(text, expected):
    assert parse_endpoints(text) == expected


@pytest.mark.parametrize(
    "text", ["239.1.2.3:1", "[ff12::1%lo]:2", "eth1/239.1.2.3:3", "eth1/[ff15::1]:4", "fe80::1/[ff15::1]:5"]
)
def test_written_as_read(text):
    assert [format_endpoint(*endpoint) for endpoint in parse_endpoints(text)] == [text]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"),
        ("localhost", "'localhost'"),
        ("a:1,", "''"),
        ("::1:7148", "'::1:7148'"),
        ("[::1]", "'[::1]'"),
        ("host:port", "'host:port'"),
        ("host:0", "port 0"),
        ("host:65536", "port 65536"),
        ("host+2:7148", "'host' is not an IP address"),
        ("[nonsense]:7148", "'nonsense' is not an IP address"),
        ("239.1.2.3+-1:7148", "'239.1.2.3+-1:7148'"),
        ("239.1.2.3+4096:7148", "4097 addresses"),
        ("255.255.255.254+2:7148", "fewer than 2 addresses follow 255.255.255.254"),
        ("/239.1.2.3:7148", "'/239.1.2.3:7148' is not an endpoint"),
        ("a/b/239.1.2.3:7148", "may follow interface/"),
    ],
)
def test_errors(text, part):
    with pytest.raises(ValueError, match="endpoint: ") as info:
        parse_endpoints(text)
    assert part in str(info.value)


def resolved(text, interface=None):
    return resolve(parse_endpoints(text), interface)


@pytest.mark.parametrize(
    ("text", "interface", "expected"),
    [
        ("lo/239.1.2.3:7148", None, ("lo/239.1.2.3:7148", "239.1.2.3", "127.0.0.1")),
        ("127.0.0.1/239.1.2.3:7148", None, ("127.0.0.1/239.1.2.3:7148", "239.1.2.3", "127.0.0.1")),
        ("239.1.2.3:7148", "lo", ("239.1.2.3:7148", "239.1.2.3", "127.0.0.1")),
        ("239.1.2.3:7148", None, ("239.1.2.3:7148", "239.1.2.3", None)),
        # Its own interface counts, not that of all.
        ("lo/239.1.2.3:7148", "203.0.113.1", ("lo/239.1.2.3:7148", "239.1.2.3", "127.0.0.1")),
        ("lo/:7148", None, ("lo/127.0.0.1:7148", "127.0.0.1", "127.0.0.1")),
        ("lo/127.0.0.1:7148", None, ("lo/127.0.0.1:7148", "127.0.0.1", "127.0.0.1")),
        (":7148", None, ("0.0.0.0:7148", "0.0.0.0", None)),
        ("lo/[ff15::1]:7148", None, ("lo/[ff15::1]:7148", "ff15::1", "lo")),
        ("127.0.0.1/[ff15::1]:7148", None, ("127.0.0.1/[ff15::1]:7148", "ff15::1", "lo")),
        ("[ff12::1%lo]:7148", "no-such", ("lo/[ff12::1]:7148", "ff12::1", "lo")),
        ("lo/[fe80::1]:7148", None, ("lo/[fe80::1]:7148", "fe80::1", "lo")),
        ("[fe80::1%lo]:7148", None, ("lo/[fe80::1]:7148", "fe80::1", "lo")),
        ("[::]:7148", None, ("[::]:7148", "::", None)),
    ],
)
def test_interfaces(text, interface, expected):
    (endpoint,) = resolved(text, interface)
    assert (str(endpoint), endpoint.address, endpoint.interface) == expected
    assert not endpoint.shared


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "no-such/239.1.2.3:7148",
            ["no-such/239.1.2.3:7148: interface 'no-such' is neither", "there are: ", "lo 127."],
        ),
        ("no-such/[ff15::1]:7148", ["no-such/[ff15::1]:7148: interface 'no-such' is not the name", "there are: "]),
        ("lo/203.0.113.1:7148", ["lo/203.0.113.1:7148: interface lo differs from the address"]),
        ("lo/[::1]:7148", ["lo/[::1]:7148: interface 'lo' is not used by the IPv6 unicast endpoint"]),
        ("lo/[ff12::1%lo]:7148", ["'lo/ff12::1%lo' names two interfaces"]),
    ],
)
def test_interface_errors(text, parts):
    with pytest.raises(ValueError, match="src: ") as info:
        resolved(text)
    assert [part for part in parts if part not in str(info.value)] == [], str(info.value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:7148,127.0.0.1:7148", ["127.0.0.1:7148 and 127.0.0.1:7148 are the same endpoint"]),
        ("239.1.2.3:7148,239.1.2.3:7148", ["are the same group", "eth0/239.1.2.3:7148"]),
        ("239.1.2.3+3:7148,239.1.2.5:7148", ["239.1.2.5:7148 and 239.1.2.5:7148 are the same group"]),
        ("lo/239.1.2.3:7148,239.1.2.3:7148", ["lo/239.1.2.3:7148 and 239.1.2.3:7148 are the same group"]),
        ("lo/239.1.2.3:1,127.0.0.1/239.1.2.3:1", ["lo/239.1.2.3:1 and 127.0.0.1/239.1.2.3:1", "interface (lo)"]),
        ("127.0.0.1/[ff12::1]:1,[ff12::1%lo]:1", ["127.0.0.1/[ff12::1]:1 and lo/[ff12::1]:1", "interface (lo)"]),
        (":7148,127.0.0.1:7148", ["0.0.0.0:7148 and 127.0.0.1:7148 overlap", "all IPv4 addresses"]),
        ("239.1.2.3:7148,:7148", ["0.0.0.0:7148 and 239.1.2.3:7148 overlap"]),
        (":7148,[::]:7148", ["[::]:7148 and 0.0.0.0:7148 overlap", "all addresses, IPv6 and IPv4, of"]),
        ("[::]:7148,[::1]:7148", ["[::]:7148 and [::1]:7148 overlap"]),
    ],
)
def test_overlaps(text, parts):
    with pytest.raises(ValueError, match="src: ") as info:
        resolved(text)
    assert [part for part in parts if part not in str(info.value)] == [], str(info.value)


@pytest.mark.parametrize(
    "text",
    [
        "239.1.2.3:7148,239.1.2.3:7149",
        "239.1.2.3:7148,239.1.2.4:7148,127.0.0.1:7148",
        ":7148,127.0.0.1:7149",
        ":7148,[::1]:7148,[ff15::1]:7148",  # that is IPv4 and these are IPv6
    ],
)
def test_no_overlaps(text):
    assert not any(endpoint.shared for endpoint in resolved(text))


def test_overlap_of_two_threads(udp_port):
    """Each thread has one of them, and the receiver sees both."""
    receiver = speadrx.Receiver(SMALL, f"lo/239.1.2.3:{udp_port},127.0.0.1/239.1.2.3:{udp_port}", threads=2)
    with pytest.raises(ValueError, match=r"src: lo/239\.1\.2\.3:\d+ and 127\.0\.0\.1/239\.1\.2\.3:\d+ are the same"):
        receiver.start()


def test_wildcards(udp_port):
    """`:port` takes IPv4 only; `[::]:port` takes both."""
    for host, families in (("0.0.0.0", [socket.AF_INET]), ("::", [socket.AF_INET, socket.AF_INET6])):
        (text,) = [format_endpoint(host, udp_port)]
        with speadrx.Receiver(SMALL, text if host == "::" else f":{udp_port}") as receiver:
            came = 0
            for family in (socket.AF_INET, socket.AF_INET6):
                with socket.socket(family, socket.SOCK_DGRAM) as sock:
                    sock.connect(("127.0.0.1" if family == socket.AF_INET else "::1", udp_port))
                    for packet in packets(3):
                        try:
                            sock.send(packet)
                        except ConnectionRefusedError:  # nothing receives it
                            assert family not in families
                came += 3 * (family in families)
                wait_for(lambda receiver=receiver, came=came: receiver.stats().packets == came)
