//! The callback at its edges: what is rare, and must still be counted.

use std::collections::BTreeMap;
use std::ptr;

use speadrx::abi::ChunkPlaceData;
use speadrx::callback::{Context, Stats};
use speadrx::group::Group;
use speadrx::layout::Layout;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;

mod calling;
use calling::call;

const SPEC: &str = r#"
heap_bytes = 8
sources = "antenna"
time = { item = 0x1600, step = 16, batches = 4 }
axes = [{ name = "antenna", item = 0x4101, size = 3 }]
side_items = [{ name = "status", item = 0x3102, dtype = "u16" }]
"#;

fn contexts<const N: usize>() -> [Context; N] {
    let layout = Arc::new(Layout::new(LayoutSpec::from_toml(SPEC).unwrap()).unwrap());
    let group = Group::new(TimeRules::new(&layout, 2, 3, None, false).unwrap());
    let geometry = layout.geometry(&BTreeMap::new()).unwrap();
    std::array::from_fn(|_| Context::new(&geometry, 2, None, Arc::clone(&group), None).unwrap())
}

fn context() -> Context {
    let [context] = contexts();
    context
}

fn place(context: &Context, row: [i64; 4]) -> i64 {
    call(context, &row, ChunkPlaceData::SIZE, ptr::null_mut()).chunk_id
}

#[test]
fn panic_rejects_the_heap_and_reception_goes_on() {
    let context = context();
    context.panic_next();
    assert_eq!(place(&context, [0, 8, 1, 0]), -1);
    assert_eq!(place(&context, [0, 8, 1, 0]), 0);
    let snapshot = context.ledger().snapshot();
    assert_eq!(snapshot.rejected[5], [0, 1, 0, 0]);
    assert!(snapshot.rejected[..5].iter().flatten().all(|&count| count == 0));
    assert_eq!(snapshot.placed, [0, 1, 0]);
}

#[test]
fn struct_of_an_older_spead2_is_left_alone() {
    let context = context();
    let data = call(&context, &[0, 8, 1, 0], ChunkPlaceData::SIZE - 8, ptr::null_mut());
    assert_eq!(data.chunk_id, -1);
    let snapshot = context.ledger().snapshot();
    assert_eq!((snapshot.placed, &snapshot.rejected[5]), (vec![0, 0, 0], &vec![0, 0, 0, 1]));
}

#[test]
fn struct_of_a_newer_spead2_is_welcome() {
    let context = context();
    assert_eq!(call(&context, &[64, 8, 1, 0], ChunkPlaceData::SIZE + 8, ptr::null_mut()).chunk_id, 1);
}

#[test]
fn stream_without_extra_gets_no_side_items() {
    let context = context();
    for _cold_then_fast in 0..2 {
        let data = call(&context, &[0, 8, 1, 7], ChunkPlaceData::SIZE, ptr::null_mut());
        assert_eq!((data.chunk_id, data.extra_size), (0, 0));
    }
}

#[test]
fn side_items_stay_within_their_record() {
    let context = context();
    for _cold_then_fast in 0..2 {
        let mut extra = [0xa5_u8; 3];
        let data = call(&context, &[16, 8, 2, 0x1234_5678], ChunkPlaceData::SIZE, extra.as_mut_ptr());
        assert_eq!((data.extra_offset, data.extra_size), (5 * 2, 2));
        assert_eq!(extra, [0x78, 0x56, 0xa5]);
    }
}

#[test]
fn streams_of_a_group_unwrap_alike() {
    let [first, second] = contexts();
    // The first stream sees the end of the 48-bit range; the second starts just beyond it.
    assert_eq!(place(&first, [(1 << 48) - 16, 8, 0, 0]), (1 << 48) / 64 - 1);
    assert_eq!(place(&second, [0, 8, 0, 0]), (1 << 48) / 64);
    assert_eq!(place(&first, [16, 8, 0, 0]), (1 << 48) / 64);
}

#[test]
fn duplicates_are_forgotten_with_their_chunk() {
    let context = context();
    let duplicates = || context.ledger().snapshot().duplicates[1];
    for (time, expected) in [(0, 0), (0, 1), (64, 1), (0, 2), (128, 2), (0, 2), (64, 3), (192, 3), (192, 4)] {
        place(&context, [time, 8, 1, 0]);
        assert_eq!(duplicates(), expected, "at time {time}");
    }
}

#[test]
fn lateness_is_counted_by_its_bits() {
    // Those that are few batches late have counters of their own, up to 63.
    let spec = SPEC.replace("batches = 4", "batches = 512");
    let layout = Arc::new(Layout::new(LayoutSpec::from_toml(&spec).unwrap()).unwrap());
    let group = Group::new(TimeRules::new(&layout, 2, 3, None, false).unwrap());
    let context = Context::new(&layout.geometry(&BTreeMap::new()).unwrap(), 2, None, group, None).unwrap();
    let mut expected = [0; 33];
    for (behind, bits) in
        [(0, 0), (1, 1), (2, 2), (3, 2), (62, 6), (63, 6), (64, 7), (65, 7), (127, 7), (128, 8), (511, 9)]
    {
        assert_eq!(place(&context, [(511 - behind) * 16, 8, 1, 0]), 0);
        expected[bits] += 1;
        assert_eq!(context.ledger().snapshot().late_batches, expected, "{behind} batches behind");
    }
}

#[test]
fn sources_that_are_not_there_have_no_heaps() {
    let context = context();
    assert_eq!(place(&context, [0, 8, 1, 0]), 0);
    for source in [3, 4, u64::MAX] {
        context.ledger().too_old(source, 5);
        assert_eq!((context.ledger().newest_batch(source), context.ledger().placed(source)), (-1, 0));
    }
    let snapshot = context.ledger().snapshot();
    assert_eq!((snapshot.placed, snapshot.newest, snapshot.too_old), (vec![0, 1, 0], vec![-1, 0, -1], vec![0; 3]));
}

