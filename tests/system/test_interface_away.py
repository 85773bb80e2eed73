"""A multicast receiver whose interface goes away and comes back: it receives again, and says what was."""

import contextlib
import json
import logging
import os
import shutil
import socket

import pytest

import speadrx
from handmade import SMALL, encode, small_heap
from loopback import wait_for
from network import Namespace, leave_out

pytestmark = pytest.mark.fault(35)

PORT = 7148
GROUP, GROUP_V6 = "239.9.9.9", "ff15::9:9"


class Link:
    """A sender and a receiver in namespaces, and a link between them that can be taken away."""

    def __init__(self, stack):
        self.sender, self.receiver = Namespace(), Namespace()
        stack.callback(self.sender.close)
        stack.callback(self.receiver.close)
        # Where the kernel would join if it had the choice once more.
        self.receiver.run("ip", "link", "add", "other", "type", "veth", "peer", "name", "peer")
        self.receiver.run("ip", "link", "set", "peer", "up")
        self.receiver.run("ip", "address", "add", "10.8.0.2/24", "dev", "other")
        self.receiver.run("ip", "link", "set", "other", "up")
        self.receiver.run("ip", "route", "add", "default", "dev", "other", "metric", "1000")
        # Forgotten memberships would soon be too many.
        self.receiver.write("/proc/sys/net/ipv4/igmp_max_memberships", "2")
        self.make()

    def make(self, *, complete=True):
        peer = ("type", "veth", "peer", "name", "in", "netns", self.receiver.path)
        self.sender.run("ip", "link", "add", "out", *peer)
        for end, name in ((self.sender, "out"), (self.receiver, "in")):
            end.run("ip", "link", "set", name, "addrgenmode", "none")
        self.sender.run("ip", "address", "add", "10.9.0.1/24", "dev", "out")
        self.sender.run("ip", "address", "add", "fe80::1/64", "dev", "out", "nodad")
        self.sender.run("ip", "link", "set", "out", "up")
        self.sender.run("ip", "route", "add", "224.0.0.0/4", "dev", "out")
        if complete:
            self.complete()

    def complete(self):
        self.receiver.run("ip", "address", "add", "10.9.0.2/24", "dev", "in")
        self.receiver.run("ip", "address", "add", "fe80::2/64", "dev", "in", "nodad")
        self.receiver.run("ip", "link", "set", "in", "up")
        self.receiver.run("ip", "route", "add", "224.0.0.0/4", "dev", "in")

    def is_up(self):
        """Whether packets get through: it takes a while until both ends are up."""
        ends = ((self.sender, "out"), (self.receiver, "in"))
        return all(json.loads(end.run("ip", "-j", "link", "show", name))[0]["operstate"] == "UP" for end, name in ends)

    def groups(self, name):
        """The groups that the kernel has joined on an interface of the receiver."""
        listed = json.loads(self.receiver.run("ip", "-j", "maddress", "show", "dev", name))
        return {entry["address"] for one in listed for entry in one["maddr"] if "address" in entry}


@pytest.fixture
def link():
    if os.geteuid():
        leave_out("network namespaces can only be made by root")
    if shutil.which("ip") is None:
        leave_out("there is no ip (Debian: apt-get install iproute2)")
    with contextlib.ExitStack() as stack:
        try:
            made = Link(stack)
        except OSError as exc:
            leave_out(f"this machine cannot have the network that the test needs: {exc}")
        yield made


def anew(link):
    link.receiver.run("ip", "link", "delete", "in")
    link.make()


def anew_and_bare_at_first(link):
    link.receiver.run("ip", "link", "delete", "in")
    wait_for(lambda: any("has gone away" in text for text in link.said()))
    link.make(complete=False)
    link.complete()


def into_another_namespace(link):
    link.receiver.run("ip", "link", "set", "in", "netns", link.sender.path)
    wait_for(lambda: any("has gone away" in text for text in link.said()))
    link.sender.run("ip", "link", "set", "in", "netns", link.receiver.path)
    link.complete()


def down_and_up(link):
    link.receiver.run("ip", "link", "set", "in", "down")
    link.receiver.run("ip", "link", "set", "in", "up")
    link.receiver.run("ip", "route", "replace", "224.0.0.0/4", "dev", "in")
    link.receiver.run("ip", "address", "replace", "fe80::2/64", "dev", "in", "nodad")


@pytest.mark.parametrize("away", [anew, anew_and_bare_at_first, into_another_namespace, down_and_up])
@pytest.mark.parametrize(
    ("group", "interface"), [(GROUP, "10.9.0.2"), (GROUP, None), (GROUP_V6, "in")], ids=["address", "route", "ipv6"]
)
def test_interface_away(link, caplog, away, group, interface):
    caplog.set_level(logging.WARNING, "speadrx")
    link.said = lambda: [record.getMessage() for record in caplog.records if record.name == "speadrx.receive.groups"]
    with contextlib.ExitStack() as stack:
        with link.receiver.entered():
            receiver = speadrx.Receiver(SMALL, [(group, PORT)], interface=interface, window=8)
            receiver.start()
        stack.callback(receiver.stop)
        for times in range(3):
            if times:
                caplog.clear()
                away(link)
                if away is not down_and_up:
                    wait_for(lambda: any("is joined again" in text for text in link.said()))
                    assert any(text.startswith("interface in has gone away") for text in link.said())
            wait_for(lambda: link.is_up() and group in link.groups("in"))
            assert group not in link.groups("other")
            with link.sender.entered():
                family = socket.AF_INET6 if ":" in group else socket.AF_INET
                sender = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                scope = (0, socket.if_nametoindex("out")) if ":" in group else ()
            for i in range(10 * times, 10 * times + 10):
                heap = encode(small_heap({0x10: i * SMALL.time.step}), i, 48)[0]
                sender.sendto(heap, (group, PORT, *scope))
            wait_for(lambda times=times: receiver.stats().placed == 10 * times + 10)
