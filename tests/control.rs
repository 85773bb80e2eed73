//! Control heaps: where they go, and what the group knows of them.

use std::collections::BTreeMap;
use std::ptr;

use speadrx::abi::ChunkPlaceData;
use speadrx::callback::{Context, Cookie};
use speadrx::epochs::Cause;
use speadrx::group::Group;
use speadrx::layout::Layout;
use speadrx::segment::Moment;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;
use speadrx::window::Window;

mod calling;

const SPEC: &str = r#"
heap_bytes = 8
sources = "antenna"
time = { item = 0x1600, step = 16, batches = 4 }
axes = [{ name = "antenna", item = 0x4101, size = 3 }]
"#;
const CHUNK: i64 = 64;
const COOKIE: Cookie = Cookie { flush: 1_000_002, end: 1_000_004, done: 1_000_006 };
const WINDOW: u64 = 2;
/// What is so many chunks ahead pushes all others out of the windows.
const REACH: i64 = 3;

/// A group whose time may begin again or not, and its streams.
fn streams<const N: usize>(resync: bool) -> (Arc<Group>, [Context; N]) {
    let layout = Arc::new(Layout::new(LayoutSpec::from_toml(SPEC).unwrap()).unwrap());
    let group = Group::new(TimeRules::new(&layout, WINDOW, REACH as u64, None, resync).unwrap());
    let geometry = layout.geometry(&BTreeMap::new()).unwrap();
    let context = |_| Context::new(&geometry, WINDOW, None, Arc::clone(&group), Some(COOKIE)).unwrap();
    let contexts = std::array::from_fn(context);
    (group, contexts)
}

fn at(chunk: u64, epoch_first: u64, epoch_offset: i64) -> Moment {
    Moment { chunk, batch: 0, epoch_first, epoch_offset, origin: 0, bits: 48 }
}

/// The row has the items of the layout, and that of the cookie.
fn call(context: &Context, row: [i64; 4]) -> i64 {
    calling::call(context, &row, ChunkPlaceData::SIZE, ptr::null_mut()).chunk_id
}

fn place(context: &Context, chunk: i64, antenna: i64) -> i64 {
    call(context, [chunk * CHUNK, 8, antenna, -1])
}

/// A control heap has no other item.
fn control(context: &Context, value: i64) -> i64 {
    call(context, [-1, 1, -1, value])
}

#[test]
fn flush_goes_past_all_windows_and_time_goes_on_after_it() {
    let (group, [context]) = streams(true);
    assert!(!group.flush());
    assert_eq!((group.control(), control(&context, COOKIE.flush)), (None, -1));
    assert_eq!((place(&context, 7, 0), place(&context, 8, 0)), (7, 8));
    assert!(group.flush());
    assert_eq!(group.control(), Some(8 + REACH as u64));
    assert_eq!(control(&context, COOKIE.flush), 8 + REACH);
    assert!(!group.flush(), "no window has a chunk");
    assert_eq!(group.control(), Some(8 + REACH as u64));
    assert_eq!(place(&context, 9, 0), 9 + REACH);
    let epochs = group.epochs();
    assert_eq!(
        (epochs.len(), epochs.get(1).map(|epoch| (epoch.first as i64, epoch.cause))),
        (2, Some((9 + REACH, Cause::Flush)))
    );
    assert_eq!(epochs.get(1).map(|epoch| epoch.true_chunk(epoch.first)), Some(9));
    // The same control heap again, as if it had been overtaken: data have pushed out all that it should have.
    assert_eq!((place(&context, 10, 0), control(&context, COOKIE.flush)), (10 + REACH, -1));
    let snapshot = context.ledger().snapshot();
    assert_eq!((snapshot.placed, snapshot.rejected.concat().iter().sum::<u64>()), (vec![4, 0, 0], 0));
}

#[test]
fn window_begins_again_right_after_a_control_heap() {
    let layout = Layout::new(LayoutSpec::from_toml(SPEC).unwrap()).unwrap();
    let mut window = Window::new(&layout, WINDOW);
    assert_eq!(window.follow(&at(7, 0, 0)), Some(6));
    assert_eq!(window.clear(10), Some(5));
    assert_eq!((window.clear(10), window.clear(3)), (None, None), "it is beyond these");
    for too_old in [7, 9, 10] {
        assert_eq!((window.follow(&at(too_old, 0, 0)), window.limit, window.first_chunk), (None, 0, 11));
    }
    assert_eq!(window.follow(&at(11, 11, 3)), Some(0));
    assert_eq!((window.limit, window.first_chunk, window.newest()), (4, 11, 0));
    assert_eq!(window.base, (11 - 3) * CHUNK as u64);
}

