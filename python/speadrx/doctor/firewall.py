"""The check of the firewall: which of its rules drop the packets, and the rule that lets them in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any, Literal

from .finding import Case, Finding
from .iptables import translate
from .rules import Packet, Rules, Verdict
from .system import NET, Unknown, read, run

#: Family and table of rules that come from the older kind of iptables, which nftables does not show.
_LEGACY = "iptables"


def firewall(case: Case) -> Iterator[Finding]:
    """Packets that a firewall drops never reach the socket."""
    rules = _legacy() or Rules(json.loads(run("nftables", "nft", "--json", "list", "ruleset")))
    found: dict[tuple[str, str, str], tuple[dict[str, Any], Verdict, set[int]]] = {}
    for packet in _packets(case):
        for chain in rules.base:
            verdict = rules.judge(chain, packet)
            if verdict.what == "drop":
                key = (chain["table"], chain["name"], verdict.rule)
                found.setdefault(key, (chain, verdict, set()))[2].add(packet.port)
    for chain, verdict, ports in found.values():
        yield _finding(case, chain, verdict, ports)
    if not found:
        summary = (
            "there are rules, and no endpoints to try them on" if rules.base else "it has no rules for what comes in"
        )
        yield Finding("firewall", "ok", "it lets the packets in" if rules.base and case.endpoints else summary)


def _legacy() -> Rules | None:
    """Read the rules of the older kind of iptables, if any are loaded."""
    try:
        tables = read(f"{NET}/ip_tables_names")
    except Unknown:  # none of it in this kernel, or the right to look is missing
        return None
    return Rules(translate(run("iptables", "iptables-legacy-save", "--counters"), _LEGACY)) if tables else None


def _packets(case: Case) -> Iterator[Packet]:
    senders = sorted({*case.senders, *(sender for _, sender, _ in (case.heard.seen or {} if case.heard else {}))})
    for endpoint in case.resolved:
        address = endpoint.address
        version: Literal[4, 6] = 6 if ":" in address else 4
        inlet = case.inlet(endpoint)
        sources = [sender for sender in senders if (":" in sender) == (version == 6)]
        for source in (*sources,) or (None,):
            yield Packet(
                version=version,
                destination=None if address in ("0.0.0.0", "::") else address,
                port=endpoint.port,
                source=source,
                interface=None if inlet is None else inlet.name,
            )


def _finding(case: Case, chain: dict[str, Any], verdict: Verdict, ports: set[int]) -> Finding:
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    counted = "" if verdict.packets is None else f" (it has dropped {verdict.packets} packets)"
    may = "drops" if verdict.sure else "may drop"
    summary = f"{where} {may} UDP to port {', '.join(map(str, sorted(ports)))}: {verdict.rule}{counted}"
    why = "What the firewall drops comes to the interface, and never to the socket."
    if not verdict.sure:
        why += " Whether the rule applies depends on more than is known here."
    return Finding("firewall", "problem" if verdict.sure else "warning", summary, why, (_mend(chain, ports),))


def _mend(chain: dict[str, Any], ports: set[int]) -> str:
    if chain["family"] == _LEGACY:
        listed = ",".join(map(str, sorted(ports)))
        words = ["-t", chain["table"], "-I", chain["name"], "-p", "udp", "-m", "multiport", "--dports", listed]
        return shlex.join(["iptables-legacy", *words, "-j", "ACCEPT"])
    listed = ", ".join(map(str, sorted(ports)))
    those = f"{{ {listed} }}" if len(ports) > 1 else listed
    name = [chain["family"], chain["table"], chain["name"]]
    return shlex.join(["nft", "insert", "rule", *name, "udp", "dport", those, "accept"])
