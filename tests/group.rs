//! What a group tells those who ask: its streams, and readers.

use std::collections::BTreeMap;
use std::ptr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use speadrx::abi::ChunkPlaceData;
use speadrx::callback::Context;
use speadrx::copies::Copies;
use speadrx::epochs::Cause;
use speadrx::filled::Filled;
use speadrx::group::Group;
use speadrx::layout::Layout;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;

mod calling;

const STEP: i64 = 16;
const BATCHES: i64 = 4;
const ANTENNAS: i64 = 3;
const WINDOW: u64 = 2;

/// A group of streams, of a layout whose time has these words more.
fn streams<const N: usize>(time: &str) -> (Arc<Group>, [Context; N]) {
    streams_that_jump(time, None)
}

/// Likewise, where a heap may be so many chunks ahead.
fn streams_that_jump<const N: usize>(time: &str, max_jump: Option<u64>) -> (Arc<Group>, [Context; N]) {
    let spec = format!(
        r#"
        heap_bytes = 8
        sources = "antenna"
        time = {{ item = 0x1600, step = {STEP}, batches = {BATCHES}{time} }}
        axes = [{{ name = "antenna", item = 0x4101, size = {ANTENNAS} }}]
        "#
    );
    let layout = Arc::new(Layout::new(LayoutSpec::from_toml(&spec).unwrap()).unwrap());
    let group = Group::new(TimeRules::new(&layout, WINDOW, WINDOW + 1, max_jump, true).unwrap());
    let geometry = layout.geometry(&BTreeMap::new()).unwrap();
    let contexts = std::array::from_fn(|_| Context::new(&geometry, WINDOW, None, Arc::clone(&group), None).unwrap());
    (group, contexts)
}

/// Place a heap: its chunk, or −1.
fn place(context: &Context, time: i64, antenna: i64) -> i64 {
    calling::call(context, &[time, 8, antenna], ChunkPlaceData::SIZE, ptr::null_mut()).chunk_id
}

#[test]
fn utc_is_that_of_the_epoch_and_another_one_needs_two_heaps() {
    let (group, [context]) = streams("");
    let utc = |index| group.epochs().utc(index);
    assert_eq!((place(&context, 0, 0), utc(0)), (0, None));
    for (told, known) in [(0, 0), (100, 0), (0, 0), (100, 0), (200, 0), (200, 200), (200, 200), (300, 200)] {
        group.note_utc(told);
        assert_eq!(utc(0), Some(known), "told {told}");
    }
    assert!(group.flush());
    assert_eq!((utc(1), group.epochs().len()), (None, 2));
    for (told, known) in [(300, Some(300)), (200, Some(300)), (300, Some(300))] {
        group.note_utc(told);
        assert_eq!((utc(0), utc(1), utc(2)), (Some(200), known, None), "told {told}");
    }
    assert!(place(&context, 64, 0) > 1 && group.flush());
    group.note_utc(300);
    assert_eq!(utc(2), Some(300), "as before");
}

#[test]
fn rate_is_measured_where_heaps_come_as_time_passes() {
    for is_live in [false, true] {
        let (group, [context]) = streams("");
        if is_live {
            group.set_live();
        }
        assert_eq!(group.measured_rate(), None);
        let begins = Instant::now();
        assert_eq!(place(&context, 0, 0), 0);
        let has_begun = Instant::now();
        assert_eq!(place(&context, 64, 0), 1);
        sleep(Duration::from_millis(501));
        let ends = Instant::now();
        assert_eq!(place(&context, 128, 0), 2);
        let has_ended = Instant::now();
        let Some(rate) = group.measured_rate() else {
            assert!(!is_live);
            continue;
        };
        assert!(is_live);
        let [low, high] = [(begins, has_ended), (has_begun, ends)].map(|(from, to)| 128.0 / (to - from).as_secs_f64());
        assert!(low * 0.999 < rate && rate < high * 1.001, "{low} {rate} {high}");
    }
}

#[test]
fn phases_are_those_that_heaps_show() {
    let (group, [context]) = streams(", phases = \"first\"");
    assert_eq!(group.phases(), [None; 3]);
    for (time, antenna) in [(32, 0), (35, 1), (31, 2)] {
        place(&context, time, antenna);
    }
    assert_eq!(group.phases(), [0, 3, -1].map(Some));
    let (group, []) = streams("");
    assert_eq!((group.phases(), group.chunk_step()), (vec![], 64));
}

#[test]
fn another_phase_is_believed_when_two_heaps_in_a_row_show_it() {
    let (group, [context]) = streams(", phases = \"first\"");
    for (time, antenna) in [(32, 0), (35, 1), (40, 2)] {
        place(&context, time, antenna);
    }
    assert_eq!(group.phases(), [0, 3, STEP / 2].map(Some));
    // The same heap again shows nothing new, nor do two that differ.
    for (time, phase) in [(53, 3), (53, 3), (70, 3), (86, 6)] {
        place(&context, time, 1);
        assert_eq!(group.phases(), [0, phase, STEP / 2].map(Some), "heap of {time}");
    }
}

#[test]
fn phases_that_are_known_need_not_be_asked_for_again() {
    let (group, [context]) = streams(", phases = \"first\"");
    for (time, antenna) in [(32, 0), (35, 1), (31, 2)] {
        assert_eq!(place(&context, time, antenna), 0);
    }
    assert_eq!([64_035, 64_051].map(|time| place(&context, time, 1)), [-1; 2]);
    // It is right again. Were the timeline asked, it would know that at once.
    assert_eq!((place(&context, 51, 1), group.estranged().sources()), (0, vec![1]));
    assert_eq!((place(&context, 64, 0), place(&context, 67, 1)), (1, 1));
    assert_eq!((place(&context, 128, 0), group.estranged().sources()), (2, vec![]));
}

