"""Check of the firewall: find rules that drop the packets, and the command that lets them in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any, Literal

from speadrx._words import counted

from .case import Case
from .finding import Finding
from .iptables import translate
from .nftables import ExpectedPacket, Ruleset, Verdict
from .system import NET, Unknown, read, run

#: Stands for the family of rules of legacy iptables, which nft does not show.
_LEGACY = "iptables"


def firewall(case: Case) -> Iterator[Finding]:
    """Packets that a firewall drops never reach the socket."""
    ruleset = _legacy() or Ruleset(json.loads(run("nftables", "nft", "--json", "list", "ruleset")))
    found: dict[tuple[str, str, str], tuple[dict[str, Any], Verdict, set[int]]] = {}
    for packet in _packets(case):
        for chain in ruleset.base:
            verdict = ruleset.judge(chain, packet)
            if verdict.what == "drop":
                key = (chain["table"], chain["name"], verdict.rule)
                found.setdefault(key, (chain, verdict, set()))[2].add(packet.port)
    for chain, verdict, ports in found.values():
        yield _finding(case, chain, verdict, ports)
    if not found:
        summary = "it lets the packets in" if case.endpoints else "there are rules, but no endpoints to check them for"
        yield Finding("firewall", "ok", summary if ruleset.base else "there are no rules for incoming packets")


def _legacy() -> Ruleset | None:
    """Read the rules of legacy iptables, if there are any."""
    try:
        tables = read(f"{NET}/ip_tables_names")
    except Unknown:  # this kernel does not have it, or we may not look
        return None
    return Ruleset(translate(run("iptables", "iptables-legacy-save", "--counters"), _LEGACY)) if tables else None


def _packets(case: Case) -> Iterator[ExpectedPacket]:
    senders = sorted({*case.senders, *(sender for _, sender, _ in (case.heard.seen or {} if case.heard else {}))})
    for endpoint in case.resolved:
        address = endpoint.address
        version: Literal[4, 6] = 6 if ":" in address else 4
        inlet = case.inlet(endpoint)
        sources = [sender for sender in senders if (":" in sender) == (version == 6)]
        for source in (*sources,) or (None,):
            yield ExpectedPacket(
                version=version,
                destination=None if address in ("0.0.0.0", "::") else address,
                port=endpoint.port,
                source=source,
                interface=None if inlet is None else inlet.name,
            )


def _finding(case: Case, chain: dict[str, Any], verdict: Verdict, ports: set[int]) -> Finding:
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    dropped = "" if verdict.packets is None else f" (it has dropped {counted(verdict.packets, 'packet')})"
    may = "drops" if verdict.sure else "may drop"
    summary = f"{where} {may} UDP to port {', '.join(map(str, sorted(ports)))}: {verdict.rule}{dropped}"
    why = "Packets that the firewall drops reach the interface, but not the socket."
    if not verdict.sure:
        why += " The rule depends on things that are not known here."
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
