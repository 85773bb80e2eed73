//! A million snapshots, taken while the callback runs: every counter monotonic, never above what was sent, exact in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use speadrx::abi::ChunkPlaceData;
use speadrx::callback::Context;
use speadrx::group::Group;
use speadrx::layout::Layout;
use speadrx::ledger::Snapshot;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;

const SPEC: &str = r#"
heap_bytes = 8
sources = "antenna"
time = { item = 0x1600, step = 16, batches = 4 }
axes = [{ name = "antenna", item = 0x4101, size = 3 }]
"#;
const READERS: u64 = 2;
const SNAPSHOTS: u64 = 1_000_000;

fn place(context: &Context, row: [i64; 3]) {
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
    // SAFETY: the function belongs to the context, the row has the three items of the layout, and only one thread calls.
    unsafe {
        context.function()(&raw mut data, ChunkPlaceData::SIZE, context.argument());
    }
}

/// All counters in a row, without those derived from others.
fn counters(snapshot: &Snapshot) -> Vec<u64> {
    let rejected = snapshot.rejected.iter().flatten();
    let late = snapshot.late_batches.iter().chain(&snapshot.late_chunks[1..]);
    snapshot.placed.iter().chain(&snapshot.duplicates).chain(rejected).chain(late).copied().collect()
}

fn seen(snapshot: &Snapshot) -> u64 {
    snapshot.placed.iter().sum::<u64>() + snapshot.rejected.iter().flatten().sum::<u64>()
}

#[test]
fn a_million_snapshots_are_monotonic_and_never_above_what_was_sent() {
    let layout = Arc::new(Layout::new(LayoutSpec::from_toml(SPEC).unwrap()).unwrap());
    let group = Group::new(TimeRules::new(&layout, 2, 2, None, false).unwrap());
    let context = Context::new(&layout.geometry(&BTreeMap::new()).unwrap(), 2, None, group, None).unwrap();
    let (sent, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let ledger = context.ledger();
                    let mut before = ledger.snapshot();
                    for _ in 0..SNAPSHOTS / READERS {
                        let now = ledger.snapshot();
                        // Read after the snapshot, so that nothing in it can have been sent later.
                        let sent = sent.load(SeqCst);
                        assert!(seen(&now) <= sent);
                        assert!(now.late_chunks.iter().sum::<u64>() <= sent);
                        assert!(counters(&before).iter().zip(counters(&now)).all(|(before, now)| *before <= now));
                        assert!(before.newest.iter().zip(&now.newest).all(|(before, now)| before <= now));
                        before = now;
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut time = 0;
            while !done.load(SeqCst) {
                // Good, duplicate, late, and rejected for several reasons.
                for row in [[time, 8, 0], [time, 8, 1], [time, 8, 1], [time - 64, 8, 2], [time, 7, 0], [time, 8, 3]] {
                    sent.fetch_add(1, SeqCst);
                    place(&context, row);
                }
                time = (time + 16) & ((1 << 48) - 1);
            }
        });
        // Join the readers first: the writer must not run on if one of them has failed.
        let failed = readers.into_iter().any(|reader| reader.join().is_err());
        done.store(true, SeqCst);
        assert!(!failed, "a reader saw a counter fall, or more than was sent");
    });
    let last = context.ledger().snapshot();
    assert_eq!(seen(&last), sent.into_inner());
    assert_eq!(last.placed.iter().sum::<u64>(), last.late_chunks.iter().sum::<u64>());
    assert!(last.duplicates[1] > 0 && last.late_chunks[1] > 0);
}
