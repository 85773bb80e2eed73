"""Programs that end in the midst of reception, each in its own way: `test_shutdown.py` runs them, and sends to them.

Usage: shutdown.py PROGRAM. A program says on which ports it receives, and then when it is about to end, or ready for
the signal that will end it. What it does from then on is timed.
"""

import asyncio
import atexit
import gc
import itertools
import random
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any, NoReturn

import spead2.recv
import spead2.recv.asyncio
from speadrx.collectors import Exporter

import speadrx
from addresses import own_port
from handmade import SMALL, encode, small_heap
from speadrx.simulate import Simulator

WINDOW, POOL = 2, 8

#: Programs by name.
PROGRAMS: dict[str, Callable[[], object]] = {}

#: What would be global variables of a user's program, there until the interpreter itself takes them down.
kept: list[Any] = []


def program(function: Callable[[], object]) -> Callable[[], object]:
    PROGRAMS[function.__name__] = function
    return function


def make(*, members: int = 0, ring: type[spead2.recv.ChunkRingbuffer] = spead2.recv.ChunkRingbuffer) -> Any:
    """Make a stream or group with free chunks."""
    arguments: dict[str, Any] = {
        "layout": SMALL,
        "max_active_chunks": WINDOW,
        "data_ringbuffer": ring(POOL),
        "free_ringbuffer": spead2.recv.ChunkRingbuffer(POOL),
    }
    made: Any
    if members:
        made = speadrx.make_stream_group(affinity=[-1] * members, **arguments)
    else:
        made = speadrx.make_stream(**arguments)
    speadrx.ChunkPool(made, POOL)
    kept.append(made)
    return made


def receive(made: Any) -> Any:
    """Let a stream or each member of a group receive, and say from where."""
    ports = []
    for stream in made if isinstance(made, spead2.recv.ChunkStreamRingGroup) else [made]:
        ports.append(own_port())
        speadrx.add_reader(stream, src=[("127.0.0.1", ports[-1])])
    print("ports", *ports, flush=True)
    return made


def ready() -> None:
    print("ready", flush=True)


def in_thread(target: Callable[..., object], *args: Any, daemon: bool = True) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=daemon)
    thread.start()
    kept.append(thread)
    return thread


class Consumer:
    """Takes chunks for ever, and can tell when it has taken some."""

    def __init__(self, made: Any, *, holds: bool = False) -> None:
        self.iterator = speadrx.iter_chunks(made)
        self.holds = holds
        self.has_taken = threading.Event()

    def take(self) -> None:
        for chunk in self.iterator:
            with chunk:
                self.taken()

    async def take_async(self) -> None:
        async for chunk in self.iterator:
            with chunk:
                self.taken()

    def taken(self) -> None:
        if self.iterator.accounting.chunks == 3 and not self.has_taken.is_set():
            self.has_taken.set()
            if threading.current_thread() is threading.main_thread():
                ready()
            if self.holds:
                time.sleep(3600)


# The interpreter exits


@program
def exit_stream() -> None:
    consumer = Consumer(receive(make()))
    for _ in range(3):
        with next(consumer.iterator):
            pass
    kept.append(consumer)
    ready()


@program
def exit_group() -> None:
    consumer = Consumer(receive(make(members=3)))
    for _ in range(3):
        with next(consumer.iterator):
            pass
    kept.append(consumer)
    ready()


@program
def exit_local() -> None:
    """Nothing is kept but by the frame that ends."""
    receive(make())
    kept.clear()
    ready()


@program
def exit_cycle() -> None:
    made = receive(make())
    made.itself = [made, speadrx.iter_chunks(made)]
    gc.disable()
    kept.clear()
    ready()


@program
def exit_holding_chunks() -> None:
    iterator = speadrx.iter_chunks(receive(make()))
    kept.extend(itertools.islice(iterator, 3))
    ready()


@program
def exit_full_ring() -> None:
    """Nobody takes chunks, so the network thread waits."""
    made = receive(make())
    while made.data_ringbuffer.qsize() < POOL - WINDOW:
        time.sleep(0.001)
    ready()


@program
def exit_exporter() -> None:
    made = receive(make(members=2))
    exporter = Exporter(["stream"])
    exporter.add(made, ["s"])
    port = exporter.serve(0, "127.0.0.1")
    kept.append(exporter)
    consumer = Consumer(made)
    in_thread(consumer.take)
    consumer.has_taken.wait()

    def scrape() -> None:
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
                assert reply.read()
            scraped.set()

    scraped = threading.Event()
    in_thread(scrape)
    scraped.wait()
    ready()


