"""The checks of `speadrx doctor` on this machine as it is, and its command line."""

import gc
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from loopback import is_bound, needs_ipv6, wait_for
from speadrx import Layout, TimeAxis
from speadrx.doctor import Case, diagnose, listen
from speadrx.doctor.iptables import translate
from speadrx.doctor.nftables import ExpectedPacket, Ruleset
from speadrx.doctor.system import Unknown, parse_cpus, run
from speadrx.receive.readers import add_reader
from terminals import HEEDING, SPEADRX, environment, run_here
from terminals import run as run_command

pytest.importorskip("click")
pytest.importorskip("rich")

SEVERITIES = ["problem", "warning", "unknown", "ok"]


needs_ip = pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")


def by_check(findings):
    found = {}
    for finding in findings:
        found.setdefault(finding.check, []).append(finding)
    return found


def examine(*endpoints, **kwargs):
    return by_check(diagnose(Case(endpoints, **kwargs)))


@pytest.fixture
def traffic(udp_port):
    """Packets that keep coming to a port on loopback."""
    stop = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:

        def send():
            while not stop.wait(0.002):
                sock.sendto(b"packet", ("127.0.0.1", udp_port))

        thread = threading.Thread(target=send)
        thread.start()
        yield udp_port
        stop.set()
        thread.join()


def test_every_check_says_something(udp_port):
    findings = diagnose(Case((("127.0.0.1", udp_port), ("239.1.2.3", udp_port)), affinity=(0,)))
    assert {finding.severity for finding in findings} <= set(SEVERITIES)
    assert by_check(findings).keys() >= {
        *("arrival", "socket_buffer", "backlog", "multicast_route", "membership", "interface", "rp_filter", "mtu"),
        *("governor", "affinity", "huge_pages", "memory", "firewall", "drops", "spead2", "port", "clock"),
    }
    order = [SEVERITIES.index(finding.severity) for finding in findings]
    assert order == sorted(order)
    for finding in findings:
        assert finding.summary
        assert not any("\n" in command for command in finding.mend)


def test_packets_come(traffic):
    case = Case((("127.0.0.1", traffic),))
    heard = listen(case, 0.5)
    found = by_check(diagnose(replace(case, heard=heard)))
    (arrival,) = found["arrival"]
    assert arrival.severity == "ok"
    assert re.fullmatch(rf"127.0.0.1:{traffic}: [1-9]\d* packets in 0.5 s", arrival.summary)
    if heard.seen is not None:
        # Whatever is seen at the interface has come out of the socket.
        ((endpoint, sender, interface),) = heard.seen
        assert (endpoint, sender, interface) == (f"127.0.0.1:{traffic}", "127.0.0.1", "lo")
        assert heard.seen[endpoint, sender, interface] <= heard.came[endpoint, sender] + heard.own_drops


def test_more_endpoints_than_files(udp_port):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    case = Case(tuple((f"239.1.2.{i}", udp_port) for i in range(8)))
    gc.collect()  # so that garbage of other tests does not close files meanwhile
    used = set(map(int, os.listdir("/proc/self/fd")))
    free = itertools.islice((number for number in itertools.count() if number not in used), 5)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        heard = listen(case, 0.05)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    arrival = by_check(diagnose(replace(case, heard=heard)))["arrival"][-1]
    assert "cannot be received (Too many open files)" in arrival.summary
    assert "ulimit -n" in arrival.why


def test_link_local_sender():
    findings = json.loads(
        run_command("doctor", "[::1]:7148", "--sender", "fe80::1%lo", "--json", "--listen=0", "--buffer=4096")
    )
    assert not any("%" in finding["summary"] for finding in findings["findings"])


def test_nothing_comes(udp_port):
    case = Case((("127.0.0.1", udp_port),))
    (arrival,) = by_check(diagnose(replace(case, heard=listen(case, 0.05))))["arrival"]
    assert arrival.severity == "problem"
    assert arrival.summary == f"127.0.0.1:{udp_port}: nothing in 0.05 s"


