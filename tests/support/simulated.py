"""An array as commands know it: its layout in a file, and whether an account of it is what was sent."""

import json

import pytest

from terminals import run_here

LAYOUT = """\
name = "array"
heap_bytes = 1024
sources = "antenna"
source_labels = ["m000", "m001", "m002", "m003"]

[time]
item = 0x1600
step = 256
batches = 16
tick_rate = 1.0e6

[[axes]]
name = "antenna"
item = 0x4101
size = 4
"""

#: Of all kinds that keep heaps within the default window.
FAULTS = ["--loss=0.05", "--duplicate=0.05", "--reorder=20", "--garbage=0.2", "--seed=3"]


@pytest.fixture
def layout(tmp_path):
    """Options that name the layout."""
    path = tmp_path / "array.toml"
    path.write_text(LAYOUT, "utf-8")
    return ["-l", str(path)]


def capture(tmp_path, layout, *args, name="a.pcap"):
    """Write a capture; return its path and the truth about it."""
    path = tmp_path / name
    truth = tmp_path / f"{name}.json"
    run_here("send", *layout, "--pcap", str(path), "--truth", str(truth), *args)
    return path, json.loads(truth.read_text("utf-8"))


def assert_agrees(account, truth):
    """Heaps of a single packet, of which the network has lost none."""
    by_source = {source["label"]: source for source in account["sources"]}
    assert {label: source["present"] for label, source in by_source.items()} == truth["complete"]
    assert {label: source["duplicates"] for label, source in by_source.items()} == truth["duplicated"]
    assert {reason: count for reason, count in account["rejected"].items() if count} == truth["rejected"]
    # Some packets of captures do not reach spead2. Draining takes a packet or two of its own in each thread.
    left_out = sum(n for reason, n in account.get("unused", {}).items() if reason != "not_spead")
    assert 0 <= account["packets"] + left_out - truth["decodable_packets"] <= 4
    assert (account["residual"], account["kernel_drops"], account["too_old"], account["unfinished"]) == (0, 0, 0, 0)
    assert account["placed"] == account["present"] + account["duplicates"]
    assert account["present"] > 0
