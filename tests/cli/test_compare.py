"""`speadrx compare`: a numba placement against its layout, on a capture, random heaps and a live port."""

import contextlib
import json
import socket
import threading

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from speadrx.cli.group import group
from user_placements import FORMS, captured
from wire import heap


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, n = captured(FORMS["antenna"], tmp_path / "night.pcap")
    (tmp_path / "mine.py").write_text("from user_placements import ANTENNA, place_antenna\n", "utf-8")
    line = ["compare", path, "mine:ANTENNA", "mine:place_antenna", "--statistics", "metadata,timestamp,source"]
    line += ["--user-data", "stride=0", "--user-data", "pol=0", "--user-data"]
    good = CliRunner().invoke(group, [*line, "fault=0"], terminal_width=200)
    assert good.exit_code == 0, good.output
    assert f"No difference: {n} heaps go to the same place." in good.output
    bad = CliRunner().invoke(group, [*line, "fault=1", "--json"])
    assert bad.exit_code == 1
    found = json.loads(bad.stdout)
    assert not found["equal"]
    assert found["placements"] == ["mine:ANTENNA", "mine:place_antenna"]
    first = found["differences"][0]
    assert first["items"]["0x4101"] == 5
    assert first["reasons"] == ["bad_feng_id_heaps", "placed"]
    assert first["slots"][0] is None
    assert first["slots"][1]["index"] % 5 == 0
    shown = CliRunner().invoke(group, ["compare", "--random", "2000", *line[2:], "fault=2"], env={"COLUMNS": "200"})
    assert shown.exit_code == 1
    assert "placed differently" in shown.output
    assert shown.output.count("mine:place_antenna: chunk") == 10


def test_a_module_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_placement.py").write_text("1 / 0\n", "utf-8")
    result = CliRunner().invoke(group, ["compare", "--random", "9", "meerkat-digitiser", "broken_placement:place"])
    assert result.exit_code == 2
    assert "ZeroDivisionError" in result.stderr


def test_nothing_came(tmp_path):
    """A capture without heaps proves nothing."""
    path, _ = captured(FORMS["beam"], tmp_path / "night.pcap")
    with open(path, "r+b") as file:
        file.truncate(24)
    result = CliRunner().invoke(group, ["compare", path, "meerkat-digitiser", "meerkat-digitiser"])
    assert result.exit_code == 1
    assert "no heaps came" in result.stderr


def test_endpoints(udp_port):
    """Heaps that come to a port are compared."""
    form = FORMS["antenna"]
    item, values, _ = form.source
    with sending(udp_port, [heap(n, [(0x1600, n // 5 * 12), (item, values[n % 5])], bytes(16))[0] for n in range(50)]):
        line = ["compare", f"127.0.0.1:{udp_port}", "user_placements:ANTENNA", "user_placements:place_antenna"]
        user_data = [f"--user-data={field}=0" for field in ("stride", "pol", "fault")]
        result = CliRunner().invoke(group, [*line, *user_data, "--packets", "40", "--seconds", "120", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["equal"]
    assert 0 < found["heaps"] <= 40


@contextlib.contextmanager
def sending(port, packets):
    """Send packets to a port of this machine again and again."""
    done = threading.Event()

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            while not done.is_set():
                for packet in packets:
                    sock.sendto(packet, ("127.0.0.1", port))
                done.wait(0.01)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
