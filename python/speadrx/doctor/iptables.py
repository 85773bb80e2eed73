"""Translate rules of iptables to the same rules of nftables.

The program iptables-restore-translate does this too, but it drops the counters, and its text would have to be loaded
into a kernel before nft could write it as JSON.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

_HOOKS = {"PREROUTING": "prerouting", "INPUT": "input"}
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0}  # as in the kernel; other tables drop nothing
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "reject", "RETURN": "return"}
#: Options that select no packets, and how many words follow each.
_SILENT = {"-m": 1, "--comment": 1, "--reject-with": 1}
_LEFT = {
    "-p": {"meta": {"key": "l4proto"}},
    "-i": {"meta": {"key": "iifname"}},
    "-s": {"payload": {"protocol": "ip", "field": "saddr"}},
    "-d": {"payload": {"protocol": "ip", "field": "daddr"}},
    "--dport": {"payload": {"protocol": "th", "field": "dport"}},
    "--dports": {"payload": {"protocol": "th", "field": "dport"}},
    "--ctstate": {"ct": {"key": "state"}},
    "--state": {"ct": {"key": "state"}},
}


def translate(text: str, family: str = "ip") -> dict[str, Any]:
    r"""Translate the output of ``iptables-save --counters`` to that of ``nft --json list ruleset``.

    An option that is not understood becomes a condition that may hold or not. All chains get the family.

    Examples
    --------
    >>> text = "*filter\n:INPUT ACCEPT [0:0]\n[5:200] -A INPUT -p udp -m udp --dport 7148 -j DROP\nCOMMIT"
    >>> translate(text)["nftables"][1]["rule"]["expr"][-1]
    {'drop': None}
    """
    entries: list[dict[str, Any]] = []
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif table not in _PRIORITIES:
            continue
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            chain: dict[str, Any] = {"family": family, "table": table, "name": name}
            if name in _HOOKS:
                chain |= {"hook": _HOOKS[name], "prio": _PRIORITIES[table], "policy": policy.lower()}
            entries.append({"chain": chain})
        elif match := re.fullmatch(r"\[(\d+):\d+\] -A (\S+) ?(.*)", line):
            packets, name, rule = match.groups()
            expressions = [{"counter": {"packets": int(packets)}}, *_expressions(shlex.split(rule))]
            entries.append({"rule": {"family": family, "table": table, "chain": name, "expr": expressions}})
    return {"nftables": entries}


def _expressions(words: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    target: dict[str, Any] | None = None
    operator = "=="
    while words:
        option = words.pop(0)
        if option == "!":
            operator = "!="
            continue
        if option in ("-j", "-g"):
            name = words.pop(0)
            jump = {"jump" if option == "-j" else "goto": {"target": name}}
            # These other targets of the kernel let packets go on. All other names are chains.
            target = {_VERDICTS[name]: None} if name in _VERDICTS else None if name in _PASSING else jump
        elif option in _LEFT:
            right = _right(option, words.pop(0))
            found.append({"match": {"op": operator, "left": _LEFT[option], "right": right}})
        elif option in _SILENT:
            del words[: _SILENT[option]]
        elif option.startswith("-"):
            found.append({"xt": option})
        operator = "=="
    return [*found, *([target] if target is not None else [])]


_PASSING = ("LOG", "NFLOG", "MARK", "CONNMARK", "CT", "NOTRACK", "TRACE", "SET", "TOS", "DSCP", "TTL", "CHECKSUM")


def _right(option: str, value: str) -> Any:
    if option in ("-s", "-d"):
        address, _, bits = value.partition("/")
        return {"prefix": {"addr": address, "len": bits or 32}}
    if option == "-i" and value.endswith("+"):
        return value[:-1] + "*"
    if option in ("--dport", "--dports"):
        ports = [part.partition(":") for part in value.split(",")]
        return {"set": [{"range": [int(first), int(last or first)]} for first, _, last in ports]}
    if option in ("--ctstate", "--state"):
        return {"set": value.lower().split(",")}
    return value
