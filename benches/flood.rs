//! What heaps with wrong times cost, from 4096 sources at 250 000 packets/s: `flood`, or `flood KIND STREAMS BATCHES` for an
//! instruction counter to watch. The good heaps among them must be placed.

#![expect(clippy::cast_precision_loss, reason = "nothing here comes near 2^52")]

use std::collections::BTreeMap;

use speadrx::abi::ChunkPlaceData;
use speadrx::callback::Context;
use speadrx::group::Group;
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;

#[path = "../tests/senders/mod.rs"]
mod senders;

const SOURCES: i64 = 4096;
const STEP: i64 = 4096;
const WINDOW: i64 = 8;
const PER_SECOND: f64 = 250_000.0;
/// Sources that are wrong where many are: as many as can be without time going to them.
const MINORITY: i64 = SOURCES / 2 - 1;

/// A hash as of splitmix64, for garbage that is the same in each run.
fn hash(number: i64) -> i64 {
    let mut hash = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)) as i64
}

/// Source and batch of a wrong heap, given how many came before, the batch that the others are at, and batches of a chunk.
type Wrong = fn(i64, i64, i64) -> (i64, i64);

const FAR: i64 = 1 << 30;

/// Wrong heaps that come beside the good ones of the same sources; and those that a minority sends in their place.
const BESIDE: [(&str, Wrong); 9] = [
    ("garbage of all", |n, _, _| (hash(n) & (SOURCES - 1), garbage(n))),
    ("garbage of one", |n, _, _| (7, garbage(n))),
    ("half far ahead, garbage of others", |n, batch, _| {
        if n % 16 == 0 { (SOURCES - 1 - n % 1000, garbage(n)) } else { (n % MINORITY, batch + FAR) }
    }),
    ("one far ahead", |n, batch, _| (7, batch + FAR + n / SOURCES)),
    ("one within the window", |n, batch, chunk| (7, batch + (1 + n % (WINDOW - 1)) * chunk)),
    ("one in the next chunk", |_, batch, chunk| (7, batch + chunk)),
    ("all up to two windows ahead", |n, batch, chunk| {
        (n % SOURCES, batch + (1 + hash(n).rem_euclid(2 * WINDOW)) * chunk)
    }),
    ("all 1.5 windows late", |n, batch, chunk| (n % SOURCES, batch - 3 * WINDOW / 2 * chunk)),
    ("all always elsewhere", |n, batch, chunk| (n % SOURCES, batch + FAR + n * 4 * WINDOW * chunk)),
];
const INSTEAD: [(&str, Wrong); 3] = [
    ("a minority far ahead", |n, batch, _| (n, batch + FAR)),
    ("a minority far behind", |n, batch, _| (n, batch - 5000)),
    ("a minority, each elsewhere", |n, batch, _| (n, batch + FAR * (1 + n))),
];

fn garbage(number: i64) -> i64 {
    (hash(number) >> 20) & ((1 << 36) - 1)
}

struct Flood {
    contexts: Vec<Context>,
    chunk: i64,
    batch: i64,
    wrong: i64,
    lost: Vec<u64>,
}

impl Flood {
    fn new(members: usize, chunk: i64) -> Self {
        let layout = Arc::new(senders::layout(STEP as u64, chunk as u64, SOURCES as u64, None));
        let window = WINDOW as u64;
        let reach = window * members as u64;
        let group = Group::new(TimeRules::new(&layout, window, reach, None, true).expect("rules"));
        let geometry = layout.geometry(&BTreeMap::new()).expect("geometry");
        let context = || Context::new(&geometry, window, None, Arc::clone(&group), None).expect("context");
        Self {
            contexts: (0..members).map(|_| context()).collect(),
            chunk,
            batch: 10_000,
            wrong: 0,
            lost: vec![0; SOURCES as usize],
        }
    }

