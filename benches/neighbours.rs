//! Whether streams slow each other down: two threads with a stream each, at the same time and one after the other.

#[expect(dead_code, reason = "only other benches place without a ledger")]
mod formats;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use formats::{Feed, Streams};

const TURNS: usize = 2000;
/// Pairs of each kind: what a call costs depends on where its memory happens to lie.
const PLACES: usize = 3;
/// Increments of a counter in a turn.
const INCREMENTS: u64 = 30_000;

/// What a thread does in its turns: get ready, and then be timed.
type Work<'a> = Box<dyn FnMut(bool) + Send + 'a>;

/// Two things that are done at the same time, and how many heaps or increments each is.
struct Pair<'a> {
    name: String,
    work: [Work<'a>; 2],
    units: usize,
}

fn place<'a>(mut feed: Feed) -> Work<'a> {
    Box::new(move |timed| {
        if timed {
            assert_eq!(feed.pass(), feed.heaps());
        } else {
            feed.advance();
        }
    })
}

fn streams<'a>(sources: u64, batches: u64, streams: Streams) -> Pair<'a> {
    let feeds = Feed::pair(sources, batches, streams);
    let [one, other] = &feeds;
    let name = format!("{sources} x {batches} heaps, {streams:?}, {} bytes", one.address().abs_diff(other.address()));
    let units = one.heaps();
    Pair { name, work: feeds.map(place), units }
}

/// Counters so many bytes apart, which two threads increment as the callback does.
fn counters<'a>(name: &str, counters: &'a [AtomicU64], bytes: usize) -> Pair<'a> {
    let work = [0, bytes / size_of::<AtomicU64>()].map(|index| -> Work<'a> {
        let counter = &counters[index];
        Box::new(move |timed| {
            for _ in 0..if timed { INCREMENTS } else { 0 } {
                counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
        })
    });
    Pair { name: name.to_owned(), work, units: INCREMENTS as usize }
}

/// Wait until both threads are here.
fn meet(arrivals: &AtomicUsize) {
    let turn = arrivals.fetch_add(1, Ordering::AcqRel) / 2;
    while arrivals.load(Ordering::Acquire) < 2 * (turn + 1) {
        thread::yield_now();
    }
}

/// What each turn of each pair took one of the threads (0 or 1): from when to when at the same time as the other, and how
/// long by itself.
fn take_turns(me: usize, work: &mut [Work<'_>], arrivals: &AtomicUsize) -> Vec<(Instant, Instant, Duration)> {
    // SAFETY: zero is a set of no cores, and `set` is one.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(me, &mut set);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &raw const set), 0, "needs cores 0 and 1");
    }
    let mut times = Vec::with_capacity(TURNS * work.len());
    for _ in 0..TURNS {
        for work in &mut *work {
            work(false);
            meet(arrivals);
            let start = Instant::now();
            work(true);
            let end = Instant::now();
            work(false);
            for thread in 0..2 {
                meet(arrivals);
                if thread == me {
                    let alone = Instant::now();
                    work(true);
                    times.push((start, end, alone.elapsed()));
                }
            }
        }
    }
    times
}

fn main() {
    // Each in lines of its own, whatever the allocation's alignment.
    let shared: Vec<AtomicU64> = (0..128).map(|_| AtomicU64::new(0)).collect();
    let mut pairs = vec![
        counters("counters in a line", &shared[..64], 8),
        counters("counters 256 bytes apart", &shared[64..], 256),
    ];
    for (sources, batches) in [(4, 640), (80, 32), (80, 256)] {
        for _ in 0..PLACES {
            for kind in [Streams::Neighbours, Streams::FarApart, Streams::Group] {
                pairs.push(streams(sources, batches, kind));
            }
        }
    }

    let (mut names, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
    for Pair { name, work: [one, other], units } in pairs {
        names.push((name, units));
        first.push(one);
        second.push(other);
    }
    let arrivals = AtomicUsize::new(0);
    let (here, there) = thread::scope(|scope| {
        let other = scope.spawn(|| take_turns(1, &mut second, &arrivals));
        (take_turns(0, &mut first, &arrivals), other.join().expect("no panic"))
    });
    println!("{:44}{:>10}{:>10}   (ns per heap or increment, least of {TURNS})", "", "at once", "alone");
    for (i, (name, units)) in names.iter().enumerate() {
        let turns = || here.iter().zip(&there).skip(i).step_by(names.len());
        // Where one had to wait for the processor, the other was alone meanwhile.
        let at_once = turns().filter_map(|(a, b)| {
            let longer = (a.1 - a.0).max(b.1 - b.0);
            (a.1.min(b.1).saturating_duration_since(a.0.max(b.0)) > longer.mul_f64(0.9)).then_some(longer)
        });
        let (at_once, alone) = (at_once.min().expect("two free cores"), turns().map(|(a, b)| a.2.max(b.2)).min());
        let [at_once, alone] = [at_once, alone.expect("turns")]
            .map(|time| time.as_secs_f64() * 1e9 / f64::from(u32::try_from(*units).expect("few")));
        println!("{name:44}{at_once:10.2}{alone:10.2}");
    }
}
