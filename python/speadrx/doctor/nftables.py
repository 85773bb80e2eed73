"""Predict what the rules of nftables do with a packet, as far as the rules can be understood.

The kernel would know exactly, but only if a rule that traces packets were added, and once packets come.
"""

from __future__ import annotations

import collections
import dataclasses
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

#: Hooks that a packet to this machine passes, in order.
HOOKS = ("ingress", "prerouting", "input")

#: Families of tables that such a packet passes. nftables does not have the first: `iptables.translate` uses it.
_FAMILIES = ("iptables", "ip", "ip6", "inet", "netdev")

#: Most jumps from chain to chain.
_MOST_JUMPS = 16

#: Statements whose result cannot be known here.
_CONDITIONS = ("limit", "quota", "ct count", "xt", "meter")
_VERDICTS = ("accept", "drop", "reject", "return", "jump", "goto", "vmap")

ChainId = tuple[str, str, str]  # family, table, name


@dataclass(frozen=True)
class ExpectedPacket:
    """What is known about a UDP packet that is expected; None means that it is not known."""

    version: Literal[4, 6]
    destination: str | None
    port: int
    source: str | None = None
    interface: str | None = None

    def value(self, left: dict[str, Any]) -> Any:
        """The value that a match compares; None if it is not known."""
        if "meta" in left:
            known = {"l4proto": "udp", "iifname": self.interface, "iif": self.interface}
            known["nfproto"] = "ipv4" if self.version == 4 else "ipv6"
            known["protocol"] = "ip" if self.version == 4 else "ip6"
            return known.get(left["meta"]["key"])
        if "payload" in left:
            protocol, field = left["payload"].get("protocol"), left["payload"].get("field")
            if protocol in ("udp", "th") and field == "dport":
                return self.port
            if protocol in ("ip", "ip6"):
                known = {"protocol": "udp", "nexthdr": "udp", "daddr": self.destination, "saddr": self.source}
                return known.get(field)
        if "ct" in left and left["ct"].get("key") == "state":
            return "new"  # nobody answers, so there is no connection
        return None

    def excluded(self, left: dict[str, Any]) -> bool:
        """Whether a match is for another protocol, so that it never matches the packet."""
        protocol = left.get("payload", {}).get("protocol", "udp")
        return protocol in ("tcp", "icmp", "icmpv6", "sctp", "igmp", "arp", "ip6" if self.version == 4 else "ip")


@dataclass(frozen=True)
class Verdict:
    """What happens to a packet."""

    #: ``"continue"`` if no rule of the chain decides.
    what: Literal["accept", "drop", "continue"]
    sure: bool = True
    #: The rule that decides, roughly as nft writes it.
    rule: str = ""
    #: Packets that this rule has counted; None if it does not count.
    packets: int | None = None
    #: Whether later rules of the chain are skipped.
    final: bool = True


