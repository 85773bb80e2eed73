"""What all commands have in common: nothing is overwritten unasked, quantities with units, help, and near misses."""

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner

from screens import ARRAY
from speadrx.cli import quantities
from speadrx.cli.group import COMMANDS, group
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
    ("record capture.pcap -l array.toml -o other --history new", "new", "--history"),
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


QUANTITIES = [
    (quantities.time(), {"10s": 10, "10": 10, "500ms": 0.5, "0.5 s": 0.5, "2min": 120, "1h": 3600, "1e3us": 0.001}),
    (quantities.FRACTION, {"1%": 0.01, "0.01": 0.01, "7%": 0.07, "0.1 %": 0.001, "100%": 1, "0": 0, ".5": 0.5}),
    (quantities.rate(), {"0.5": 0.5, "500Mb/s": 0.5, "1Gb/s": 1, "60MB/s": 0.48, "125000kB/s": 1, "8b/s": 8e-9}),
    (quantities.size(), {"9000": 9000, "9kB": 9000, "64MiB": 1 << 26, "1.5KiB": 1536, "2GB": 2 * 10**9}),
]


@pytest.mark.parametrize(("kind", "values"), QUANTITIES, ids=[kind.name for kind, _ in QUANTITIES])
def test_quantities(kind, values):
    assert {text: kind.convert(text, None, None) for text in values} == values
    for text in ("", "x", "1x", "s", "1 parsec", "nan", "inf", "1e999", "1e999999999", "-1", "--1", "1_0"):
        with pytest.raises(click.BadParameter, match=kind.name) as failure:
            kind.convert(text, None, None)
        assert text in str(failure.value)


#: What takes a time, a part of a whole, a rate or a size, by the unit that it is written with.
WRITTEN = {"time": "1s", "fraction": "1%", "rate": "500Mb/s", "size": "4kB"}
#: Options that are quantities wherever they are.
NAMED = {
    "--seconds": "time",
    "--listen": "time",
    "--interval": "time",
    "--flush-after": "time",
    "--loss": "fraction",
    "--packet-loss": "fraction",
    "--late": "fraction",
    "--duplicate": "fraction",
    "--garbage": "fraction",
    "--max-loss": "fraction",
    "--rate": "rate",
    "--buffer": "size",
    "--packet-bytes": "size",
    "--packet-size": "size",
    "--max-bytes": "size",
    "--split": "time",
    "--patience": "time",
}


def all_options():
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        for parameter in command.params:
            for option in parameter.opts:
                yield command, parameter, option


def test_options_mean_the_same_everywhere():
    """And no option is a bare number of something that has a unit."""
    seen = set()
    for command, parameter, option in all_options():
        if option in NAMED:
            seen.add(option)
            assert parameter.type.name == NAMED[option], (command.name, option)
            parameter.type.convert(WRITTEN[parameter.type.name], parameter, None)
        else:
            assert not isinstance(parameter.type, quantities.Quantity), (command.name, option)
            assert not isinstance(parameter.type, click.FloatRange) or option == "--pace", (command.name, option)
    assert seen == set(NAMED)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_short_to_ask_for(name):
    assert run_here(*filter(None, [name]), "-h") == run_here(*filter(None, [name]), "--help")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("recev", "recv"),
        ("sned", "send"),
        ("doctr", "doctor"),
        ("recv :1 --max-los 1%", "--max-loss"),
        ("send --pakcet-bytes 9000", "--packet-bytes"),
        ("doctor --bufer 64MiB", "--buffer"),
    ],
)
def test_near_misses(typed, meant):
    errors = run_here(*typed.split(), code=2)
    assert "Did you mean" in errors
    assert meant in errors