#[test]
fn streams_ask_when_the_window_has_moved_and_only_then() {
    let (_, [first, second]) = streams("");
    let limits = || [&first, &second].map(|context| context.ledger().limit());
    assert_eq!(limits(), [0, 0]);
    assert_eq!((place(&first, 0, 0), limits()), (0, [4, 0]));
    assert_eq!((place(&second, 0, 1), limits()), (0, [4, 4]));
    assert_eq!((place(&second, 64, 1), limits()), (1, [0, 4]));
    assert_eq!((place(&first, 64, 0), limits()), (1, [4, 4]));
}

#[test]
fn what_is_played_in_a_loop_soon_comes_out_each_time() {
    let (group, [first, second]) = streams("");
    let mut epochs = Vec::new();
    for _round in 0..6 {
        for time in 0..WINDOW as i64 * BATCHES {
            for antenna in 0..ANTENNAS {
                assert!(place(if antenna == 0 { &first } else { &second }, time * STEP, antenna) >= 0);
                assert_eq!(group.begins_again(), group.epochs().len() > 1);
            }
        }
        epochs.push((group.epochs().len(), group.begins_again()));
    }
    // Copies may have come by other ways twice; once that is ruled out, each round begins anew.
    assert_eq!(epochs, [(1, false), (1, false), (2, true), (3, true), (4, true), (5, true)]);
    assert_eq!(group.epochs().get(1).map(|epoch| epoch.cause), Some(Cause::Restart));
}

#[test]
fn a_stream_knows_what_is_between_the_steps_of_time() {
    let is_aligned = |group: &Group| [32, 33].map(|stamp| group.is_aligned(stamp));
    for (time, expected) in
        [("", [true, false]), (", align = \"floor\"", [true; 2]), (", phases = \"first\"", [true; 2])]
    {
        let (group, [context]) = streams(time);
        assert_eq!(is_aligned(&group), expected, "{time}, before the first heap");
        assert_eq!((place(&context, 0, 0), is_aligned(&group)), (0, expected), "{time}");
    }
}

#[test]
fn the_window_follows_a_heap_as_far_as_the_user_says() {
    for (max_jump, ahead, expected) in [(Some(50), 50, 50), (Some(50), 51, -1), (None, 50, -1)] {
        let (_, [context]) = streams_that_jump("", max_jump);
        (0..ANTENNAS).for_each(|antenna| assert_eq!(place(&context, 0, antenna), 0));
        assert_eq!(place(&context, ahead * 64, 0), expected, "{ahead} chunks ahead of {max_jump:?}");
    }
}

#[test]
fn as_many_duplicates_as_there_are_slots_may_have_come_by_two_ways() {
    let (group, [context]) = streams("");
    let slots = WINDOW as i64 * BATCHES;
    // All come once, and once more; where two of each source have come for the third time, all has begun again.
    for batch in (0..slots).chain((0..slots).rev()).chain([1, 2]) {
        assert!(group.epochs().len() <= 1, "before batch {batch}");
        (0..ANTENNAS).for_each(|antenna| assert!(place(&context, batch * STEP, antenna) >= 0));
    }
    assert_eq!(group.epochs().len(), 2);
}

#[test]
fn who_has_begun_to_come_through_another_stream_is_waited_for() {
    let (_, [first, second]) = streams("");
    for chunk in 0..5 {
        for batch in chunk * BATCHES..(chunk + 1) * BATCHES {
            // The first one comes through both in turn: it opens the second stream for the others.
            assert_eq!(place(if batch % BATCHES == 0 { &first } else { &second }, batch * STEP, 0), chunk);
            if chunk < 4 && batch % BATCHES > 0 {
                (1..ANTENNAS).for_each(|antenna| assert_eq!(place(&second, batch * STEP, antenna), chunk));
            }
        }
    }
    // They are a chunk behind, as far as they may be.
    assert_eq!(place(&first, 5 * BATCHES * STEP, 0), -1);
    for chunk in [3, 4, 5] {
        (1..ANTENNAS).for_each(|antenna| assert_eq!(place(&second, chunk * BATCHES * STEP, antenna), chunk));
    }
}

#[test]
fn a_heap_from_the_start_is_no_wrap_long_before_one_however_far_the_window_may_jump() {
    // With 40 bits, it would be ahead by no more than the user allows.
    let (_, [context]) = streams_that_jump("", Some(1 << 35));
    (0..ANTENNAS).for_each(|antenna| assert!(place(&context, 3 << 38, antenna) >= 0));
    assert_eq!(place(&context, 0, 0), -1);
}

#[test]
fn copies_are_found_in_full_chunks_too() {
    let spec = r#"
        heap_bytes = 8
        sources = "antenna"
        time = { item = 0x1600, step = 16, batches = 16 }
        axes = [{ name = "antenna", item = 0x4101, size = 16 }]
    "#;
    let layout = Layout::new(LayoutSpec::from_toml(spec).unwrap()).unwrap();
    for slots in [1, 255, 256] {
        let mut copies = Copies::default();
        let mut found = Vec::new();
        for _member in 0..2 {
            copies.join(1);
        }
        for expected in [vec![], (0..slots).collect()] {
            let mut filled = Filled::new(&layout, 1);
            (0..slots).for_each(|slot| assert!(!filled.mark(0, slot)));
            filled.slide(1, 0, |_, row| copies.leave(5, row, |slot| found.push(slot)));
            assert_eq!(found, expected);
        }
    }
}