class Ruleset:
    """All rules of a firewall.

    Parameters
    ----------
    document
        The output of ``nft --json list ruleset``. libnftables-json(5) describes it.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        #: The base chains that incoming packets pass, in order.
        self.base: list[dict[str, Any]] = []
        self._rules: dict[ChainId, list[list[Any]]] = collections.defaultdict(list)
        self._sets: dict[ChainId, list[Any]] = {}
        for entry in document["nftables"]:
            ((kind, value),) = entry.items()
            if kind == "chain" and value.get("hook") in HOOKS and value["family"] in _FAMILIES:
                self.base.append(value)
            elif kind == "rule":
                self._rules[value["family"], value["table"], value["chain"]].append(value["expr"])
            elif kind == "set":
                self._sets[value["family"], value["table"], value["name"]] = value.get("elem", [])
        self.base.sort(key=lambda chain: (HOOKS.index(chain["hook"]), chain.get("prio", 0)))

    def judge(self, chain: dict[str, Any], packet: ExpectedPacket) -> Verdict:
        """Predict what a base chain does with a packet."""
        family = chain["family"]
        if family in ("ip", "iptables", "ip6") and (family == "ip6") != (packet.version == 6):
            return Verdict("accept")
        devices = chain.get("dev")
        if isinstance(devices, str):
            devices = [devices]
        if devices is not None and packet.interface is not None and packet.interface not in devices:
            return Verdict("accept")
        verdict = self._walk((family, chain["table"], chain["name"]), packet, _MOST_JUMPS)
        if verdict.what == "continue":
            policy = chain.get("policy", "accept")
            verdict = dataclasses.replace(verdict, what=policy, rule=f"policy {policy}")
        # Old versions of nft do not say which interface a chain is for.
        known = family != "netdev" or (devices is not None and packet.interface is not None)
        return dataclasses.replace(verdict, sure=verdict.sure and known)

    def _walk(self, chain: ChainId, packet: ExpectedPacket, jumps: int) -> Verdict:
        sure = True
        doubt: Verdict | None = None  # of the first rule that may drop the packet
        last = Verdict("continue")
        for expressions in self._rules[chain]:
            verdict = self._rule(expressions, packet, chain, jumps)
            if verdict is None:
                continue
            if verdict.sure and verdict.final:
                last = verdict
                break
            if not verdict.sure and verdict.what == "drop":
                doubt = doubt or verdict
            sure = sure and verdict.sure
        if last.what != "drop" and doubt is not None:
            return doubt
        return dataclasses.replace(last, sure=sure)

    def _rule(self, expressions: list[Any], packet: ExpectedPacket, chain: ChainId, jumps: int) -> Verdict | None:
        """Predict what a rule does with a packet; None if it does nothing."""
        sure, packets, verdict = True, None, None
        for kind, value in map(_parts, expressions):
            if kind == "match":
                matches = self._match(value, packet, chain)
                if matches is False:
                    return None
                sure = sure and matches is True
            elif kind == "counter" and isinstance(value, dict):
                packets = value.get("packets")
            elif kind in _CONDITIONS:
                sure = False
            elif kind in _VERDICTS:
                verdict = self._verdict(kind, value, packet, chain, jumps)
        if verdict is None:
            return None
        rule, packets = verdict.rule or _text(expressions), verdict.packets if verdict.rule else packets
        return dataclasses.replace(verdict, sure=sure and verdict.sure, rule=rule, packets=packets)

    def _verdict(self, kind: str, value: Any, packet: ExpectedPacket, chain: ChainId, jumps: int) -> Verdict | None:
        if kind == "vmap":
            return self._look_up(value, packet, chain, jumps)
        if kind in ("jump", "goto"):
            if not jumps:
                return Verdict("continue", sure=False)
            there = self._walk((chain[0], chain[1], value["target"]), packet, jumps - 1)
            # After a jump that decides nothing, the rules here go on.
            return dataclasses.replace(there, final=kind == "goto" or there.what != "continue")
        if kind == "return":
            return Verdict("continue")
        return Verdict("accept" if kind == "accept" else "drop")

    def _look_up(self, value: Any, packet: ExpectedPacket, chain: ChainId, jumps: int) -> Verdict | None:
        """Predict what a map from values to verdicts does with a packet."""
        key = packet.value(value["key"]) if isinstance(value["key"], dict) else None
        data = value["data"]
        if key is None or not isinstance(data, dict):
            return Verdict("drop" if "drop" in str(data) else "continue", sure=False)
        for element, verdict in data["set"]:
            if self._is(key, element, chain):
                return self._verdict(*_parts(verdict), packet, chain, jumps)
        return None

    def _match(self, match: dict[str, Any], packet: ExpectedPacket, chain: ChainId) -> bool | None:
        left = match["left"]
        if not isinstance(left, dict):
            return None
        if packet.excluded(left):
            return False
        value = packet.value(left)
        if value is None:
            return None
        found = self._is(value, match["right"], chain)
        if match["op"] in ("==", "in"):
            return found
        return None if found is None or match["op"] != "!=" else not found

    def _is(self, value: Any, wanted: Any, chain: ChainId) -> bool | None:
        """Whether a value matches what a rule names: a value, a range, a network or a set; None if it is not known."""
        if isinstance(wanted, str) and wanted.startswith("@"):
            wanted = self._sets.get((chain[0], chain[1], wanted[1:]))
        if isinstance(wanted, dict) and "set" in wanted:
            wanted = wanted["set"]
        if isinstance(wanted, list):
            return _any(self._is(value, element, chain) for element in wanted)
        if isinstance(wanted, dict):
            if "elem" in wanted:
                return self._is(value, wanted["elem"]["val"], chain)
            if "prefix" in wanted:
                network = ipaddress.ip_network(f"{wanted['prefix']['addr']}/{wanted['prefix']['len']}", strict=False)
                return ipaddress.ip_address(value) in network
            if "range" in wanted:
                first, last = wanted["range"]
                return bool(_order(first) <= _order(value) <= _order(last))
            return None
        if isinstance(wanted, str) and wanted.endswith("*"):
            return str(value).startswith(wanted[:-1])
        return None if wanted is None else str(value) == str(wanted)


def _any(answers: Iterable[bool | None]) -> bool | None:
    found = set(answers)
    return True if True in found else None if None in found else False


def _order(value: Any) -> int:
    return int(ipaddress.ip_address(value)) if isinstance(value, str) else int(value)


def _parts(expression: Any) -> tuple[str, Any]:
    if isinstance(expression, str):
        return expression, None
    ((kind, value),) = expression.items()
    return kind, value


def _text(expressions: list[Any]) -> str:
    """Write a rule roughly as nft does."""
    words = []
    for kind, value in map(_parts, expressions):
        if kind == "match":
            left = " ".join(str(part) for part in next(iter(value["left"].values())).values())
            operator = "" if value["op"] in ("==", "in") else f"{value['op']} "
            words.append(f"{left} {operator}{_right(value['right'])}")
        elif kind in _VERDICTS:
            words.append(f"{kind} {value['target']}" if isinstance(value, dict) and "target" in value else kind)
        elif kind != "counter":
            words.append(kind)
    return " ".join(words)


def _right(value: Any) -> str:
    if isinstance(value, dict):
        kind, inner = next(iter(value.items()))
        if kind == "set":
            return "{ " + ", ".join(map(_right, inner)) + " }"
        if kind == "range":
            return "-".join(map(str, inner))
        if kind == "prefix":
            return f"{inner['addr']}/{inner['len']}"
    return str(value)
