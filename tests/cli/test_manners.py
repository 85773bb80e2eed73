"""What all commands have in common: nothing is overwritten unasked, quantities with units, help, and near misses."""

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

from click.testing import CliRunner

from screens import ARRAY
from speadrx.cli.group import group
from terminals import run_here


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "array.toml").write_text(ARRAY, "utf-8")
    return tmp_path


#: What writes which file, and under which option.
WRITERS = [
    ("send -l array.toml --pcap new --batches 64", "new", "--pcap"),
    ("send -l array.toml --pcap a.pcap --batches 64 --truth new", "new", "--truth"),
    ("replay capture.pcap -l array.toml --history new", "new", "--history"),
    ("recv 127.0.0.1:7148 -l array.toml --seconds 0.1 --history new", "new", "--history"),
    ("layout array.toml --svg new", "new", "--svg"),
    ("inspect capture.pcap -o new", "new", "--output"),
    ("plot capture.pcap -l array.toml -o new.svg --size 800x500", "new.svg", "--output"),
    ("plot capture.pcap -l array.toml --size 800x500", "capture.png", ""),
]


@pytest.mark.parametrize(("line", "name", "option"), WRITERS, ids=[line for line, _, _ in WRITERS])
def test_no_file_is_overwritten_unasked(workplace, udp_port, line, name, option):
    if name.endswith((".svg", ".png")):
        pytest.importorskip("matplotlib")
    if "capture.pcap" in line:
        run_here(*["send", "-l", "array.toml", "--pcap", "capture.pcap", "--batches", "64"])
    words = line.replace("7148", str(udp_port)).split()
    file = workplace / name
    file.write_text("a night's work")
    errors = run_here(*words, code=2)
    assert f"{name} exists: use --force to overwrite it" in errors
    assert option in errors
    assert file.read_text() == "a night's work"
    result = CliRunner().invoke(group, [*words, "--force"])
    assert result.exit_code == (1 if words[0] == "recv" else 0), result.output
    assert file.read_bytes() != b"a night's work"


def test_devices_can_be_written(workplace):
    run_here(*["send", "-l", "array.toml", "--pcap", "/dev/null", "--batches", "64"])