def test_port_in_use(stream, udp_port):
    add_reader(stream, src=[("127.0.0.1", udp_port)])
    case = Case((("127.0.0.1", udp_port),))
    case = replace(case, heard=listen(case, 0.05))
    found = by_check(diagnose(case))
    (port,) = found["port"]
    assert port.severity == "warning"
    assert f"(process {os.getpid()}), which has lost 0 packets" in port.summary
    (arrival,) = found["arrival"]
    assert arrival.severity == "unknown"
    assert "in use" in arrival.summary


@needs_ip
def test_process_that_is_too_slow(traffic):
    """A socket that nobody reads: it is named, and no setting is proposed that is less than what is set."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        slow.bind(("127.0.0.1", traffic))
        case = Case((("127.0.0.1", traffic),), buffer=4096)
        found = by_check(diagnose(replace(case, heard=listen(case, 0.3))))
    (port,) = found["port"]
    assert port.severity == "problem"
    assert re.search(rf"\(process {os.getpid()}\) lost [1-9]\d* packets? of 127.0.0.1:{traffic} in 0.3 s", port.summary)
    (drops,) = (finding for finding in found["drops"] if "Udp.RcvbufErrors" in finding.summary)
    assert drops.severity == "warning"
    assert drops.mend == ()


def test_endpoints_alike_are_told_together(ports):
    case = Case(tuple(("127.0.0.1", port) for port in ports))
    (arrival,) = by_check(diagnose(replace(case, heard=listen(case, 0.05))))["arrival"]
    assert arrival.summary == ", ".join(f"127.0.0.1:{port}" for port in ports) + ": nothing in 0.05 s"


@needs_ip
def test_interface_that_is_none():
    (finding,) = (f for f in examine(("239.1.2.3", 7148), interface="203.0.113.7")["interface"] if f.severity != "ok")
    assert finding.severity == "problem"
    assert "no interface has the name or address 203.0.113.7 (there are: lo 127.0.0.1" in finding.summary


@needs_ip
@needs_ipv6
def test_group_of_one_link():
    """It is told apart from other reasons for which the kernel says Invalid argument, and what mends it."""
    case = Case((("ff12::1", 7148),))
    found = by_check(diagnose(replace(case, heard=listen(case, 0.05))))
    (finding,) = [finding for finding in found["interface"] if finding.severity == "problem"]
    assert finding.summary.startswith("[ff12::1]:7148 is a different group on each interface: give an interface")
    assert all(command.startswith("speadrx doctor '[ff12::1]:7148' --interface ") for command in finding.mend)
    for case in (Case((("ff12::1", 7148),), "lo"), Case((("ff12::1%lo", 7148),))):
        assert [finding.summary.partition(" ")[0] for finding in diagnose(case) if finding.check == "interface"] == [
            "lo"
        ]


@needs_ip
def test_unicast_address_of_another_machine():
    (finding,) = examine(("203.0.113.7", 7148))["interface"]
    assert finding.severity == "problem"
    assert "203.0.113.7 is not an address of this machine" in finding.summary


@needs_ip
@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.9", "::1"])
def test_loopback_is_down(address):
    """As in a new network namespace. Then it has no address either, which is not what to mend."""
    case = Case(((address, 7148),))
    lo = next(link for link in case.links.values() if link.loopback)
    down = replace(lo, flags=type(lo.flags)(flag for flag in lo.flags if flag != "UP"), addresses=())
    case.__dict__["links"] = {lo.name: down}
    (finding,) = by_check(diagnose(case))["interface"]
    assert (finding.severity, finding.mend) == ("problem", (f"ip link set dev {lo.name} up",))
    assert finding.summary == f"{lo.name}, the loopback interface, is down"


@needs_ip
def test_unicast_at_another_interface():
    other = next((link for link in Case().links.values() if link.ipv4 and not link.loopback), None)
    if other is None:
        pytest.skip("needs an interface other than loopback")
    findings = examine(("127.0.0.1", 7148), interface=other.ipv4)["interface"]
    assert any(
        f"127.0.0.1:7148 is not an address of the interface {other.ipv4}" in finding.summary for finding in findings
    )


@needs_ip
def test_mtu_of_loopback():
    findings = [examine(("127.0.0.1", 7148), packet_size=size)["mtu"][0] for size in (1, 65507)]
    assert [finding.severity for finding in findings] == ["ok", "ok"]


def test_processors_that_are_not_there():
    beyond = max(os.sched_getaffinity(0)) + 1000
    (finding, *_) = examine(affinity=(beyond,))["affinity"]
    assert finding.severity == "problem"
    assert f"this process may not use processors {beyond} " in finding.summary


def test_threads_share_a_processor():
    cpu = min(os.sched_getaffinity(0))
    (finding, *_) = examine(affinity=(cpu, cpu))["affinity"]
    assert finding.severity == "warning"


def test_memory():
    small = Layout(heap_bytes=64, time=TimeAxis(item=0x1600, step=1, batches=1))
    large = Layout(heap_bytes=2**40, time=TimeAxis(item=0x1600, step=1, batches=1))
    severities = [examine(layout=layout)["memory"][0].severity for layout in (small, large)]
    assert severities == ["ok", "problem"]


def test_socket_buffer_is_split():
    """What is granted is what the kernel says, and each endpoint asks for its share."""
    (finding,) = examine(("127.0.0.1", 7148), ("127.0.0.1", 7149), buffer=8192)["socket_buffer"]
    assert finding.severity == "ok"
    assert finding.summary.startswith("a socket gets 4096 bytes")
    (finding,) = examine(buffer=0)["socket_buffer"]
    assert "the system's default" in finding.summary


def test_program_that_is_not_there():
    with pytest.raises(Unknown, match=r"no-such-program is not installed \(Debian: apt-get install a-package\)"):
        run("a-package", "no-such-program")
    with pytest.raises(Unknown, match="exit code 1"):
        run("coreutils", "false")


@pytest.mark.parametrize("text", ["x", "1-", "1,,2", "0-99999999999", "5-2"])
def test_bad_list_of_processors(text):
    with pytest.raises(ValueError, match=r"invalid literal|no processor 99999999999|5-2 ends before it begins"):
        parse_cpus(text)


PACKET = ExpectedPacket(version=4, destination="239.1.2.3", port=7148, source="10.0.0.1", interface="in")
DROP, ACCEPT, COUNT = {"drop": None}, {"accept": None}, {"counter": {"packets": 5, "bytes": 200}}


def match(protocol, field, right, op="=="):
    left = {"meta": {"key": field}} if protocol == "meta" else {"payload": {"protocol": protocol, "field": field}}
    return {"match": {"op": op, "left": left, "right": right}}


def test_arp_is_another_matter():
    chain = {"family": "arp", "table": "t", "name": "input", "hook": "input", "prio": 0, "policy": "drop"}
    assert Ruleset({"nftables": [{"chain": chain}]}).base == []


def judge(*rules, packet=PACKET, policy="accept", chain="input", sets=(), family="inet", **others):
    """What rules of an input chain make of a packet, and whether that is sure."""
    entries = [{"metainfo": {"json_schema_version": 1}}]
    base = {"family": family, "table": "t", "name": "input", "hook": "input", "prio": 0, "policy": policy}
    entries.append({"chain": base | others})
    entries += [{"set": {"family": family, "table": "t", "name": name, "elem": elem}} for name, elem in sets]
    for rule in rules:
        name, expressions = rule if isinstance(rule, tuple) else (chain, rule)
        entries.append({"rule": {"family": family, "table": "t", "chain": name, "expr": expressions}})
    parsed = Ruleset({"nftables": entries})
    (found,) = parsed.base
    verdict = parsed.judge(found, packet)
    return verdict.what, verdict.sure


JUDGED = {
    "nothing": ([], ("accept", True)),
    "port": ([[match("udp", "dport", 7148), COUNT, DROP]], ("drop", True)),
    "another port": ([[match("udp", "dport", 7149), DROP]], ("accept", True)),
    "not that port": ([[match("udp", "dport", 7149, "!="), DROP]], ("drop", True)),
    "ports": ([[match("udp", "dport", {"set": [1, {"range": [7000, 7200]}]}), DROP]], ("drop", True)),
    "other ports": ([[match("udp", "dport", {"set": [1, {"range": [7000, 7147]}]}), DROP]], ("accept", True)),
    "tcp": ([[match("tcp", "dport", 7148), DROP]], ("accept", True)),
    "protocol": ([[match("meta", "l4proto", {"set": ["tcp", "udp"]}), {"reject": None}]], ("drop", True)),
    "interface": ([[match("meta", "iifname", "i*"), DROP]], ("drop", True)),
    "another interface": ([[match("meta", "iifname", "lo"), DROP]], ("accept", True)),
    "network": ([[match("ip", "daddr", {"prefix": {"addr": "239.0.0.0", "len": 8}}), DROP]], ("drop", True)),
    "another network": ([[match("ip", "saddr", {"prefix": {"addr": "10.1.0.0", "len": 16}}), DROP]], ("accept", True)),
    "IPv6": ([[match("ip6", "daddr", "ff12::1"), DROP]], ("accept", True)),
    "accepted before": ([[match("udp", "dport", 7148), ACCEPT], [DROP]], ("accept", True)),
    "perhaps accepted before": ([[{"limit": {"rate": 1}}, ACCEPT], [DROP]], ("drop", False)),
    "perhaps dropped before": ([[{"limit": {"rate": 1}}, DROP], [ACCEPT]], ("drop", False)),
    "a mark that is not known": ([[match("meta", "mark", 1), DROP]], ("drop", False)),
    "jump": ([[{"jump": {"target": "more"}}], [ACCEPT], ("more", [DROP])], ("drop", True)),
    "jump and return": ([[{"jump": {"target": "more"}}], [ACCEPT], ("more", [{"return": None}])], ("accept", True)),
    "jump and go on": ([[{"jump": {"target": "more"}}], [DROP], ("more", [COUNT])], ("drop", True)),
    "goto does not come back": ([[{"goto": {"target": "more"}}], [DROP], ("more", [COUNT])], ("accept", True)),
    "a circle": ([[{"jump": {"target": "input"}}]], ("accept", False)),
}


@pytest.mark.parametrize("case", JUDGED)
def test_firewall_rules(case):
    rules, expected = JUDGED[case]
    assert judge(*rules) == expected


def test_firewall_sets_and_maps():
    bad = [("bad", [5, {"range": [7000, 8000]}])]
    assert judge([match("udp", "dport", "@bad"), DROP], sets=bad) == ("drop", True)
    assert judge([match("udp", "dport", "@unknown"), DROP]) == ("drop", False)
    states = {"set": [["established", ACCEPT], ["new", DROP]]}
    assert judge([{"vmap": {"key": {"ct": {"key": "state"}}, "data": states}}]) == ("drop", True)
    marks = {"set": [[1, DROP]]}
    assert judge([{"vmap": {"key": {"meta": {"key": "mark"}}, "data": marks}}]) == ("drop", False)


def test_firewall_policy_and_devices():
    assert judge([match("tcp", "dport", 22), ACCEPT], policy="drop") == ("drop", True)
    assert judge([DROP], family="ip6") == ("accept", True)
    assert judge([DROP], family="netdev", dev="in") == ("drop", True)
    assert judge([DROP], family="netdev", dev=["other"]) == ("accept", True)
    assert judge([DROP], family="netdev") == ("drop", False)
    assert judge([match("ip", "saddr", "10.0.0.1"), DROP], packet=replace(PACKET, source=None)) == ("drop", False)


IPTABLES = """\
# Generated by iptables-save v1.8.9
*filter
:INPUT DROP [3:252]
:FORWARD ACCEPT [0:0]
:ours - [0:0]
[10:840] -A INPUT -i lo -j ACCEPT
[0:0] -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[2:80] -A INPUT ! -s 10.0.0.0/8 -p udp -m comment --comment "all of it" -j DROP
[7:588] -A INPUT -p udp -m udp --dport 7000:8000 -j ours
[0:0] -A ours -d 239.0.0.0/8 -m multiport --dports 1,7148 -j LINE
COMMIT
"""


@pytest.mark.parametrize(
    ("target", "expected"),
    [("ACCEPT", "accept"), ("DROP", "drop"), ("REJECT --reject-with icmp-port-unreachable", "drop"), ("LOG", "drop")],
)
def test_iptables(target, expected):
    rules = Ruleset(translate(IPTABLES.replace("LINE", target)))
    (chain,) = rules.base
    verdict = rules.judge(chain, PACKET)
    assert (verdict.what, verdict.sure) == (expected, True)
    assert rules.judge(chain, replace(PACKET, source="192.0.2.1")).packets == 2


def test_iptables_with_what_is_not_known():
    text = IPTABLES.replace("LINE", "ACCEPT").replace("-m multiport --dports 1,7148", "-m statistic --mode random")
    rules = Ruleset(translate(text))
    verdict = rules.judge(rules.base[0], PACKET)
    assert (verdict.what, verdict.sure) == ("drop", False)


def test_json(traffic):
    report = json.loads(run_command("doctor", f"127.0.0.1:{traffic}", "--listen", "0.3", "--json", "--buffer", "4096"))
    findings = report["findings"]
    assert all(finding.keys() == {"check", "severity", "summary", "why", "mend"} for finding in findings)
    assert [finding["severity"] for finding in findings if finding["check"] == "arrival"] == ["ok"]


def test_commands_are_not_wrapped():
    """In a narrow terminal, too, each command is one line that can be copied."""
    args = ["doctor", "--buffer", str(2**30 - 1), "--affinity", str(max(os.sched_getaffinity(0)) + 1000)]
    result = subprocess.run(
        [*SPEADRX, *args], capture_output=True, text=True, check=False, env=environment(COLUMNS="30"), timeout=60
    )
    assert result.returncode == 1
    assert f"    sysctl -w net.core.rmem_max={2**30 - 1}" in result.stdout.splitlines()
    assert "\x1b" not in result.stdout


def test_only_all_shows_what_is_well():
    assert "ok " not in run_command("doctor", "--buffer", "4096")
    assert "ok socket_buffer: a socket gets 4096 bytes" in run_command("doctor", "--buffer", "4096", "--all")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["239.1.2.3"], "'239.1.2.3' has no port: write 239.1.2.3:7148"),
        (["no-such-host.invalid:7148"], "host 'no-such-host.invalid' cannot be resolved"),
        (["--sender", "somebody"], "somebody: wanted IP addresses"),
        (["--affinity", "2-x"], "'2-x': wanted processors"),
        (["--affinity", "5-2"], "'5-2': wanted processors"),
        (["--affinity", "1,,2"], "'1,,2': wanted processors"),
        (["--affinity", ""], "'': wanted processors"),
        (["--listen", "-1"], "-1 must be at least 0"),
        (["--listen", "nan"], "'nan' is not a time"),
        (["--packet-size", "70000"], "70000 must be at least 1"),
        (["--set", "heap_bytes=1"], "--set changes a layout"),
        (["--layout", "no-such-layout"], "no-such-layout"),
    ],
)
def test_wrong_usage(args, complaint):
    assert complaint in " ".join(run_here("doctor", *args, code=2).split())


def test_help_says_what_exit_codes_mean():
    text = run_command("doctor", "--help")
    assert "Example:\n" in text
    assert "  1  problems\n" in text


def test_interrupt_ends_listening(udp_port):
    """It says what it has found until then."""
    command = [sys.executable, "-c", HEEDING, *SPEADRX, "doctor", f"127.0.0.1:{udp_port}", "--listen", "3600"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment()) as process:
        try:
            wait_for(lambda: is_bound(udp_port))
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    seconds = float(re.search(r"nothing in ([\d.]+) s", " ".join(output.split()))[1])
    assert seconds < 60  # as long as it has listened
    assert process.returncode == 1
    assert errors == ""