    fn place(&self, source: i64, batch: i64) -> bool {
        let context = &self.contexts[source as usize % self.contexts.len()];
        let row = [(batch * STEP) & ((1 << 48) - 1), 8, source];
        let mut data = ChunkPlaceData {
            packet: std::ptr::null(),
            packet_size: 0,
            items: row.as_ptr(),
            chunk_id: -1,
            heap_index: 0,
            heap_offset: 0,
            batch_stats: std::ptr::null_mut(),
            extra: std::ptr::null_mut(),
            extra_offset: 0,
            extra_size: 0,
        };
        // SAFETY: the function belongs to the context, and the row has the items of the layout.
        unsafe {
            context.function()(&raw mut data, ChunkPlaceData::SIZE, context.argument());
        };
        data.chunk_id >= 0
    }

    /// Batches of all sources, with a wrong heap before each that is good, or in place of those of a minority. Returns the number
    /// of good heaps.
    fn pass(&mut self, beside: Option<Wrong>, instead: Option<Wrong>, batches: i64) -> i64 {
        let good = instead.map_or(0, |_| MINORITY)..SOURCES;
        for batch in self.batch..self.batch + batches {
            for source in 0..SOURCES {
                let number = if instead.is_some() { source } else { self.wrong };
                if let Some(wrong) = beside.or(instead.filter(|_| !good.contains(&source))) {
                    let (source, batch) = wrong(number, batch, self.chunk);
                    let _ = self.place(source, batch);
                    self.wrong += 1;
                }
                if good.contains(&source) && !self.place(source, batch) {
                    self.lost[source as usize] += 1;
                }
            }
        }
        self.batch += batches;
        (good.end - good.start) * batches
    }

    /// Nanoseconds of processor time for each wrong heap, and how many good ones are lost.
    fn cost(members: usize, chunk: i64, beside: Option<Wrong>, instead: Option<Wrong>) -> (f64, u64) {
        let mut flood = Self::new(members, chunk);
        flood.pass(None, None, 4 * chunk);
        let start = processor_time();
        let each_good = {
            let good = flood.pass(None, None, 64);
            (processor_time() - start) / good as f64
        };
        let (start, mut good) = (processor_time(), 0);
        while processor_time() - start < 0.3 {
            good += flood.pass(beside, instead, chunk);
        }
        let cost = processor_time() - start - each_good * good as f64;
        // What is lost is lost at once: it takes a heap of each to see that all are wrong at times.
        assert!(flood.lost.iter().all(|&lost| lost <= 2), "lost {:?}", flood.lost.iter().max());
        (1e9 * cost / flood.wrong as f64, flood.lost.iter().sum())
    }
}

/// Seconds that this thread has been running.
fn processor_time() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is there to be written.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let beside = BESIDE.map(|(name, wrong)| (name, Some(wrong), None));
    let instead = INSTEAD.map(|(name, wrong)| (name, None, Some(wrong)));
    let all = || beside.iter().chain(&instead);
    if let [kind, members, batches] = args.as_slice() {
        let mut flood = Flood::new(members.parse().expect("a number"), 16);
        flood.pass(None, None, 64);
        let &(_, beside, instead) = all().find(|(name, ..)| name == kind).unwrap_or(&("", None, None));
        flood.pass(beside, instead, batches.parse().expect("a number"));
        println!("{} wrong heaps, {} good ones lost", flood.wrong, flood.lost.iter().sum::<u64>());
        return;
    }
    println!(
        "{:34} {:>7} {:>13} {:>8} {:>10} {:>9}",
        "wrong heaps", "streams", "chunk/batches", "ns each", "of a core", "good lost"
    );
    for &(name, beside, instead) in all() {
        for (members, chunk) in [(1, 16), (1, 1), (16, 16), (16, 1), (64, 16)] {
            let (cost, lost) = Flood::cost(members, chunk, beside, instead);
            println!("{name:34} {members:7} {chunk:13} {cost:8.0} {:10.2} {lost:9}", 1e-9 * cost * PER_SECOND);
        }
    }
}
