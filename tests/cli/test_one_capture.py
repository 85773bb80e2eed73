"""One capture with faults through all commands that read it: what they say agrees with what was sent, to the heap."""

import json
from collections import Counter

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from screens import ARRAY
from terminals import run

#: What a plot and a receiver say alike.
SHARED = ("present", "missing", "expected", "duplicates", "rejected", "late_batches", "late_chunks")
ALL_FAULTS = "--loss 0.03 --duplicate 0.02 --reorder 30 --garbage 0.03"
CASES = [
    ("array.toml", f"{ALL_FAULTS} --packet-bytes 400 --packet-loss 0.002 --packet-reorder 10"),
    ("array.toml", ALL_FAULTS),
    ("array.toml", f"{ALL_FAULTS} --garbage-kind stop --garbage-kind length"),
    ("meerkat-digitiser --set time.batches=16", f"{ALL_FAULTS} --packet-bytes 9000"),
    ("meerkat-antenna-channelised-voltage --set axes.antenna.size=5", "--loss 0.1 --packet-bytes 9000"),
]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "array.toml").write_text(ARRAY, "utf-8")
    return tmp_path


def numbers(line):
    """Run a command and read the JSON that it prints."""
    return json.loads(run(*line.split(), "--json"))


def assert_agrees(said, truth, unused):
    """Every number of a receiver is that of the truth; proposals number the sources in the same order.

    `unused` has the packets of the capture that do not reach spead2, by reason.
    """
    sources = said["sources"]

    def of_sources(name):
        return [source[name] for source in sources]

    def true(name):
        return list(truth[name].values())

    assert len(sources) == len(truth["sent"])
    assert of_sources("present") == true("complete")
    assert of_sources("missing") == [lost + part for lost, part in zip(true("lost"), true("incomplete"), strict=True)]
    assert of_sources("placed") == true("sent")
    assert of_sources("duplicates") == true("duplicated")
    assert said["present"] == sum(true("complete")) > 0
    assert said["missing"] == sum(true("lost")) + sum(true("incomplete"))
    assert said["duplicates"] == sum(true("duplicated"))
    assert said["unfinished"] == sum(true("incomplete"))
    left_out = sum(packets for reason, packets in unused.items() if reason != "not_spead")
    assert said["packets"] + left_out == truth["decodable_packets"]
    assert (said["too_old"], said["kernel_drops"]) == (0, 0)
    # A proposal may call an axis otherwise, and a reason with it.
    rejected = {reason: count for reason, count in said["rejected"].items() if count}
    # Heaps without the payload item (each a packet) are not rejected: they do not come so far.
    without_data = unused.get("no_payload_item", 0) + unused.get("stream_control", 0)
    metadata = truth["rejected"].get("metadata_heaps", 0) - without_data
    assert sorted(rejected.values()) == sorted((+Counter(truth["rejected"] | {"metadata_heaps": metadata})).values())
    counted = said["present"] + said["duplicates"] + said["unfinished"] + sum(rejected.values()) + without_data
    assert truth["copies"] == counted + sum(truth["unseen"].values())


@pytest.mark.parametrize(
    ("layout", "faults"), [CASES[0], *(pytest.param(*c, marks=pytest.mark.slow) for c in CASES[1:])]
)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_agreement(workplace, layout, faults, seed):
    batches = 2048 if layout == "array.toml" else 1024  # whole chunks, also of what is proposed
    options = f"-l {layout} --pcap capture.pcap --batches {batches} --truth truth.json --seed {seed} {faults}"
    run("send", *options.split())
    truth = json.loads((workplace / "truth.json").read_text())
    toml = run("inspect", "capture.pcap", "--toml")
    (workplace / "proposed.toml").write_text(toml, "utf-8")
    for proposed in (layout, "proposed.toml"):
        replayed = numbers(f"replay capture.pcap -l {proposed} --history run.json --force")
        unused = replayed["unused"]
        assert_agrees(replayed, truth, unused)
        for drawn in (numbers("plot run.json"), numbers(f"plot capture.pcap -l {proposed}")):
            assert_agrees(drawn, truth, unused)
            assert {name: drawn[name] for name in SHARED} == {name: replayed[name] for name in SHARED}