/// What spead2 passes for a stream: one struct, always the same.
struct Stream {
    data: ChunkPlaceData,
    row: [i64; 4],
}

impl Stream {
    fn new() -> Self {
        let data = ChunkPlaceData {
            packet: ptr::null(),
            packet_size: 0,
            items: ptr::null(),
            chunk_id: -1,
            heap_index: 0,
            heap_offset: 0,
            batch_stats: ptr::null_mut(),
            extra: ptr::null_mut(),
            extra_offset: 0,
            extra_size: 0,
        };
        Self { data, row: [0; 4] }
    }

    fn place(&mut self, context: &Context, row: [i64; 4]) -> i64 {
        self.row = row;
        self.data.items = self.row.as_ptr();
        self.data.chunk_id = -1;
        // SAFETY: the function belongs to the context, and the row has the four items of the layout.
        unsafe { context.function()(&raw mut self.data, ChunkPlaceData::SIZE, context.argument()) };
        self.data.chunk_id
    }
}

#[test]
fn context_serves_the_first_stream_and_no_other() {
    const ROUNDS: i64 = 1000;
    let context = context();
    let mut own = Stream::new();
    assert_eq!(own.place(&context, [0, 8, 1, 0]), 0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut other = Stream::new();
                for time in 0..ROUNDS {
                    assert_eq!(other.place(&context, [time * 16, 8, 2, 0]), -1);
                }
            });
        }
        for time in 1..ROUNDS {
            assert_eq!(own.place(&context, [time * 16, 8, 1, 0]), time / 4);
        }
    });
    let snapshot = context.ledger().snapshot();
    assert_eq!((snapshot.placed, snapshot.duplicates), (vec![0, ROUNDS as u64, 0], vec![0; 3]));
    assert_eq!(snapshot.rejected[5], [0, 0, 0, 2 * ROUNDS as u64]);
}

#[test]
fn copies_of_another_stream_are_found_when_their_chunk_leaves_the_window() {
    let [first, second] = contexts();
    let duplicates = || [&first, &second].map(|context| context.ledger().snapshot().duplicates);
    for context in [&first, &second] {
        for (time, antenna) in [(0, 1), (16, 2), (64, 1), (64, 2)] {
            assert_eq!(place(context, [time, 8, antenna, 0]), time / 64);
        }
    }
    assert_eq!(place(&second, [32, 8, 1, 0]), 0);
    assert_eq!(duplicates(), [[0; 3]; 2].map(Vec::from));
    assert_eq!(place(&first, [128, 8, 1, 0]), 2);
    assert_eq!(duplicates(), [[0; 3]; 2].map(Vec::from));
    assert_eq!(place(&second, [144, 8, 1, 0]), 2);
    assert_eq!(duplicates(), [[0, 0, 0], [0, 1, 1]].map(Vec::from));
    // The last chunks never leave it.
    assert_eq!(place(&second, [128, 8, 1, 0]), 2);
    for context in [&first, &second] {
        // SAFETY: nobody calls the callback any more.
        unsafe { context.settle() };
    }
    let [found, more] = duplicates();
    assert_eq!([0, 1, 2].map(|source| found[source] + more[source]), [0, 3, 2]);
}

#[test]
fn heap_older_than_the_shared_window_is_too_old_whatever_spead2_knows() {
    let layout = Arc::new(Layout::new(LayoutSpec::from_toml(SPEC).unwrap()).unwrap());
    let group = Group::new(TimeRules::new(&layout, 2, 3, None, false).unwrap());
    let geometry = layout.geometry(&BTreeMap::new()).unwrap();
    let stats = Stats { base: 1, count: layout.reasons().len() };
    let member = || Context::new(&geometry, 2, Some(stats), Arc::clone(&group), None).unwrap();
    let (ahead, behind) = (member(), member());
    let mut counts = vec![0_u64; 1 + stats.count + Stats::MORE];
    let [too_old, rejected] = [1, 2].map(|i| 1 + stats.count + i);
    let mut stream = Stream::new();
    stream.data.batch_stats = counts.as_mut_ptr();
    for chunk in 0..5 {
        assert_eq!(stream.place(&ahead, [chunk * 64, 8, 1, 0]), chunk);
    }
    // It has placed chunk 4 itself, so spead2 would know.
    assert_eq!(stream.place(&ahead, [2 * 64, 8, 1, 0]), -1);
    assert_eq!((counts[too_old], counts[rejected]), (1, u64::MAX));
    counts.fill(0);
    // The other one never has placed any: spead2 would take a heap of any chunk.
    let mut stream = Stream::new();
    stream.data.batch_stats = counts.as_mut_ptr();
    for copies in 1..3 {
        assert_eq!(stream.place(&behind, [2 * 64, 8, 1, 0]), -1);
        assert_eq!(counts[too_old], copies);
        counts[rejected] = counts[rejected].wrapping_add(1); // as spead2 does then
        assert_eq!(counts[rejected], 0);
    }
    assert_eq!(stream.place(&behind, [3 * 64, 8, 1, 0]), 3);
    let ledgers = [&ahead, &behind].map(|context| context.ledger().snapshot());
    assert_eq!(ledgers.each_ref().map(|ledger| ledger.too_old[1]), [1, 2]);
    assert_eq!(ledgers.map(|ledger| (ledger.placed[1], ledger.duplicates[1])), [(6, 0), (3, 0)]);
}