@program
def exit_thread_in_loop() -> None:
    consumer = Consumer(receive(make()))
    in_thread(consumer.take)
    consumer.has_taken.wait()
    ready()


@program
def exit_thread_waits() -> None:
    """Nothing comes."""
    in_thread(Consumer(receive(make())).take)
    ready()


@program
def exit_thread_lets_go() -> None:
    """Nothing comes; a thread drops its streams, one after the other, while the interpreter exits."""
    receive(make())
    streams = [make() for _ in range(60)]
    kept.clear()
    exiting = threading.Event()

    def let_go() -> None:
        exiting.wait()
        while streams:
            streams.pop()
            time.sleep(0)

    in_thread(let_go)
    atexit.register(exiting.set)
    ready()


@program
def exit_thread_ends() -> None:
    """Threads end because their streams have stopped, and let go of the last references while the interpreter exits."""
    receive(make())
    streams = [make() for _ in range(20)]
    for stream in streams:
        in_thread(lambda stream=stream: list(speadrx.iter_chunks(stream)))
    kept.clear()
    time.sleep(0.2)
    for _ in range(len(streams)):
        streams.pop().stop()
    del stream
    ready()


@program
def exit_thread_in_group_loop() -> None:
    consumer = Consumer(receive(make(members=2)))
    in_thread(consumer.take)
    consumer.has_taken.wait()
    ready()


@program
def exit_thread_in_async_loop() -> None:
    atexit.register(time.sleep, 0.1)  # whatever the loop waits for is still there, however long the exit takes
    consumer = Consumer(receive(make(ring=spead2.recv.asyncio.ChunkRingbuffer)))
    in_thread(lambda: asyncio.run(consumer.take_async()))
    consumer.has_taken.wait()
    ready()


@program
def exit_thread_holds_chunk() -> None:
    consumer = Consumer(receive(make()), holds=True)
    in_thread(consumer.take)
    consumer.has_taken.wait()
    ready()


@program
def exit_stop_elsewhere() -> None:
    """A thread that is no daemon ends its loop as the stream stops."""
    made = receive(make())
    consumer = Consumer(made)
    in_thread(consumer.take, daemon=False)
    consumer.has_taken.wait()
    ready()
    made.stop()


@program
def exit_stop_at_exit() -> None:
    made = receive(make())
    atexit.register(made.stop)
    consumer = Consumer(made)
    in_thread(consumer.take)
    consumer.has_taken.wait()
    ready()


@program
def exit_task_pending() -> None:
    """The event loop is closed with a task in the loop, which is cancelled."""
    made = receive(make(ring=spead2.recv.asyncio.ChunkRingbuffer))
    consumer = Consumer(made)

    async def main() -> None:
        task = asyncio.create_task(consumer.take_async())
        await asyncio.to_thread(consumer.has_taken.wait)
        kept.append(task)

    asyncio.run(main())
    assert kept[-1].cancelled()


@program
def exit_from_loop() -> None:
    for i, chunk in enumerate(speadrx.iter_chunks(receive(make()))):
        with chunk:
            if i == 3:
                ready()
                sys.exit(3)


@program
def exit_from_async_loop() -> None:
    async def main() -> None:
        i = 0
        async for chunk in speadrx.iter_chunks(receive(make(ring=spead2.recv.asyncio.ChunkRingbuffer))):
            with chunk:
                i += 1
                if i == 3:
                    ready()
                    sys.exit(3)

    asyncio.run(main())


@program
def raise_in_loop() -> None:
    for i, chunk in enumerate(speadrx.iter_chunks(receive(make()))):
        with chunk:
            if i == 3:
                ready()
                raise RuntimeError("the user's own")


@program
def raise_in_async_loop() -> None:
    async def main() -> None:
        async for chunk in speadrx.iter_chunks(receive(make(ring=spead2.recv.asyncio.ChunkRingbuffer))):
            with chunk:
                ready()
                raise RuntimeError("the user's own")

    asyncio.run(main())


# A signal comes


@program
def loop() -> None:
    Consumer(receive(make())).take()


@program
def loop_in_group() -> None:
    Consumer(receive(make(members=2))).take()


@program
def loop_waits() -> None:
    consumer = Consumer(receive(make()))
    ready()
    consumer.take()


@program
def loop_holds_chunk() -> None:
    Consumer(receive(make()), holds=True).take()


@program
def async_loop() -> None:
    asyncio.run(Consumer(receive(make(ring=spead2.recv.asyncio.ChunkRingbuffer))).take_async())