#[test]
fn chunks_come_out_when_the_last_stream_has_ended() {
    let (group, [first, second, third]) = streams(true);
    for context in [&first, &second, &third] {
        assert_eq!(place(context, 7, 0), 7);
    }
    assert_eq!(control(&first, COOKIE.end), -1);
    assert_eq!(control(&first, COOKIE.end), -1, "it has ended before");
    assert_eq!(control(&second, COOKIE.end), -1);
    assert_eq!(place(&third, 8, 1), 8, "it goes on");
    assert_eq!(place(&first, 8, 0), -1);
    assert_eq!(control(&third, COOKIE.end), 8 + REACH);
    assert_eq!(group.control(), Some(8 + REACH as u64));
    assert_eq!([&first, &second, &third].map(|context| context.ledger().snapshot().after_end), [1, 0, 0]);
    assert_eq!([&first, &second, &third].map(|context| context.ledger().snapshot().placed[0]), [1, 1, 1]);
}

#[test]
fn done_is_counted_and_changes_nothing() {
    let (group, [first, second]) = streams(true);
    assert_eq!(place(&first, 7, 0), 7);
    for (i, context) in [&first, &second, &first].into_iter().enumerate() {
        assert_eq!(group.done(), i as u64);
        assert_eq!(control(context, COOKIE.done), -1);
    }
    assert_eq!(group.done(), 3);
    assert_eq!((group.epochs().len(), place(&first, 7, 1)), (1, 7));
    assert_eq!(first.ledger().snapshot().rejected.concat().iter().sum::<u64>(), 0);
}

#[test]
fn other_values_of_the_item_make_no_control_heap() {
    let (group, [context]) = streams(true);
    assert_eq!(call(&context, [0, 8, 0, COOKIE.flush + 1]), 0);
    assert_eq!((control(&context, COOKIE.flush + 1), control(&context, -1)), (-1, -1));
    assert_eq!((group.done(), group.control()), (0, None));
    assert_eq!(context.ledger().snapshot().rejected.concat().iter().sum::<u64>(), 2);
}

#[test]
fn time_that_may_not_begin_again_is_refused() {
    let (group, [context]) = streams(false);
    let send = |from: i64| {
        for chunk in from..from + 20 {
            for antenna in [0, 1, 2] {
                place(&context, chunk, antenna);
            }
        }
    };
    send(1000);
    assert_eq!(group.refusals(), 0);
    send(0);
    let refusals = group.refusals();
    assert!(refusals > 0);
    send(1020);
    send(0);
    assert!(group.refusals() > refusals.max(1));
    assert_eq!(group.epochs().len(), 1);
}

/// Both streams have chunks 7 and 8, each of its own antennas.
fn two_streams_at_8() -> (Arc<Group>, [Context; 2]) {
    let (group, streams) = streams(true);
    for chunk in [7, 8] {
        for (stream, antenna) in [(0, 0), (0, 1), (1, 2)] {
            assert_eq!(place(&streams[stream], chunk, antenna), chunk);
        }
    }
    (group, streams)
}

#[test]
fn one_control_heap_serves_all_streams_of_a_group() {
    let (group, [first, second]) = two_streams_at_8();
    assert!(group.flush());
    assert_eq!(control(&first, COOKIE.flush), 8 + REACH);
    // The second's chunks have been pushed out, or soon will be: it has nothing to do with them any more.
    place(&second, 8, 2);
    assert_eq!(control(&second, COOKIE.flush), -1);
    let snapshot = second.ledger().snapshot();
    assert_eq!((snapshot.placed[2], snapshot.duplicates[2], snapshot.too_old[2]), (3, 0, 1));
}

#[test]
fn control_heap_that_another_stream_has_overtaken_is_not_placed() {
    let (group, [first, second]) = two_streams_at_8();
    assert!(group.flush());
    // spead2 may have moved on from there for the second stream too, which has had no heap since.
    for antenna in [0, 1] {
        assert_eq!(place(&first, 9, antenna), 9 + REACH);
    }
    assert_eq!(control(&second, COOKIE.flush), -1);
}

#[test]
fn stream_that_was_left_behind_stays_so_after_a_flush() {
    let (group, [first, second]) = two_streams_at_8();
    for chunk in 9..12 {
        for antenna in [0, 1] {
            assert_eq!(place(&first, chunk, antenna), chunk);
        }
    }
    assert!(group.flush());
    // Time stands still until a newer heap comes, and yet the window is not where the stream saw it last.
    for _copy in 0..2 {
        place(&second, 8, 2);
    }
    let snapshot = second.ledger().snapshot();
    assert_eq!((snapshot.placed[2], snapshot.duplicates[2], snapshot.too_old[2]), (4, 0, 2));
}
