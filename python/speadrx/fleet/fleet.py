"""`Fleet`: places the shares of a plan on workers of Dask, follows them, and starts them anew when a worker dies."""

from __future__ import annotations

import asyncio
import logging
import pickle
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from speadrx._words import counted, listed

from .account import SCHEDULER_LOST, SHARE_MOVED, WORKER_DIED, WORKER_SILENT, FleetAccount, FleetStats, is_slow
from .dealing import Share
from .fit import Place, Places, Problem, problems
from .plan import Plan
from .recording import FleetRecording
from .results import ByTime, Results
from .share import Work

logger = logging.getLogger(__name__)

#: States of a share of which nothing more comes unless it is started again.
_OVER = ("waits", "lost", "ended", "failed")
#: Seconds between looks of who waits for something.
_LOOK = 0.1
#: Looks at who is silent, in the time after which a worker is taken as lost.
_LOOKS = 10
#: Seconds that a share on a worker that was asked to leave has to hand over what it has received.
_LEAVE_SECONDS = 60.0
#: Seconds that a scheduler which is looked for has to answer.
_ANSWER_SECONDS = 5.0


class FleetError(RuntimeError):
    """A fleet cannot receive. The message says why."""


class Fleet:
    """Receive the shares of a plan on the workers of a Dask cluster.

    It is a context manager, and iterates over the results of the plan's function in the order of time, with or without
    ``async``::

        with Fleet(plan, "tcp://head:8786") as fleet:
            for time, results, missing, late in fleet:
                ...

    Leaving the block ends all shares: what they have received is handed over first, and recordings are finished.

    Parameters
    ----------
    plan
        What to receive.
    scheduler
        Address of a scheduler, a client of it, or a cluster.
    patience
        Seconds that results wait for those of a slower share.
    keep_results
        Whether results are kept for a loop. Without one, they would take memory.
    metrics_port
        Port on which to serve the account to Prometheus; 0 for any free port. By default, it is not served.
    metrics_address
        Address on which to serve it.
    """

    #: The account, which may be read at any time.
    account: FleetAccount

    def __init__(
        self,
        plan: Plan,
        scheduler: Any,
        *,
        patience: float = 5.0,
        keep_results: bool = True,
        metrics_port: int | None = None,
        metrics_address: str = "127.0.0.1",
    ) -> None:
        if not isinstance(plan, Plan):
            raise TypeError(f"plan: given {plan!r}, but wanted a speadrx.fleet.Plan")
        self.plan = plan
        self.account = FleetAccount(plan.dealt)
        #: Distinguishes it from other fleets on the same scheduler.
        self.id = f"{plan.name}-{uuid.uuid4().hex[:8]}"
        self._scheduler = scheduler
        self._metrics = (metrics_port, metrics_address)
        self._server: Any = None
        self._client: Any = None
        #: The client's connection: it makes itself another, to which nobody has subscribed.
        self._connection: Any = None
        self._topic = ""
        self._shares = {share.name: share for share in plan.dealt}
        self._waiting: list[str] = []
        self._places = Places(plan.resources)
        #: Ticks that came back from the scheduler, and how many had when a worker was heard last.
        self._ticks, self._heard = 0, dict[str, int]()
        #: Whether a tick is on its way, and when the next may go.
        self._tick_is_out, self._tick_due = False, 0.0
        #: Until when a share that leaves its worker may send its last report.
        self._leaving: dict[str, float] = {}
        self._futures: dict[str, Any] = {}
        #: When shares that receive no more were given up, and those that are slow: to say it once.
        self._lost_at: dict[str, float] = {}
        self._slow: set[str] = set()
        self._keeps_results = keep_results
        self._results = ByTime(self._shares, patience)
        self._recording = FleetRecording(plan, self.id)
        self._events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._stops, self._is_over = threading.Event(), threading.Event()
        self._ending = False
        #: Errors of shares that were said: many shares may have the same one.
        self._said: set[str] = set()
        #: Whoever else stops it waits, but for a signal handler in the same thread.
        self._stopping = threading.RLock()
        self._thread = threading.Thread(target=self._follow, name="speadrx-fleet", daemon=True)

    @property
    def metrics_port(self) -> int | None:
        """Port on which the account is served; None if it is not."""
        return None if self._server is None else self._server.port

    def connect(self, timeout: float = 60.0, grace: float = 10.0, stop: Callable[[], bool] = bool) -> list[Problem]:
        """Connect to the scheduler, ask all workers what they have, and return what does not fit.

        Parameters
        ----------
        timeout
            Seconds to wait for the scheduler.
        grace
            Seconds to wait for more workers if something does not fit those that have answered.
        stop
            Called a few times each second while it waits for workers. If it returns True, it waits no more.

        Raises
        ------
        FleetError
            If the scheduler cannot be reached.
        """
        try:
            self._open(timeout)
        except BaseException:
            if self._client is not None:
                self._client.close(timeout=_LOOK)
                self._client = None
            raise
        self._thread.start()
        self.wait(lambda: stop() or not any(problem.fatal for problem in self._problems()), grace)
        return self._problems()

    def _open(self, timeout: float) -> None:
        """Connect to the scheduler, and ask all workers what they have."""
        from distributed import Client

        from .worker import SharesPlugin, topic_of

        self._topic = topic_of(self.id)
        scheduler, more = self._scheduler, {}
        if isinstance(scheduler, Client):
            scheduler, more = scheduler.scheduler.address, {"security": scheduler.security}
        try:
            # A client of its own, so that nobody else's subscriptions change.
            self._client = Client(scheduler, set_as_default=False, timeout=timeout, **more)
        except (OSError, TimeoutError) as exc:
            raise FleetError(f"scheduler: {scheduler} cannot be reached: {exc}") from None
        self._connection = self._client.scheduler_comm
        # Nothing of a scheduler that died comes into this queue.
        events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._events, self._tick_is_out = events, False
        self._client.subscribe_topic(self._topic, lambda event: events.put(event[1]))
        self._client.subscribe_topic("all", lambda event: events.put({"kind": "all", **event[1]}))
        self._wait_for_subscription(timeout)
        function = self.plan.function if isinstance(self.plan.function, str) else None
        plugin = SharesPlugin(self.id, self.plan.silence / _LOOKS, function)
        self._client.register_plugin(plugin, name=self._topic)

    def _wait_for_subscription(self, timeout: float) -> None:
        """Wait until the scheduler passes events on. Before, those of workers would be lost."""
        heard = threading.Event()
        deadline = time.monotonic() + timeout
        self._client.subscribe_topic(f"{self._topic}-begin", lambda event: heard.set())
        while not heard.wait(_LOOK):
            if time.monotonic() > deadline:
                raise FleetError(f"scheduler: {self._client.scheduler.address} passes no events on")
            self._client.log_event(f"{self._topic}-begin", "begin")
        self._client.unsubscribe_topic(f"{self._topic}-begin")

    def _problems(self) -> list[Problem]:
        return problems(self.plan.dealt, self.plan.resources, list(self._places.places.values()))

    def start(self) -> None:
        """Place the shares, and start them. It returns at once.

        Raises
        ------
        FleetError
            If the recording of all shares cannot be made.
        """
        try:
            self._recording.begin()
        except OSError as exc:
            raise FleetError(f"record: {self.plan.record}: {exc.strerror or exc}") from None
        port, address = self._metrics
        if port is not None:
            from prometheus_client import CollectorRegistry

            from speadrx.metrics.server import MetricsServer

            from .metrics import FleetCollector

            registry = CollectorRegistry(auto_describe=True)
            registry.register(FleetCollector(self.account))
            self._server = MetricsServer(registry, port, address)
        with self._changed:
            self._waiting += self._shares

    def wait(self, condition: Callable[[], Any], timeout: float = 60.0) -> bool:
        """Wait until a condition holds, or the time is over; return whether it holds.

        Parameters
        ----------
        condition
            Called whenever something has changed, and a few times each second.
        timeout
            In seconds.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, _LOOK))
        return True

    def wait_until_receiving(self, timeout: float = 60.0) -> None:
        """Wait until all shares receive.

        Raises
        ------
        FleetError
            If a share has failed, or the time is over. The message says which share does not receive, and why.
        """
        self.wait(lambda: all(state in ("receives", "ended", "failed") for state in self._states()), timeout)
        others = [f"{one.name} {one.error or one.state}" for one in self.stats().shares if one.state != "receives"]
        if others:
            raise FleetError(f"{counted(len(others), 'share')} of {len(self._shares)} do not receive: {listed(others)}")

    def stats(self) -> FleetStats:
        """Read the account."""
        return self.account.stats()

    def stop(self, timeout: float = 60.0) -> FleetStats:
        """End all shares, and return the account. It may be called again.

        Parameters
        ----------
        timeout
            Seconds to wait for their last reports.
        """
        with self._stopping:
            try:
                if self._client is not None:
                    self._end_shares(timeout)
            finally:
                self._recording.end(self.stats())
                if self._server is not None:
                    self._server.close()
                with self._changed:
                    self._ending = True
                    self._changed.notify_all()
        return self.stats()

    def _end_shares(self, timeout: float) -> None:
        client = self._client
        self._stops.set()
        self.wait(lambda: self._ending and all(state in _OVER for state in self._states()), timeout)
        self._is_over.set()
        self._thread.join()
        try:
            if self._is_connected():
                client.unsubscribe_topic("all")
                client.unregister_worker_plugin(self._topic)
        except Exception:  # a worker without the plugin, say: all shares have ended nevertheless
            logger.warning("fleet %s: its plugin stays on some workers", self.id, exc_info=True)
        finally:
            client.close()
            self._client = None

    def _states(self) -> list[str]:
        return [self.account.state(name) for name in self._shares]

    # What follows runs in the fleet's own thread, one event at a time.

    def _follow(self) -> None:
        while not self._is_over.is_set():
            event = self._next_event()
            if not self._is_connected():
                if self._connection is not None:
                    self._lose_scheduler()
                self._find_scheduler()
                continue
            self._send_tick()
            with self._changed:
                try:
                    self._handle(event)
                except Exception:  # an event that cannot be handled must not end all that follow
                    logger.exception("fleet %s: %s", self.id, event["kind"])
                self._changed.notify_all()

    def _next_event(self) -> Mapping[str, Any]:
        try:
            return self._events.get(timeout=_LOOK)
        except queue.Empty:
            return {"kind": "nothing"}

    def _is_connected(self) -> bool:
        """Whether the scheduler that the client was made for is there."""
        connection = self._connection
        return connection is not None and self._client.status == "running" and self._client.scheduler_comm is connection

    def _lose_scheduler(self) -> None:
        """The scheduler has died, or cannot be reached. Its workers go on, but nobody hears of them any more."""
        logger.warning("fleet %s: the scheduler is lost; its workers go on until there is one again", self.id)
        self._connection = None
        self._client.close()
        with self._changed:
            for worker in list(self._places.places):
                self._places.remove(worker)
            self._leaving.clear()
            for name in self._shares:
                if self.account.state(name) in ("starts", "receives"):
                    self._lose(name, SCHEDULER_LOST)
            self._changed.notify_all()

    def _find_scheduler(self) -> None:
        """Connect again, if need be to another scheduler at the same address, unless the fleet is to end."""
        while not self._stops.wait(_LOOK):
            try:
                self._open(_ANSWER_SECONDS)
            except (FleetError, OSError):  # or it was lost again
                self._connection = None
                self._client.close()
                continue
            logger.warning("fleet %s: there is a scheduler again", self.id)
            return
        with self._changed:
            self._ending = True
            self._waiting.clear()

    def _handle(self, event: Mapping[str, Any]) -> None:
        match event["kind"]:
            case "worker":
                self._places.add(Place.of(event))
                self._hear(event["worker"])
            case "idle":
                self._hear(event["worker"])
            case "tick":
                self._tick_is_out = False
                self._ticks += 1
                self._leave_silent_workers()
            case "all":
                if event.get("action") == "remove-worker":
                    self._forget_worker(event["worker"], leaves=event["expected"])
            case "nothing":
                pass
            case "failed":
                self._fail(event)
            case _:
                self._hear(event["worker"])
                self._take_report(event)
        if self._stops.is_set() and not self._ending:
            self._ending = True
            self._waiting.clear()
            self._client.cancel(list(self._futures.values()), force=True)
        for name in [name for name, until in self._leaving.items() if time.monotonic() >= until]:
            del self._leaving[name]
            self._lose(name, SHARE_MOVED)
        self._place()

    def _forget_worker(self, worker: str, *, leaves: bool) -> None:
        """A worker is gone. One that was asked to leave still sends what its shares have received."""
        self._heard.pop(worker, None)
        for name in self._places.remove(worker):
            if leaves:
                self._leaving[name] = time.monotonic() + _LEAVE_SECONDS
            else:
                logger.warning("fleet %s: the worker %s of share %s has died", self.id, worker, name)
                self._lose(name, WORKER_DIED)

    def _send_tick(self) -> None:
        """Send the scheduler a tick, which comes back behind all that it has passed on, unless one is on its way.

        Silence is measured in ticks: while the scheduler stands still, or this program, nobody can be heard.
        """
        now = time.monotonic()
        if self._tick_is_out or now < self._tick_due:
            return
        self._tick_is_out, self._tick_due = True, now + self.plan.silence / _LOOKS
        client = self._client

        async def send() -> None:
            try:
                await client.scheduler.log_event(topic=self._topic, msg={"kind": "tick"})
            except OSError:  # another connection may do
                self._tick_is_out = False

        client.loop.add_callback(send)

    def _hear(self, worker: str) -> None:
        if worker not in self._places.places:
            return
        self._heard[worker] = self._ticks
        if worker in self._places.silent:
            self._places.silent.discard(worker)
            logger.warning(
                "fleet %s: the worker %s is heard again. If it was only busy, a larger silent_seconds in the plan lets "
                "it keep its shares",
                self.id,
                worker,
            )

    def _leave_silent_workers(self) -> None:
        """Start shares elsewhere whose worker is silent, as far as there is room.

        The worker may live. The task of the share is cancelled: that ends it, as soon as the worker can be reached.
        """
        for worker in self._places.places.keys() - self._places.silent:
            starts = any(self.account.state(name) == "starts" for name in self._places.on(worker))
            if self._ticks - self._heard[worker] >= _LOOKS and not starts:
                self._places.silent.add(worker)
                logger.warning("fleet %s: the worker %s is silent", self.id, worker)
        for worker in self._places.silent:
            for name in self._places.on(worker):
                if self.account.state(name) == "receives" and not self._ending and self._places.free():
                    self._places.release(name)
                    self._lose(name, WORKER_SILENT)
                    self._place()

    def _lose(self, name: str, cause: str) -> None:
        """Start a share anew of which nothing more is to come."""
        self.account.give_up(name, cause)
        self._lost_at.setdefault(name, time.monotonic())
        future = self._futures.pop(name)
        if self._is_connected():
            self._client.cancel([future], force=True)
        self._again(name)

    def _take_report(self, report: Mapping[str, Any]) -> None:
        name = report["share"]
        if not self.account.add(report):
            return
        self._recording.take(report)
        now = time.monotonic()
        self._say(report, now)
        if self._keeps_results:
            for timestamp, result in report["results"]:
                self._results.add(name, timestamp, pickle.loads(result), now)
        if report["kind"] == "ended":
            self._leaving.pop(name, None)
            self._places.release(name)
            self._results.end(name)
            self._futures.pop(name, None)
            if report["error"] is not None:
                self._say_failed(name, report["error"])
            elif not self._ending:
                self._again(name)

    def _say(self, report: Mapping[str, Any], now: float) -> None:
        """Log that a share is back, and that it has become slow."""
        name, host = report["share"], report["host"]
        slow = is_slow(report["now"])
        if (since := self._lost_at.pop(name, None)) is not None:
            logger.warning("fleet %s: share %s is back after %.1f s, on %s", self.id, name, now - since, host)
        if slow and name not in self._slow and not self._ending:
            self._slow.add(name)
            logger.warning("fleet %s: share %s on %s is slow: soon no chunk of it is free", self.id, name, host)
        elif not slow:
            self._slow.discard(name)

    def _say_failed(self, name: str, error: str) -> None:
        level = logging.INFO if error in self._said else logging.WARNING
        self._said.add(error)
        logger.log(level, "fleet %s: share %s has failed: %s", self.id, name, error)

    def _fail(self, event: Mapping[str, Any]) -> None:
        """A task has failed before it could report."""
        name = event["share"]
        if self.account.fail(name, event["incarnation"], event["error"]):
            self._say_failed(name, event["error"])
            self._places.release(name)
            self._results.end(name)
            self._futures.pop(name, None)

    def _again(self, name: str) -> None:
        if not self._ending and name not in self._waiting:
            self._waiting.append(name)

    def _place(self) -> None:
        """Start those that wait for a worker, as far as there are workers."""
        while self._waiting and (place := self._places.take(self._waiting[0])) is not None:
            self._submit(self._shares[self._waiting.pop(0)], place)

    def _submit(self, share: Share, place: Place) -> None:
        from .worker import receive_share

        incarnation = self.account.submit(share.name, place.worker, place.host)
        work = Work(
            fleet=self.plan.name,
            share=share.name,
            incarnation=incarnation,
            layout=share.layout,
            endpoints=share.endpoints,
            options=dict(self.plan.receiver),
            function=self.plan.function,
            record=self._recording.of(share, incarnation),
            report_seconds=self.plan.report_seconds,
        )
        future = self._client.submit(
            receive_share,
            self._topic,
            work,
            key=f"{self._topic}-{share.name}-{incarnation}",
            workers=[place.worker],
            allow_other_workers=False,
            resources=dict(self.plan.resources),
            pure=False,
        )
        self._results.end(share.name, ended=False)
        self._futures[share.name] = future

        def done(one: Any) -> None:
            if one.status == "error":
                what = {"share": share.name, "incarnation": incarnation, "error": repr(one.exception())}
                self._events.put({"kind": "failed", **what})

        future.add_done_callback(done)

    def _next(self) -> Results | None:
        """Wait for the results of the next time; None if there are no more."""
        with self._changed:
            while True:
                over = self._ending and all(state in _OVER for state in self._states())
                if (found := self._results.next(time.monotonic(), at_once=over)) is not None:
                    return found
                if over:
                    return None
                self._changed.wait(_LOOK)

    def __iter__(self) -> Iterator[Results]:
        while (results := self._next()) is not None:
            yield results

    async def __aiter__(self) -> AsyncIterator[Results]:
        while (results := await asyncio.to_thread(self._next)) is not None:
            yield results

    def __enter__(self) -> Self:
        try:
            fatal = [problem.text for problem in self.connect() if problem.fatal]
            if fatal:
                raise FleetError("; ".join(fatal))
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
