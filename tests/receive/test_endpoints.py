"""Endpoints as text."""

import pytest

from speadrx.receive.endpoints import parse_endpoints


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
    ],
)
def test_parse(text, expected):
    assert parse_endpoints(text) == expected


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
    ],
)
def test_errors(text, part):
    with pytest.raises(ValueError, match="endpoint: ") as info:
        parse_endpoints(text)
    assert part in str(info.value)
