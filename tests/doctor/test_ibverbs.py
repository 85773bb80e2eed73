"""What the doctor says of machines that lack what ibverbs needs."""

import resource

import pytest
import spead2.recv

from speadrx.doctor import Case
from speadrx.doctor import ibverbs as check


class Machine:
    """A machine that has all that ibverbs needs; what a test takes away is gone."""

    def __init__(self, monkeypatch, tmp_path):
        self.devices, self.libraries = tmp_path / "infiniband", set(check._LIBRARIES)
        self.limit, self.capabilities = resource.RLIM_INFINITY, 1 << 13
        (self.devices / "mlx5_0" / "device" / "net" / "lo").mkdir(parents=True)
        monkeypatch.setattr(check, "_DEVICES", self.devices)
        monkeypatch.setattr(check.ctypes, "CDLL", self.load)
        monkeypatch.setattr(check.resource, "getrlimit", lambda which: (self.limit, self.limit))
        monkeypatch.setattr(check, "read", lambda path: f"Name:\tpython\nCapEff:\t{self.capabilities:016x}\n")

    def load(self, name):
        if name not in self.libraries:
            raise OSError(f"{name}: cannot open shared object file")

    def findings(self, *endpoints, ibv=True):
        return list(check.ibverbs(Case(endpoints, ibv=ibv)))


@pytest.fixture
def machine(monkeypatch, tmp_path):
    return Machine(monkeypatch, tmp_path)


def no_library(machine):
    machine.libraries.remove("librdmacm.so.1")


def no_device(machine):
    for path in sorted(machine.devices.rglob("*"), reverse=True):
        path.rmdir()


def no_driver(machine):
    no_device(machine)
    machine.devices.rmdir()


def no_capability(machine):
    machine.capabilities = ~(1 << 13) & 0x1FFFFFFFFFF


def little_memory(machine):
    machine.limit = 2**16


def another_device(machine):
    (machine.devices / "mlx5_0" / "device" / "net" / "lo").rename(
        machine.devices / "mlx5_0" / "device" / "net" / "ens1"
    )


LACKS = {
    no_library: ["librdmacm.so.1 is not installed", "apt-get install librdmacm1"],
    no_device: ["there is no RDMA device", "ConnectX"],
    no_driver: ["there is no RDMA device", "ConnectX"],
    no_capability: ["this process does not have CAP_NET_RAW", "spead2_net_raw", "setpriv"],
    little_memory: ["this process may lock 65536 bytes", "16777216", "RLIMIT_MEMLOCK", "memlock unlimited"],
    another_device: ["lo does not belong to an RDMA device", "ens1"],
}


@pytest.mark.parametrize("lack", LACKS)
def test_lacking(machine, lack):
    lack(machine)
    (finding,) = machine.findings(("lo/239.1.2.3", 7148))
    assert finding.severity == "problem"
    text = " ".join([finding.summary, finding.why, *finding.mend])
    assert [part for part in LACKS[lack] if part not in text] == [], text
    # Who does not ask for ibverbs has no problem.
    (finding,) = machine.findings(("lo/239.1.2.3", 7148), ibv=False)
    assert finding.severity == "ok"
    assert finding.summary.startswith("not asked for (--ibv), and ")
    assert LACKS[lack][0] in finding.summary


def test_nothing_lacking(machine):
    (finding,) = machine.findings(("lo/239.1.2.3", 7148))
    assert finding.severity == "ok"


def test_built_without(machine, monkeypatch):
    monkeypatch.delattr(spead2.recv, "UdpIbvConfig")
    (finding,) = machine.findings()
    assert (finding.severity, finding.summary) == ("problem", "this spead2 was built without ibverbs")
