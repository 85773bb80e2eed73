"""All benchmarks against rivals, one after the other: prints one table of ratios, and writes them with curves as JSON.

A ratio is that of figures taken next to each other, as its unit says: of times less than 1 is better, of rates more.
Run it on a machine that does nothing else. `doc/performance.md` is made from the JSON (`performance.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import rows
from rich.console import Console
from rich.table import Table

from speadrx.cli.bench import machine

BENCHES = pathlib.Path(__file__).parent
#: Arguments for each benchmark: for figures that count, and to see in some minutes whether all works.
SCRIPTS: list[tuple[str, list[str], list[str]]] = [
    ("bench_callback.py", ["--repeats", "100"], ["--repeats", "7", "--heaps", "20000"]),
    ("bench_receive.py", ["--repeats", "60"], ["--repeats", "7"]),
    ("bench_udp.py", ["--searches", "7"], ["--searches", "1"]),
    ("bench_accounting.py", [], ["--repeats", "20"]),
    ("bench_fill.py", ["--rounds", "11"], ["--rounds", "2", "--heaps", "1024"]),
    ("bench_fill.py", ["--rounds", "11", "--heap-bytes", "640"], ["--rounds", "2", "--heap-bytes", "640"]),
    ("bench_scrape.py", ["--streams", "256"], ["--streams", "256", "--repeats", "20"]),
    ("bench_scrape.py", ["--streams", "1024", "--repeats", "100"], ["--streams", "1024", "--repeats", "10"]),
    ("bench_send.py", ["--rounds", "7"], ["--rounds", "2", "--heaps", "4000"]),
    ("bench_capture.py", ["--repeats", "7", "--megabytes", "200"], ["--repeats", "2", "--megabytes", "20"]),
    ("bench_record.py", ["--repeats", "7", "--chunks", "24", "--seconds", "5"], ["--quick", "--chunks", "4"]),
]


def from_send(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `bench_send.py`."""
    for result in document["results"]:
        if "speadrx" in result:
            rates = [result[way]["gigabits_per_second"] for way in ("speadrx", "spead2")]
            yield rows.row(f"send: {result['case']}", "spead2, premade heaps", "Gb/s", *rates, least=0.9)


def from_record(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `bench_record.py`, which has ratios."""
    figures = document["figures"]
    for name, rival, least, most in (
        ("rate / slower of raw and received", "raw pwrite or receiving", 0.9, None),
        ("rate / zarr-python", "zarr-python", None, None),
        ("rate / tensorstore", "tensorstore", None, None),
        ("processor per GB / raw", "raw pwrite", None, 1.1),
        ("lock held, ms per GB", "5 ms, which are wanted", None, 1.0),
    ):
        if name not in figures:
            continue  # a library that is not installed
        is_time = name.startswith("lock")
        scale = 0.2 if is_time else 1.0
        low, high = figures[name]["quartiles"]
        ours = figures["recorded, GB/s"]["median"]
        yield {
            "what": f"record: {name.partition(' / ')[0] if not is_time else name}",
            "rival": rival,
            "unit": "ms" if is_time else "GB/s",
            "ours": figures[name]["median"] if is_time else ours,
            "theirs": 5.0 if is_time else ours / figures[name]["median"],
            "ratio": figures[name]["median"] * scale,
            "quartiles": [low * scale, high * scale],
            "turns": figures[name]["repeats"],
            "most": most,
            "least": least,
        }


FROM = {"bench_send.py": from_send, "bench_record.py": from_record}


def run(script: str, arguments: list[str], folder: pathlib.Path) -> Any:
    """Run a benchmark, and return what it has written."""
    path = folder / "out.json"
    path.unlink(missing_ok=True)
    print(f"\n$ {script} {' '.join(arguments)}", file=sys.stderr, flush=True)
    command = [sys.executable, str(BENCHES / script), *arguments, "--json", str(path)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    document = json.loads(path.read_text("utf-8"))
    return list(FROM[script](document)) if script in FROM else document


def critical(searches: int) -> dict[str, Any]:
    """The critical rate of this machine, as `speadrx bench --critical` finds it."""
    command = [sys.executable, "-m", "speadrx.cli", "bench", "--critical", "--searches", str(searches), "--json"]
    print(f"\n$ speadrx bench --critical --searches {searches}", file=sys.stderr, flush=True)
    output = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output)["critical"]
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print the table."""
    titles, *lines = rows.table(found)
    table = Table(box=None, pad_edge=False)
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i in (1, 3, 4, 5) else "left", no_wrap=i != 0)
    for line in lines:
        table.add_row(*line)
    Console(highlight=False, width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="see in some minutes whether all works: no figure counts")
    parser.add_argument("--only", metavar="WORD", default="", help="only benchmarks with this in their name")
    parser.add_argument("--json", metavar="FILE", default="target/performance.json", help="[%(default)s]")
    args = parser.parse_args()
    begin = time.monotonic()
    load = os.getloadavg()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for script, full, quick in SCRIPTS:
            if args.only in script:
                found += run(script, quick if args.quick else full, folder)
        document: dict[str, Any] = {
            "about": machine() | {"numba": metadata.version("numba")},
            "quick": args.quick,
            "load": load[0],
            "rows": found,
        }
        if not args.only:
            document["critical"] = critical(1 if args.quick else 7)
            document["curves"] = run("curves.py", ["--turns", "2" if args.quick else "11"], folder)
    document["seconds"] = round(time.monotonic() - begin)
    path = pathlib.Path(args.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    show(found)


if __name__ == "__main__":
    main()