@program
def async_loop_waits() -> None:
    async def main() -> None:
        consumer = Consumer(receive(make(ring=spead2.recv.asyncio.ChunkRingbuffer)))
        ready()
        await consumer.take_async()

    asyncio.run(main())


@program
def loop_caught() -> NoReturn:
    """Does as a careful user would: catches Ctrl-C, stops, and says what it has."""
    made = receive(make())
    consumer = Consumer(made)
    try:
        consumer.take()
    except KeyboardInterrupt:
        made.stop()
    print("summary", consumer.iterator.accounting.present)
    sys.exit(5)


@program
def loop_exits_on_sigterm() -> None:
    def leave(signum: int, frame: object) -> NoReturn:
        sys.exit(6)

    signal.signal(signal.SIGTERM, leave)
    loop()


@program
def loop_waits_exits_on_sigterm() -> None:
    def leave(signum: int, frame: object) -> NoReturn:
        sys.exit(6)

    signal.signal(signal.SIGTERM, leave)
    loop_waits()


@program
def loop_stops_on_sigterm() -> None:
    """The handler stops the stream, and so the loop just ends."""
    made = receive(make())
    signal.signal(signal.SIGTERM, lambda signum, frame: made.stop())
    consumer = Consumer(made)
    consumer.take()
    print("summary", consumer.iterator.accounting.present)


@program
def async_loop_cancelled_on_sigterm() -> None:
    async def main() -> None:
        made = receive(make(ring=spead2.recv.asyncio.ChunkRingbuffer))
        consumer = Consumer(made)
        task = asyncio.create_task(consumer.take_async())
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            made.stop()
        print("summary", consumer.iterator.accounting.present)

    asyncio.run(main())
    sys.exit(7)


# Objects go in any order


def build(rng: random.Random, port: int, *, group: bool) -> dict[str, Any]:
    """All that a receiver consists of, in the midst of reception: chunks have come, and one is being used."""
    made = make(members=2 if group else 0)
    kept.clear()
    queue = spead2.InprocQueue()
    member = made[0] if group else made
    member.add_inproc_reader(queue)
    live = rng.random() < 0.5  # whether data flow to the end
    if live:
        speadrx.add_reader(member, src=[("127.0.0.1", port)])
    exporter = Exporter(["stream"])
    exporter.add(made, ["s"])
    iterator = speadrx.iter_chunks(made)
    for i in range(0 if live else 5):
        queue.add_packet(encode(small_heap({0x10: i * SMALL.chunk_timestamp_step}), i, 48)[0])
    chunk = next(iterator)
    assert chunk.present.any()
    objects = {
        "stream": made,
        "data ring": made.data_ringbuffer,
        "free ring": made.free_ringbuffer,
        "iterator": iterator,
        "accounting": iterator.accounting,
        "chunk": chunk,
        "data": chunk.data,
        "exporter": exporter,
        "registry": exporter.registry,
        "ledger": made.ledger,
        "layout": made.layout,
        "queue": queue,
        "member": member,
        "simulator": Simulator(SMALL),
    }
    if group:
        objects["ledgers"] = made.ledgers
    return objects


def take_down(objects: dict[str, Any], order: list[str], rng: random.Random) -> None:
    for name in order:
        thing = objects.pop(name)
        kind = rng.randrange(3)
        if kind == 1:
            cycle = [thing]
            cycle.append(cycle)
            del cycle
        elif kind == 2 and name == "exporter":
            thing.close()
        elif kind == 2 and name == "chunk":
            thing.recycle()
        del thing
        if rng.random() < 0.5:
            gc.collect()
    gc.collect()


def any_order(seed: int) -> None:
    rng = random.Random(seed)
    port = own_port()
    print("ports", port, flush=True)
    threads = threading.active_count()
    gc.freeze()  # so that a collection looks at the receiver only, and is quick
    for i in range(100):
        objects = build(rng, port, group=i % 3 == 2)
        order = list(objects)
        rng.shuffle(order)
        take_down(objects, order, rng)
    # All orders of what holds the others, or is held by them.
    names = ("stream", "data ring", "iterator", "chunk", "exporter")
    for order in itertools.permutations(names):
        objects = build(rng, port, group=False)
        take_down(objects, [name for name in objects if name not in names] + list(order), rng)
    # The thread of an exporter that was left to the garbage collector ends soon.
    deadline = time.monotonic() + 60
    while threading.active_count() != threads:
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.01)
    # What is left goes with the interpreter.
    kept.append(build(rng, port, group=True))
    ready()


@program
def any_order_1() -> None:
    any_order(1)


@program
def any_order_2() -> None:
    any_order(2)


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()
