"""`speadrx doctor`: find out why nothing arrives, or not everything, and print the commands that fix it."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.text import Text

from speadrx.doctor import Case, Finding, diagnose
from speadrx.doctor import listen as listen_to
from speadrx.doctor.system import parse_cpus
from speadrx.layout.declaration import Layout
from speadrx.receive.settings import DEFAULT_BUFFER

from .interrupt import interruptible
from .options import load_layout, set_option
from .parameters import read_endpoints, read_finite

_STYLES = {"problem": "bold red", "warning": "yellow", "unknown": "cyan", "ok": "green"}


def _senders(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
    try:
        # A link-local sender needs no interface here: packets show where they come in.
        return tuple(str(ipaddress.ip_address(text)).partition("%")[0] for text in texts)
    except ValueError:
        raise click.BadParameter(f"{', '.join(texts)}: wanted IP addresses, such as 10.0.0.7") from None


def _affinity(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        # Part by part, so that a processor that is given twice stays twice.
        found = [sorted(parse_cpus(part.strip())) for part in text.split(",")]
        if not all(found):
            raise ValueError("a part is empty")
        return tuple(cpu for cpus in found for cpu in cpus)
    except ValueError:
        raise click.BadParameter(f"{text!r}: wanted processors, such as 2,4 or 2-5") from None


def _print(console: Console, findings: Sequence[Finding], everything: bool) -> None:
    shown = [finding for finding in findings if everything or finding.severity != "ok"]
    for finding in shown:
        line = Text.assemble((finding.severity, _STYLES[finding.severity]), f" {finding.check}: {finding.summary}")
        console.print(line)
        if finding.why:
            console.print(Text(finding.why), style="dim")
        for command in finding.mend:
            # In one line, however long it is, so that it can be copied.
            console.print(Text(f"    {command}"), style="bold", soft_wrap=True)
        console.print()
    counts = {severity: sum(finding.severity == severity for finding in findings) for severity in _STYLES}
    console.print(
        f"Problems: {counts['problem']}, warnings: {counts['warning']}, unknown: {counts['unknown']}, "
        f"fine: {counts['ok']}."
    )


@click.command()
@click.argument("endpoints", nargs=-1, callback=read_endpoints)
@click.option("--interface", metavar="ADDRESS", help="Interface that the receiver uses: its address or its name.")
@click.option(
    "--sender",
    "senders",
    metavar="ADDRESS",
    multiple=True,
    callback=_senders,
    help="Address of a sender. May be repeated.",
)
@click.option(
    "--buffer",
    type=click.IntRange(0),
    default=DEFAULT_BUFFER,
    show_default=True,
    help="Bytes of socket buffer that the receiver asks for, shared by the endpoints.",
)
@click.option(
    "--packet-size",
    type=click.IntRange(1, 65507),
    help="Bytes of UDP payload in the senders' largest packets (their max_packet_size).  [default: not known]",
)
@click.option(
    "-l", "--layout", "name_or_path", metavar="FILE|PRESET", help="Layout of the heaps, to check memory and MTU."
)
@set_option
@click.option(
    "--affinity", metavar="CPUS", callback=_affinity, help="Processors for the receiver's threads: 2,4 or 2-5."
)
@click.option(
    "--listen",
    type=click.FloatRange(0, 3600),
    callback=read_finite,
    default=2.0,
    show_default=True,
    help="Listen to the endpoints for so many seconds; 0 means not at all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
@click.option("--all", "everything", is_flag=True, help="Also print what is fine.")
@click.pass_context
def doctor(
    context: click.Context,
    endpoints: list[tuple[str, int]],
    interface: str | None,
    senders: tuple[str, ...],
    buffer: int,
    packet_size: int | None,
    name_or_path: str | None,
    overrides: tuple[str, ...],
    affinity: tuple[int, ...],
    listen: float,
    as_json: bool,
    everything: bool,
) -> None:
    """Find out why nothing arrives at ENDPOINTS, or not everything, and how to fix it.

    It binds and joins ENDPOINTS as the receiver would, and finds out how far packets get. Then it checks
    the interface, routes, reverse path filter, MTU, firewall, buffers, processors and memory. Problems
    come first, with the commands that fix them. The doctor itself changes nothing. Give it the options of
    the receiver. Run it as root to see more: packets at the interfaces, the firewall, other processes.

    \b
    Example:
        speadrx doctor 239.1.2.3+7:7148 --interface 10.0.0.5 --packet-size 8192

    \b
    Exit codes:
        0  no problems (there may be warnings)
        1  problems
        2  wrong usage
    """  # noqa: D301 (click needs the backslash)
    if overrides and name_or_path is None:
        raise click.UsageError("--set changes a layout: give one with -l/--layout")
    layout: Layout | None = None
    if name_or_path is not None:
        layout = load_layout(name_or_path, overrides, "-l/--layout")
    case = Case(tuple(endpoints), interface, senders, buffer, packet_size, layout, affinity)
    try:
        assert case.resolved is not None
    except ValueError as exc:
        raise click.BadParameter(str(exc).removeprefix("src: "), param_hint="ENDPOINTS") from None
    with interruptible() as interrupted:
        if endpoints and listen:
            case = dataclasses.replace(case, heard=listen_to(case, listen, interrupted))
        findings = diagnose(case)
    if as_json:
        click.echo(json.dumps({"findings": [dataclasses.asdict(finding) for finding in findings]}, indent=2))
    else:
        _print(Console(highlight=False), findings, everything)
    context.exit(1 if any(finding.severity == "problem" for finding in findings) else 0)
