"""A fleet on four machines: each worker in a network namespace of its own, all of them on a bridge."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest

pytest.importorskip("distributed")
pytest.importorskip("xarray")
pytest.importorskip("zarr")

import speadrx
from fleets import ANTENNAS, AT_ONCE, LAYOUT, WINDOW, packet, record_by_one_receiver, scraped_sum
from loopback import wait_for
from network import Namespace, leave_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HEAD = "10.9.0.1"
MACHINES = [f"10.9.0.{10 + i}" for i in range(ANTENNAS)]
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


def test_four_machines(machines, start, tmp_path):
    """Each joins its own group, and what they record together is what one receiver of the same packets records."""
    head, others = machines
    (tmp_path / "array.toml").write_text(LAYOUT.to_toml(), "utf-8")
    (tmp_path / "plan.toml").write_text(
        f'layout = "array.toml"\nendpoints = ["{GROUPS[0]}+{ANTENNAS - 1}:{PORT}"]\ndeal = "antenna"\n'
        f'record = "{tmp_path}/night.zarr"\nreport_seconds = 0.05\n'
        f'[receiver]\ninterface = "in"\nwindow = {WINDOW}\nmax_jump = 10000\nbuffer = 1048576\nchunks = 64\n',
        "utf-8",
    )
    scheduler = f"tcp://{HEAD}:{SCHEDULER}"
    start(head, "distributed.cli.dask_scheduler", "--host", HEAD, "--port", str(SCHEDULER), "--no-dashboard")
    for one, address in zip(others, MACHINES, strict=True):
        options = ("--host", address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0")
        start(one, "distributed.cli.dask_worker", scheduler, *options, "--resources", "NIC=1")
    fleet = start(
        head,
        *("speadrx.cli", "fleet", "plan.toml", "--scheduler", scheduler, "--json", "--metrics-port", str(METRICS)),
    )

    def total(name):
        assert fleet.poll() is None, fleet.communicate()
        return scraped(head, name)

    wait_for(lambda: total("speadrx_fleet_share_receives") == ANTENNAS, 150)
    assert sorted(map(sorted, map(joined, others))) == [[group] for group in GROUPS]
    with head.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HEAD))
        for first in range(0, BATCHES_SENT, AT_ONCE):
            for batch in range(first, first + AT_ONCE):
                for antenna, group in enumerate(GROUPS):
                    sender.sendto(packet(batch, antenna), (group, PORT))
            wait_for(lambda n=(first + AT_ONCE) * ANTENNAS: total("speadrx_heaps_placed_total") == n)
    fleet.terminate()
    output, _ = fleet.communicate(timeout=120)
    assert fleet.returncode == 0
    account = json.loads(output)
    assert (account["present"], account["missing"], account["residual"]) == (BATCHES_SENT * ANTENNAS, 0, 0)
    assert account["gaps"] == account["rejected"] == {}
    ours = speadrx.open(tmp_path / "night.zarr")
    theirs = record_by_one_receiver(tmp_path / "whole.zarr", range(BATCHES_SENT))
    for name in theirs.variables:
        assert ours[name].values.tobytes() == theirs[name].values.tobytes()
    assert ours.attrs["fleet"]["present"] == account["present"]
