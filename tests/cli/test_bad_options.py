"""Bad values of every option and argument of every command: exit code 2, and a message that names both."""

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import click
from click.testing import CliRunner

from screens import ARRAY, PLAN
from speadrx.cli.group import COMMANDS, group
from speadrx.simulate import PcapSink, Simulator

SEND = "send -l array.toml 127.0.0.1:7148 --batches 1"
RECV = "recv -l array.toml 127.0.0.1:7148 --seconds 0.1"
REPLAY = "replay capture.pcap -l array.toml"
RECORD = "record -l array.toml capture.pcap -o new.zarr"
BEAM = "meerkat-tied-array-channelised-voltage"

#: By command and option (or argument): what is typed, and what the message has beside the option's name.
CASES: dict[str, dict[str, list[tuple[str, list[str]]]]] = {
    "demo": {
        "--seconds": [("demo --seconds 0", ["0"]), ("demo --seconds x", ["'x'"]), ("demo --seconds nan", ["nan"])],
        "--rate": [("demo --rate -1", ["-1"]), ("demo --rate nan", ["nan"])],
        "--seed": [("demo --seed x", ["'x'"])],
    },
    "recv": {
        "ENDPOINTS": [
            ("recv -l array.toml", ["Missing"]),
            ("recv -l array.toml localhost", ["'localhost'", "localhost:7148"]),
            ("recv -l array.toml 127.0.0.1:99999", ["99999", "1 to 65535"]),
            ("recv -l array.toml capture.pcap", ["'capture.pcap'", "speadrx replay"]),
        ],
        "--layout": [
            ("recv 127.0.0.1:7148", ["Missing"]),
            ("recv -l aray.toml 127.0.0.1:7148", ["aray.toml"]),
            ("recv -l bad.toml 127.0.0.1:7148", ["bad.toml", "heap_bytes", "0"]),
            ("recv -l meerkat-digitizer 127.0.0.1:7148", ["meerkat-digitizer", "meerkat-digitiser"]),
        ],
        "--set": [
            (f"{RECV} --set time.batches=0", ["time.batches", "0"]),
            (f"{RECV} --set time.batchs=8", ["batchs", "batches"]),
            (f"{RECV} --set axes.antena.size=8", ["antena", "antenna"]),
            (f"{RECV} --set time.batches", ["time.batches", "="]),
        ],
        "--interface": [
            (f"{RECV} --interface 203.0.113.1", ["203.0.113.1"]),
            (f"{RECV} --interface nowhere", ["'nowhere'"]),
        ],
        "--comp-vector": [(f"{RECV} --comp-vector x", ["'x'"]), (f"{RECV} --comp-vector 2147483648", ["2147483648"])],
        "--affinity": [(f"{RECV} --affinity 4096", ["4096"]), (f"{RECV} --affinity x", ["'x'"])],
        "--buffer": [(f"{RECV} --buffer many", ["'many'"]), (f"{RECV} --buffer -1", ["-1"])],
        "--flush-after": [(f"{RECV} --flush-after 0", ["0"]), (f"{RECV} --flush-after x", ["'x'"])],
        "--seconds": [(f"{RECV} --seconds 0", ["0"])],
        "--chunks": [(f"{RECV} --chunks 0", ["0"])],
        "--metrics-port": [(f"{RECV} --metrics-port 65536", ["65536"])],
        "--metrics-address": [
            (f"{RECV} --metrics-port 0 --metrics-address 203.0.113.9", ["203.0.113.9", "Cannot assign"]),
            (f"{RECV} --metrics-address 127.0.0.1", ["--metrics-port"]),
        ],
        "--label": [
            (f"{RECV} --metrics-port 0 --label stream", ["'stream'", "stream=l-band"]),
            (f"{RECV} --metrics-port 0 --label =wide", ["'=wide'", "stream=l-band"]),
            (f"{RECV} --metrics-port 0 --label my-stream=wide", ["'my-stream'", "letters, digits and underscores"]),
            (f"{RECV} --metrics-port 0 --label source=wide", ["'source'", "taken"]),
            (f"{RECV} --metrics-port 0 --label stream=a --label stream=b", ["'stream'", "more than once"]),
            (f"{RECV} --label stream=wide", ["--metrics-port"]),
        ],
        "--interval": [(f"{RECV} --interval 0", ["0"])],
        "--threads": [(f"{RECV} --threads 0", ["0"]), (f"{RECV} --threads 2", ["2"])],
        "--window": [(f"{RECV} --window 0", ["0"])],
        "--tolerance": [
            (f"{RECV} --tolerance soon", ["'soon'"]),
            (f"{RECV} --tolerance -1s", ["-1s"]),
            (f"{RECV} --window 2 --tolerance 1s", ["1.0", "window 2"]),
        ],
        "--pool": [(f"{RECV} --window 4 --pool 4", ["4"]), (f"{RECV} --pool 1000000000000", ["1000000000000"])],
        "--max-jump": [(f"{RECV} --max-jump -1", ["-1"])],
        "--user-data": [(f"{RECV} --user-data pol", ["pol"]), (f"{RECV} --user-data pol=1", ["pol"])],
        "--fill": [(f"{RECV} --fill 70000", ["70000", "int16"]), (f"{RECV} --fill x", ["'x'"])],
        "--history": [(f"{RECV} --history /nonexistent/run.json", ["/nonexistent/run.json"])],
        "--max-loss": [
            (f"{RECV} --max-loss 101", ["101"]),
            (f"{RECV} --max-loss 5", ["5", "1%"]),
            (f"{RECV} --max-loss 101%", ["101%"]),
        ],
    },
    "send": {
        "DEST": [
            ("send -l array.toml --batches 1", ["--pcap"]),
            ("send -l array.toml 127.0.0.1 --batches 1", ["'127.0.0.1'", "127.0.0.1:7148"]),
        ],
        "--layout": [("send 127.0.0.1:7148", ["Missing"]), ("send -l no.toml 127.0.0.1:7148", ["no.toml"])],
        "--set": [(f"{SEND} --set heap_bytes=x", ["heap_bytes", "x"])],
        "--pcap": [("send -l array.toml --pcap /nonexistent/x.pcap --batches 1", ["/nonexistent/x.pcap"])],
        "--interface": [("send -l array.toml 239.1.2.3:7148 --batches 1 --interface nowhere", ["'nowhere'"])],
        "--ttl": [(f"{SEND} --ttl 256", ["256"])],
        "--threads": [
            (f"{SEND} --threads 0", ["0"]),
            (f"{SEND} --threads 99", ["99", "sources"]),
            ("send -l array.toml --pcap new.pcap --batches 1 --threads 2", ["capture", "by one"]),
        ],
        "--batches": [(f"{SEND} --batches 0", ["0"])],
        "--chunks": [(f"{SEND} --chunks -1", ["-1"])],
        "--seconds": [(f"{SEND} --seconds 0", ["0"])],
        "--rate": [(f"{SEND} --rate 0", ["0"]), (f"{SEND} --rate fast", ["'fast'"])],
        "--loss": [(f"{SEND} --loss 1.5", ["1.5"])],
        "--packet-loss": [(f"{SEND} --packet-loss -0.1", ["-0.1"])],
        "--reorder": [(f"{SEND} --reorder -1", ["-1"])],
        "--packet-reorder": [(f"{SEND} --packet-reorder 0.5", ["'0.5'"])],
        "--late": [(f"{SEND} --late 2", ["2"])],
        "--late-by": [(f"{SEND} --late-by -1", ["-1"])],
        "--duplicate": [(f"{SEND} --duplicate 1.01", ["1.01"])],
        "--garbage": [(f"{SEND} --garbage x", ["'x'"])],
        "--garbage-kind": [(f"{SEND} --garbage-kind rubbish", ["'rubbish'", "timestamp"])],
        "--seed": [(f"{SEND} --seed 1.5", ["'1.5'"])],
        "--first-timestamp": [(f"{SEND} --first-timestamp 100", ["100", "512"])],
        "--jitter": [(f"{SEND} --jitter 5", ["5", "mask"])],
        "--user-data": [(f"send -l {BEAM} 127.0.0.1:7148 --batches 1 --user-data pol=2", ["pol", "2"])],
        "--packet-bytes": [(f"{SEND} --packet-bytes 40", ["40"])],
        "--address-bits": [(f"{SEND} --address-bits 32", ["'32'", "48"])],
        "--truth": [(f"{SEND} --truth /nonexistent/truth.json", ["/nonexistent/truth.json"])],
    },
    "record": {
        "SOURCES": [
            ("record -l array.toml -o new.zarr", ["Missing"]),
            ("record -l array.toml -o new.zarr no.pcap", ["no.pcap", "no such file"]),
            ("record -l array.toml -o new.zarr array.toml", ["array.toml", "pcap"]),
            ("record -l array.toml -o new.zarr 127.0.0.1:99999", ["99999", "1 to 65535"]),
        ],
        "--layout": [("record capture.pcap -o new.zarr", ["Missing"])],
        "--output": [
            ("record -l array.toml capture.pcap", ["Missing"]),
            (f"{RECORD} -o /nonexistent/new.zarr", ["/nonexistent/new.zarr", "No such file"]),
            (f"{RECORD} -o /dev --force", ["/dev", "no recording"]),
        ],
        "--seconds": [
            (f"{RECORD} --seconds 0", ["0"]),
            ("record -l timeless.toml capture.pcap -o new.zarr --seconds 1", ["tick_rate"]),
        ],
        "--chunks": [(f"{RECORD} --chunks 0", ["0"])],
        "--max-bytes": [(f"{RECORD} --max-bytes 0", ["0"]), (f"{RECORD} --max-bytes 1kB", ["1000", "524800"])],
        "--split": [
            (f"{RECORD} --split 0", ["0"]),
            ("record -l timeless.toml capture.pcap -o new.zarr --split 1", ["tick_rate"]),
        ],
        "--select": [
            (f"{RECORD} --select m099", ["'m099' is no antenna here"]),
            (f"{RECORD} --select antenna=x", ["'x' is no antenna here"]),
            (f"{RECORD} --select beam=3", ["'beam'", "antenna"]),
            (f"{RECORD} --select antenna=8", ["'8' is no antenna here"]),
        ],
        "--compress": [(f"{RECORD} --compress lzma", ["'lzma'", "zstd"])],
        "--from": [(f"{RECORD} --from noon", ["'noon'", "UTC"]), (f"{RECORD} --from 1s", ["only recordings"])],
        "--patience": [(f"{RECORD} --patience 0", ["0"])],
        "--interface": [(f"{RECORD} --interface lo", ["capture.pcap"])],
        "--comp-vector": [(f"{RECORD} --comp-vector 1", ["capture.pcap"])],
        "--affinity": [(f"{RECORD} --affinity 0", ["capture.pcap"])],
        "--buffer": [(f"{RECORD} --buffer 1MB", ["capture.pcap"])],
        "--flush-after": [(f"{RECORD} --flush-after 1", ["capture.pcap"])],
        "--metrics-port": [(f"{RECORD} --metrics-port 0", ["capture.pcap"])],
        "--metrics-address": [(f"{RECORD} --metrics-address ::", ["capture.pcap"])],
        "--label": [(f"{RECORD} --label stream=wide", ["capture.pcap"])],
        "--interval": [(f"{RECORD} --interval 0", ["0"])],
        "--threads": [(f"{RECORD} --threads 2", ["capture.pcap"])],
        "--window": [(f"{RECORD} --window 0", ["0"])],
        "--tolerance": [(f"{RECORD} --tolerance soon", ["'soon'"])],
        "--pool": [(f"{RECORD} --pool 0", ["0"])],
        "--max-jump": [(f"{RECORD} --max-jump -1", ["-1"])],
        "--user-data": [(f"{RECORD} --user-data pol", ["pol"])],
        "--fill": [(f"{RECORD} --fill 70000", ["70000", "int16"])],
        "--history": [(f"{RECORD} --history /nonexistent/run.json", ["/nonexistent/run.json"])],
        "--max-loss": [(f"{RECORD} --max-loss 101%", ["101%"])],
        "--set": [(f"{RECORD} --set time.step=0", ["time.step", "0"])],
    },
    "replay": {
        "FILE": [
            ("replay -l array.toml", ["Missing"]),
            ("replay no.pcap -l array.toml", ["no.pcap"]),
            ("replay array.toml -l array.toml", ["array.toml", "pcap"]),
        ],
        "--layout": [("replay capture.pcap", ["Missing"])],
        "--set": [(f"{REPLAY} --set sources=beam", ["beam", "antenna"])],
        "--pace": [(f"{REPLAY} --pace 0", ["0"]), (f"{REPLAY} --pace nan", ["nan"])],
        "--to": [(f"{REPLAY} --to 239.1.2.3", ["'239.1.2.3'"])],
        "--threads": [(f"{REPLAY} --threads 0", ["0"])],
        "--window": [(f"{REPLAY} --window x", ["'x'"])],
        "--tolerance": [(f"{REPLAY} --tolerance 5parsec", ["'5parsec'"])],
        "--pool": [(f"{REPLAY} --pool 0", ["0"])],
        "--max-jump": [(f"{REPLAY} --max-jump x", ["'x'"])],
        "--user-data": [(f"{REPLAY} --user-data pol=x", ["pol"])],
        "--fill": [(f"{REPLAY} --fill 0.5", ["0.5", "int16"])],
        "--history": [(f"{REPLAY} --history /nonexistent/run.json", ["/nonexistent/run.json"])],
        "--max-loss": [(f"{REPLAY} --max-loss -1", ["-1"])],
    },
    "inspect": {
        "SOURCE": [
            ("inspect", ["Missing"]),
            ("inspect no.pcap", ["no.pcap"]),
            ("inspect array.toml", ["array.toml", "pcap"]),
            ("inspect 127.0.0.1:0", ["127.0.0.1:0", "1 to 65535"]),
        ],
        "--interface": [("inspect 239.1.2.3:7148 --interface nowhere", ["'nowhere'"])],
        "--seconds": [("inspect 127.0.0.1:7148 --seconds 0", ["0"])],
        "--packets": [("inspect 127.0.0.1:7148 --packets 0", ["0"])],
        "--stream": [("inspect capture.pcap --stream 0", ["0"]), ("inspect capture.pcap --stream 2", ["2", "1"])],
        "--output": [("inspect capture.pcap -o array.toml", ["array.toml", "--force"])],
    },
    "plot": {
        "SOURCE": [
            ("plot", ["Missing"]),
            ("plot no.json", ["no.json"]),
            ("plot array.toml", ["array.toml"]),
            ("plot capture.pcap", ["capture.pcap", "layout"]),
        ],
        "--layout": [("plot capture.pcap -l no.toml", ["no.toml"])],
        "--set": [("plot capture.pcap -l array.toml --set dtype=int17", ["dtype", "int17"])],
        "--from": [("plot capture.pcap -l array.toml --from 1s", ["only recordings"])],
        "--output": [("plot capture.pcap -l array.toml -o run.jpeg", ["run.jpeg", "png"])],
        "--size": [("plot capture.pcap -l array.toml --size 800", ["'800'"])],
    },
    "look": {
        "SOURCES": [
            ("look", ["Missing"]),
            ("look no.zarr -l array.toml", ["no.zarr"]),
            ("look capture.pcap", ["--layout", "recording"]),
            ("look array.toml -l array.toml", ["array.toml", "pcap"]),
        ],
        "--layout": [("look capture.pcap -l no.toml", ["no.toml"])],
        "--set": [("look capture.pcap -l array.toml --set dtype=int17", ["dtype", "int17"])],
        "--source": [
            ("look capture.pcap -l array.toml --set dtype=int16 --source pol=1", ["'pol'", "antenna"]),
            ("look capture.pcap -l array.toml --set dtype=int16 --source antenna=99", ["'99'"]),
        ],
        "--from": [
            ("look capture.pcap -l array.toml --from 2026-13-01", ["'2026-13-01'", "UTC"]),
            ("look capture.pcap -l array.toml --from -1s", ["'-1s'"]),
            ("look capture.pcap -l array.toml --from 1s", ["only recordings"]),
        ],
        "--field": [("look capture.pcap -l array.toml --set dtype=int16 --field x", ["'x'"])],
        "--as": [("look capture.pcap -l array.toml --as current", ["'current'", "power"])],
        "--chunks": [("look capture.pcap -l array.toml --chunks 0", ["0"])],
        "--seconds": [
            ("look capture.pcap -l array.toml --seconds 0", ["0"]),
            ("look capture.pcap -l timeless.toml --set dtype=int16 --seconds 1", ["--seconds", "--chunks"]),
        ],
        "--interface": [("look 239.1.2.3:7148 -l array.toml --set dtype=int16 --interface nowhere", ["'nowhere'"])],
        "--user-data": [("look capture.pcap -l array.toml --user-data pol", ["'pol'"])],
        "--output": [("look capture.pcap -l array.toml -o look.jpeg", ["look.jpeg", "png"])],
        "--size": [("look capture.pcap -l array.toml --size 800", ["'800'"])],
    },
    "doctor": {
        "ENDPOINTS": [("doctor localhost", ["'localhost'", "localhost:7148"])],
        "--interface": [],  # a wrong one is what it is there to find
        "--sender": [("doctor 127.0.0.1:7148 --sender somebody.invalid", ["somebody.invalid"])],
        "--buffer": [("doctor 127.0.0.1:7148 --buffer -1", ["-1"]), ("doctor --buffer 64MB/s", ["'64MB/s'"])],
        "--packet-bytes": [("doctor 127.0.0.1:7148 --packet-size 65508", ["65508"])],
        "--layout": [("doctor -l no.toml", ["no.toml"])],
        "--set": [("doctor -l array.toml --set time.step=0", ["time.step", "0"])],
        "--affinity": [("doctor --affinity x", ["'x'"])],
        "--seconds": [("doctor 127.0.0.1:7148 --listen -1", ["-1"])],
    },
    "compare": {
        "SOURCE] FIRST SECOND": [
            ("compare capture.pcap array.toml", ["SOURCE FIRST SECOND", "2 arguments"]),
            ("compare no.pcap array.toml array.toml", ["no.pcap"]),
            ("compare capture.pcap no.toml array.toml", ["FIRST", "no.toml"]),
            ("compare capture.pcap array.toml nowhere:place", ["SECOND", "nowhere"]),
            ("compare capture.pcap array.toml math:pi", ["math:pi", "float", "address"]),
        ],
        "--random": [("compare --random 0 array.toml array.toml", ["0"])],
        "--seed": [("compare --random 9 --seed -1 array.toml array.toml", ["-1"])],
        "--interface": [("compare capture.pcap array.toml array.toml --interface lo", ["capture.pcap"])],
        "--seconds": [("compare 127.0.0.1:7148 array.toml array.toml --seconds 0", ["0"])],
        "--packets": [("compare capture.pcap array.toml array.toml --packets 0", ["0"])],
        "--items": [("compare capture.pcap array.toml array.toml --items time", ["'time'", "0x1600"])],
        "--statistics": [],  # any names
        "--user-data": [("compare capture.pcap array.toml array.toml --user-data pol=1", ["pol", "reads"])],
        "--window": [("compare capture.pcap array.toml array.toml --window 0", ["0"])],
        "--set": [("compare capture.pcap array.toml array.toml --set time.step=0", ["time.step", "0"])],
    },
    "layout": {
        "FILE|PRESET": [
            ("layout", ["which layout?", "--list"]),
            ("layout no.toml", ["no.toml"]),
            ("layout bad.toml", ["bad.toml", "heap_bytes", "0", "at least 1"]),
            ("layout broken.toml", ["broken.toml", "line 2"]),
        ],
        "--set": [("layout array.toml --set time.align=round", ["time.align", "round", "mask"])],
        "--svg": [("layout array.toml --svg /nonexistent/x.svg", ["/nonexistent/x.svg"])],
        "--from-mkrecv": [
            ("layout --from-mkrecv no.cfg", ["no.cfg"]),
            ("layout --from-mkrecv array.toml", ["array.toml", "NINDICES"]),
        ],
        "--capture": [("layout array.toml --capture capture.pcap", ["--from-mkrecv"])],
        "--item": [("layout --from-mkrecv array.toml --item 0", ["'0'", "2=0x4101"])],
    },
    "bench": {
        "--layout": [("bench -l no.toml", ["no.toml"])],
        "--set": [("bench -l array.toml --set x=1", ["x"])],
        "--seconds": [("bench --seconds 0", ["0"])],
        "--packet-bytes": [("bench --packet-bytes 0", ["0"])],
        "--searches": [("bench --critical --searches 0", ["0"])],
    },
    "top": {
        "URL": [("top", ["Missing"])],
        "--interval": [("top localhost:1 --interval -1", ["-1"]), ("top localhost:1 --interval 0", ["0"])],
        "--sort": [("top localhost:1 --sort name", ["'name'", "loss"])],
        "--sources": [("top localhost:1 --sources 0", ["0"])],
    },
    "fleet": {
        "PLAN": [
            ("fleet", ["Missing"]),
            ("fleet no.toml", ["PLAN", "no.toml"]),
            ("fleet array.toml", ["array.toml", "heap_bytes"]),
            ("fleet bad_plan.toml", ["bad_plan.toml", "deal", "'antena'", "'antenna'"]),
        ],
        "--local": [
            ("fleet plan.toml --local 0", ["0"]),
            ("fleet plan.toml --local 2 --scheduler tcp://a:1", ["--sch"]),
        ],
        "--scheduler": [("fleet plan.toml --scheduler here", ["'here'", "tcp://10.0.0.1:8786"])],
        "--seconds": [("fleet plan.toml --seconds 0", ["0"])],
        "--metrics-port": [("fleet plan.toml --metrics-port 65536", ["65536"])],
        "--metrics-address": [("fleet plan.toml --metrics-address 127.0.0.1", ["--metrics-port"])],
        "--interval": [("fleet plan.toml --interval 0", ["0"])],
        "--max-loss": [("fleet plan.toml --max-loss 2", ["2"])],
    },
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "array.toml").write_text(ARRAY, "utf-8")
    (tmp_path / "bad.toml").write_text(ARRAY.replace("heap_bytes = 1024", "heap_bytes = 0"), "utf-8")
    (tmp_path / "broken.toml").write_text(ARRAY.replace('sources = "antenna"', "sources = antenna"), "utf-8")
    (tmp_path / "timeless.toml").write_text(ARRAY.replace("tick_rate = 1e6\n", ""), "utf-8")
    (tmp_path / "plan.toml").write_text(PLAN, "utf-8")
    (tmp_path / "bad_plan.toml").write_text(PLAN.replace("antenna", "antena"), "utf-8")
    from speadrx import Layout

    with PcapSink("capture.pcap") as sink:
        Simulator(Layout.from_toml("array.toml")).send(sink, batches=64)


def long_name(parameter):
    if isinstance(parameter, click.Argument):
        return parameter.make_metavar(click.Context(group)).strip("[].")
    return max(parameter.opts, key=len)


def test_all_that_takes_a_value_is_there():
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        names = {long_name(p) for p in command.params if not getattr(p, "is_flag", False)}
        assert set(CASES[name]) == names


@pytest.mark.parametrize(
    ("option", "line", "parts"),
    [
        pytest.param(option, line, parts, id=line)
        for options in CASES.values()
        for option, cases in options.items()
        for line, parts in cases
    ],
)
def test_bad_value(workplace, udp_port, option, line, parts):
    result = CliRunner().invoke(group, line.replace("7148", str(udp_port)).split(), env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    usage, _, message = result.stderr.partition("Error: ")
    assert usage == "" or usage.startswith("Usage: ")
    # A file or an endpoint says itself what it is, and so does a change of a layout.
    assert option in message or not option.startswith("--") or option == "--set"
    for part in parts:
        assert part in message
