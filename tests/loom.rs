//! Model checking of what threads share: run with `RUSTFLAGS="--cfg loom"`.
#![cfg(loom)]

use std::collections::BTreeMap;

use loom::thread;
use speadrx::abi::ChunkPlaceData;
use speadrx::callback::Context;
use speadrx::layout::Layout;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;
use speadrx::timeline::Timeline;

const SPEC: &str = r#"
heap_bytes = 8
time = { item = 0x1600, step = 16, batches = 1 }
"#;

fn context(timeline: &Arc<Timeline>) -> Context {
    let layout = std::sync::Arc::new(Layout::new(LayoutSpec::from_toml(SPEC).unwrap()).unwrap());
    Context::new(&layout.geometry(&BTreeMap::new()).unwrap(), 1, None, Arc::clone(timeline)).unwrap()
}

fn place(context: &Context, row: [i64; 2]) -> i64 {
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
    // SAFETY: the function belongs to the context, and the row has the two items of the layout.
    unsafe {
        context.function()(&raw mut data, ChunkPlaceData::SIZE, std::ptr::from_ref(context).cast_mut().cast());
    }
    data.chunk_id
}

#[test]
fn snapshots_are_monotonic_and_never_above_what_was_sent() {
    loom::model(|| {
        let context = context(&Arc::new(Timeline::default()));
        let ledger = context.ledger().clone();
        let reader = thread::spawn(move || {
            let (first, second) = (ledger.snapshot(), ledger.snapshot());
            for (before, after, sent) in [
                (first.placed[0], second.placed[0], 2),
                (first.duplicates[0], second.duplicates[0], 1),
                (first.rejected[0][0], second.rejected[0][0], 1),
            ] {
                assert!(before <= after && after <= sent);
            }
            assert!(first.newest[0] <= second.newest[0] && second.newest[0] <= 0);
        });
        assert_eq!(place(&context, [0, 8]), 0);
        assert_eq!(place(&context, [0, 7]), -1);
        assert_eq!(place(&context, [0, 8]), 0);
        reader.join().unwrap();
        let last = context.ledger().snapshot();
        assert_eq!((last.placed[0], last.duplicates[0], last.rejected[0][0], last.newest[0]), (2, 1, 1, 0));
    });
}

#[test]
fn newest_time_of_a_group_is_the_newest_of_any_stream() {
    loom::model(|| {
        let timeline = Arc::new(Timeline::default());
        let other = Arc::clone(&timeline);
        let member = thread::spawn(move || place(&context(&other), [32, 8]));
        place(&context(&timeline), [16, 8]);
        assert_eq!(member.join().unwrap(), 2);
        assert_eq!(timeline.unwrap(16 + (1 << 47)), Some(16 + (1 << 47)));
        assert_eq!(timeline.unwrap(33 + (1 << 47)), Some(33 - (1 << 47)));
    });
}

#[test]
fn streams_of_a_group_begin_in_the_same_age() {
    loom::model(|| {
        let timeline = Arc::new(Timeline::default());
        let other = Arc::clone(&timeline);
        // Whoever is first, the other's timestamp is on the other side of the same wrap.
        let member = thread::spawn(move || place(&context(&other), [0, 8]));
        let before = place(&context(&timeline), [(1 << 48) - 16, 8]);
        let after = member.join().unwrap();
        assert!((before, after) == ((1 << 44) - 1, 1 << 44) || (before, after) == (-1, 0));
    });
}
