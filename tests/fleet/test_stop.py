"""`Fleet.stop`, whatever happens meanwhile: without a cluster, by a client that does as it is told."""

import threading

import pytest

pytest.importorskip("distributed")

from fleets import LAYOUT
from speadrx.fleet import Fleet, Plan


class Client:
    """A connected client whose plugin cannot be unregistered."""

    status = "running"
    scheduler_comm = object()

    def __init__(self):
        self.calls = []
        self.may_go_on = threading.Event()

    def unsubscribe_topic(self, topic):
        self.calls.append("unsubscribe")

    def unregister_worker_plugin(self, name):
        self.calls.append("unregister")
        assert self.may_go_on.wait(60)
        raise ValueError(f"The worker plugin {name} does not exist")

    def cancel(self, futures, force):
        self.calls.append("cancel")

    def close(self):
        self.calls.append("close")

    @property
    def loop(self):
        return self

    def add_callback(self, send):
        """No tick comes back, so that nobody is silent."""


@pytest.fixture
def fleet(tmp_path):
    record = str(tmp_path / "night.zarr")
    made = Fleet(Plan(layout=LAYOUT, endpoints="239.1.2.0+3:7148", deal="antenna", record=record), "tcp://a:1")
    made._client = Client()
    made._connection = made._client.scheduler_comm
    made._recording.begin()
    made._thread.start()
    return made


def test_a_plugin_that_cannot_be_unregistered(fleet, tmp_path, caplog):
    client = fleet._client
    client.may_go_on.set()
    fleet.stop()
    assert client.calls == ["cancel", "unsubscribe", "unregister", "close"]
    assert "does not exist" in caplog.text
    # What says that others may still write is gone.
    assert [path.name for path in (tmp_path / "night.zarr").iterdir()] == ["zarr.json"]


def test_two_stops_at_once(fleet):
    client, found = fleet._client, []
    threads = [threading.Thread(target=lambda: found.append(fleet.stop())) for _ in range(2)]
    for thread in threads:
        thread.start()
    client.may_go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    assert client.calls.count("unregister") == client.calls.count("close") == 1


def test_an_error_of_many_shares_is_logged_once(fleet, caplog):
    fleet._client.may_go_on.set()
    fleet.stop()
    for share in ("0", "1"):
        fleet.account.submit(share, "tcp://a:1", "a")
        fleet._fail({"share": share, "incarnation": 1, "error": "ValueError: src: 'x'"})
    assert fleet._states()[:2] == ["failed", "failed"]
    assert caplog.text.count("src: 'x'") == 1
