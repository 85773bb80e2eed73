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
from speadrx.layout.declaration import Layout
from speadrx.receive.settings import DEFAULT_BUFFER

from . import quantities
from .interrupt import interruptible
from .options import load_layout, set_option
from .parameters import read_endpoints, read_processors

_STYLES = {"problem": "bold red", "warning": "yellow", "unknown": "cyan", "ok": "green"}


def _senders(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
    try:
        # A link-local sender needs no interface here: packets show where they come in.
        return tuple(str(ipaddress.ip_address(text)).partition("%")[0] for text in texts)
    except ValueError:
        raise click.BadParameter(f"{', '.join(texts)}: wanted IP addresses, such as 10.0.0.7") from None


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
@click.option("--interface", metavar="NAME|ADDRESS", help="Interface that the receiver uses.")
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
    type=quantities.size(),
    default=f"{DEFAULT_BUFFER >> 20}MiB",
    show_default=True,
    help="Socket buffer that the receiver asks for, shared by the endpoints.",
)
@click.option(
    "--packet-bytes",
    "--packet-size",
    "packet_size",
    type=quantities.size(1, 65507),
    help="Bytes of UDP payload in the senders' largest packets (their max_packet_size).  [default: not known]",
)
@click.option(
    "-l", "--layout", "name_or_path", metavar="FILE|PRESET", help="Layout of the heaps, to check memory and MTU."
)
@set_option
@click.option(
    "--affinity", metavar="CPUS", callback=read_processors, help="Processors for the receiver's threads: 2,4 or 2-5."
)
@click.option(
    "--seconds",
    "--listen",
    "listen",
    type=quantities.time(0, 3600),
    default="2s",
    show_default=True,
    help="How long to listen to the endpoints; 0 means not at all.",
)
@click.option("--ibv", is_flag=True, help="The receiver uses ibverbs: also check what that needs.")
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
    affinity: list[int] | None,
    listen: float,
    ibv: bool,
    as_json: bool,
    everything: bool,
) -> None:
    """Find out why nothing arrives at ENDPOINTS, or not everything, and how to fix it.

    ENDPOINTS are those of the receiver, such as 239.1.2.3+7:7148 or eth1/239.1.2.3:7148.

    It binds and joins ENDPOINTS as the receiver would, and finds out how far packets get. Then it checks
    the interface, routes, reverse path filter, MTU, firewall, buffers, processors and memory. Problems
    come first, with the commands that fix them. The doctor itself changes nothing. Give it the options of
    the receiver. Run it as root to see more: packets at the interfaces, the firewall, other processes.

    \b
    Example:
        speadrx doctor 239.1.2.3+7:7148 --interface 10.0.0.5 --packet-bytes 8192

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
    case = Case(tuple(endpoints), interface, senders, buffer, packet_size, layout, tuple(affinity or ()), ibv=ibv)
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
