"""A fleet on four machines, and a spare one: each worker in a network namespace of its own, all of them on a bridge."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("distributed")
pytest.importorskip("xarray")
pytest.importorskip("zarr")

import speadrx
from fleets import ANTENNAS, AT_ONCE, BATCHES, LAYOUT, WINDOW, packet, record_by_one_receiver, scraped_sum
from loopback import wait_for
from network import Namespace, leave_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HEAD = "10.9.0.1"
MACHINES = [f"10.9.0.{10 + i}" for i in range(ANTENNAS + 1)]
#: No other test has them: they are in namespaces.
PORT, SCHEDULER, METRICS = 7148, 8786, 9400
GROUPS = [f"239.9.0.{1 + antenna}" for antenna in range(ANTENNAS)]
BATCHES_SENT = 128


@pytest.fixture
def machines():
    """The head, which has the bridge, and the others."""
    if os.geteuid() or shutil.which("ip") is None:
        leave_out("network namespaces can only be made by root, with ip (Debian: apt-get install iproute2)")
    with contextlib.ExitStack() as stack:

        def namespace():
            made = Namespace()
            stack.callback(made.close)
            made.run("ip", "link", "set", "lo", "up")
            return made

        try:
            head = namespace()
            # Without snooping, as a plain switch: groups go everywhere, and only who has joined them takes them.
            head.run("ip", "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
            head.run("ip", "address", "add", f"{HEAD}/24", "dev", "bridge")
            head.run("ip", "link", "set", "bridge", "up")
            others = []
            for i, address in enumerate(MACHINES):
                one = namespace()
                one.run(*("ip", "link", "add", "in", "type", "veth", "peer", "name", f"port{i}", "netns", head.path))
                one.run("ip", "address", "add", f"{address}/24", "dev", "in")
                one.run("ip", "link", "set", "in", "up")
                head.run("ip", "link", "set", f"port{i}", "master", "bridge", "up")
                others.append(one)
        except OSError as exc:
            pytest.skip(f"this machine cannot have the network that the test needs: {exc}")
        yield head, others


@pytest.fixture
def start(tmp_path):
    """Start programs in namespaces, and end those that are left after the test."""
    with contextlib.ExitStack() as stack:

        def end(process):
            if process.poll() is None:
                process.kill()
            process.communicate()

        def start(namespace, *arguments):
            with namespace.entered():
                process = subprocess.Popen(
                    [sys.executable, "-m", *arguments],
                    cwd=tmp_path,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            stack.callback(end, process)
            return process

        yield start


def scraped(head, name):
    with head.entered():
        return scraped_sum(METRICS, name)


def joined(namespace):
    """The groups of the array that are joined in a namespace."""
    with namespace.entered():
        lines = pathlib.Path("/proc/thread-self/net/igmp").read_text("ascii").splitlines()
    words = [line.split()[0] for line in lines if re.match(r"\t+[0-9A-F]{8}\b", line)]
    return {socket.inet_ntoa(int(word, 16).to_bytes(4, sys.byteorder)) for word in words} & set(GROUPS)


class Running:
    """A fleet whose workers are on machines, and a sender beside the scheduler."""

    def __init__(self, head, others, start, folder, plan=""):
        self.head = head
        write_plan(folder, plan)
        scheduler = f"tcp://{HEAD}:{SCHEDULER}"
        start(head, "distributed.cli.dask_scheduler", "--host", HEAD, "--port", str(SCHEDULER), "--no-dashboard")
        for one, address in zip(others, MACHINES, strict=False):
            options = ("--host", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
            start(one, "distributed.cli.dask_worker", scheduler, *options, "--resources", "NIC=1")
        words = ("plan.toml", "--scheduler", scheduler, "--json", "--metrics-port", str(METRICS))
        self.process = start(head, "speadrx.cli", "fleet", *words)
        wait_for(lambda: self.total("speadrx_fleet_share_receives") == ANTENNAS, 150)
        with head.entered():
            self.sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HEAD))

    def total(self, name):
        assert self.process.poll() is None, self.process.communicate()
        return scraped(self.head, name)

    def send(self, batches, receiving=ANTENNAS):
        """Send to all groups, at the pace of so many shares that receive."""
        for i in range(0, len(batches), AT_ONCE):
            part = batches[i : i + AT_ONCE]
            wanted = self.total("speadrx_heaps_placed_total") + len(part) * receiving
            for batch in part:
                for antenna, group in enumerate(GROUPS):
                    self.sender.sendto(packet(batch, antenna), (group, PORT))
            wait_for(lambda n=wanted: self.total("speadrx_heaps_placed_total") >= n)

    def end(self):
        """End it, and return its account."""
        self.sender.close()
        self.process.terminate()
        output, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0
        return json.loads(output)


def write_plan(tmp_path, more):
    (tmp_path / "array.toml").write_text(LAYOUT.to_toml(), "utf-8")
    (tmp_path / "plan.toml").write_text(
        f'layout = "array.toml"\nendpoints = ["{GROUPS[0]}+{ANTENNAS - 1}:{PORT}"]\ndeal = "antenna"\n'
        f"report_seconds = 0.05\n{more}\n"
        f'[receiver]\ninterface = "in"\nwindow = {WINDOW}\nmax_jump = 10000\nbuffer = 1048576\nchunks = 64\n',
        "utf-8",
    )


def test_four_machines(machines, start, tmp_path):
    """Each joins its own group, and what they record together is what one receiver of the same packets records."""
    head, others = machines
    others = others[:ANTENNAS]
    fleet = Running(head, others, start, tmp_path, f'record = "{tmp_path}/night.zarr"')
    assert sorted(map(sorted, map(joined, others))) == [[group] for group in GROUPS]
    fleet.send(range(BATCHES_SENT))
    account = fleet.end()
    assert (account["present"], account["missing"], account["residual"]) == (BATCHES_SENT * ANTENNAS, 0, 0)
    assert account["gaps"] == account["rejected"] == {}
    ours = speadrx.open(tmp_path / "night.zarr")
    theirs = record_by_one_receiver(tmp_path / "whole.zarr", range(BATCHES_SENT))
    for name in theirs.variables:
        assert ours[name].values.tobytes() == theirs[name].values.tobytes()
    assert ours.attrs["fleet"]["present"] == account["present"]


def test_the_network_of_one_machine_is_cut(machines, start, tmp_path):
    """Its share goes on elsewhere, and its gap is what was sent meanwhile; plugged in again, its receiver ends."""
    head, others = machines
    fleet = Running(head, others, start, tmp_path)
    fleet.send(range(BATCHES_SENT))
    # All chunks that have left the window are reported: the gap begins there.
    wait_for(lambda: fleet.total("speadrx_heaps_present_total") == (BATCHES_SENT - WINDOW * BATCHES) * ANTENNAS)
    victim = next(i for i, one in enumerate(others) if joined(one) == {GROUPS[1]})
    head.run("ip", "link", "set", f"port{victim}", "down")
    cut = time.monotonic()
    fleet.send(range(BATCHES_SENT, BATCHES_SENT + AT_ONCE), ANTENNAS - 1)
    wait_for(lambda: fleet.total("speadrx_fleet_incarnations_total") == ANTENNAS + 1, 100)
    wait_for(lambda: fleet.total("speadrx_fleet_share_receives") == ANTENNAS, 100)
    print(f"The share is back {time.monotonic() - cut:.1f} s after the cut")
    # Nobody else has moved.
    (spare,) = (one for i, one in enumerate(others) if i != victim and joined(one) == {GROUPS[1]})
    begin = BATCHES_SENT + AT_ONCE
    fleet.send(range(begin, begin + BATCHES_SENT))
    assert joined(others[victim]) == joined(spare) == {GROUPS[1]}
    assert not fleet.total("speadrx_fleet_refused_reports_total")
    head.run("ip", "link", "set", f"port{victim}", "up")
    wait_for(lambda: fleet.total("speadrx_fleet_refused_reports_total"), 100)
    wait_for(lambda: not joined(others[victim]), 100)
    sent = begin + 2 * BATCHES_SENT
    fleet.send(range(begin + BATCHES_SENT, sent))
    account = fleet.end()
    shares = account["shares"]
    share = shares.pop(1)
    assert {(one["incarnation"], one["present"], one["missing"], str(one["gaps"])) for one in shares} == {
        (1, sent, 0, "{}")
    }
    assert (share["incarnation"], list(share["gaps"]), account["residual"]) == (2, ["worker_silent"], 0)
    assert share["present"] + share["missing"] + share["gaps"]["worker_silent"] == sent
    # What was sent meanwhile, and what its window had.
    assert share["gaps"]["worker_silent"] <= AT_ONCE + WINDOW * BATCHES
