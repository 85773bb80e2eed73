//! What each fault costs: histories of heaps, each of which has broken a receiver.

use std::cell::Cell;

use proptest::prelude::*;
use speadrx::epochs::Cause;
use speadrx::layout::Layout;
use speadrx::spec::LayoutSpec;
use speadrx::timeline::{Sighting, Verdict, Witness};

mod senders;

use senders::{LATER, Outcome, RANGE, Receiver, World, layout};

/// Where timestamps of 40 bits wrap.
const FEW: i128 = 1 << 40;

/// Chunks of 8 batches of 4096 ticks.
fn receiver(sources: u64, resync: bool, tick_rate: Option<f64>) -> Receiver {
    Receiver::new(&layout(4096, 8, sources, tick_rate), 4, 1, resync, tick_rate.is_some())
}

/// Batches of sources that go on after an event; each may lose so many heaps.
fn must_go_on(receiver: &mut Receiver, from: i128, bound: usize) {
    let lost = receiver.batches(from..from + 400);
    assert!(lost.iter().all(|&lost| lost <= bound), "lost {lost:?}");
}

/// Heaps lost by all sources but those that are wrong, which send what they want.
fn lost(
    receiver: &mut Receiver,
    is_wrong: impl Fn(usize) -> bool,
    batches: i128,
    time: impl Fn(usize, i128) -> i128,
) -> Vec<usize> {
    let mut lost = vec![0; receiver.sources()];
    for batch in 0..batches {
        for (source, lost) in lost.iter_mut().enumerate() {
            let streams = receiver.streams();
            let outcome = receiver.heap(time(source, batch) * 4096, source, source % streams);
            *lost += usize::from(!is_wrong(source) && !matches!(outcome, Outcome::Received(..)));
        }
        receiver.pass(4096);
    }
    lost
}

#[test]
fn a_restart_costs_a_heap_or_two() {
    for sources in [1, 4, 80] {
        for at in [0, LATER - 1000, LATER * 2, LATER - 20, 5] {
            let mut receiver = receiver(sources, true, Some(1e9));
            must_go_on(&mut receiver, LATER, 0);
            must_go_on(&mut receiver, at, 2);
            assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart], "{sources} sources, restart at {at}");
        }
    }
}

#[test]
fn a_restart_with_the_clock_beyond_half_the_range_has_true_times() {
    // Nearest to the newest time, a restart at 0 would be a jump ahead.
    for tick_rate in [None, Some(1e9)] {
        let mut receiver = receiver(4, true, tick_rate);
        must_go_on(&mut receiver, (3 << 46) / 4096, 0);
        must_go_on(&mut receiver, 0, 1);
        assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
    }
}

#[test]
fn a_heap_from_before_time_zero_is_nowhere_after_a_restart() {
    // Chunk IDs of the new epoch are those that its time would have had in the old one.
    for stream in 0..2 {
        let mut receiver = Receiver::new(&layout(4096, 8, 2, None), 4, 2, true, false);
        for (time, source) in [(RANGE - 20 * 8 * 4096, 0), (0, 0), (4096, 0)] {
            receiver.heap(time, source, stream);
        }
        assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
        for chunk in 1..20 {
            let outcome = receiver.heap(RANGE - chunk * 8 * 4096, 1, stream);
            assert!(!matches!(outcome, Outcome::Received(..)), "{chunk} chunks before: {outcome:?}");
        }
    }
}

#[test]
fn without_resync_time_never_goes_back() {
    let mut receiver = receiver(4, false, None);
    must_go_on(&mut receiver, LATER, 0);
    assert_eq!(receiver.batches(0..400), [400; 4]);
    assert_eq!(receiver.timeline.refusals(), 1);
    assert_eq!(receiver.heap(400 * 4096, 0, 0), Outcome::Rejected(Verdict::Backward));
    // One of them has wrong heaps; all the same the right time is right still, and a jump ahead is followed.
    for wrong in 0..2 {
        assert_eq!(receiver.heap((LATER * 9 + wrong) * 4096, 1, 0), Outcome::Rejected(Verdict::Implausible));
    }
    must_go_on(&mut receiver, LATER + 460, 1);
    must_go_on(&mut receiver, LATER * 2, 1);
    assert_eq!(receiver.causes(), [Cause::Start]);
    let Outcome::Received(chunk, time) = receiver.heap((LATER * 2 + 399) * 4096, 0, 0) else { panic!("lost") };
    assert_eq!(chunk, time / receiver.chunk_step());
}

#[test]
fn without_resync_a_jump_that_no_clock_explains_has_an_epoch_and_true_times() {
    let mut receiver = receiver(4, false, Some(1e9));
    must_go_on(&mut receiver, LATER, 0);
    must_go_on(&mut receiver, LATER * 2, 2);
    assert_eq!((receiver.causes(), receiver.timeline.refusals()), (vec![Cause::Start, Cause::Restart], 0));
    let Outcome::Received(chunk, time) = receiver.heap((LATER * 2 + 399) * 4096, 0, 0) else { panic!("lost") };
    assert_eq!((chunk, time), ((LATER * 2 + 399) / 8, (LATER * 2 + 399) * 4096));
}

#[test]
fn without_resync_those_who_are_late_are_not_refused() {
    let mut receiver = receiver(4, false, None);
    must_go_on(&mut receiver, LATER, 0);
    // Behind the window, but no further than it is long.
    let time = |source, batch| LATER + 400 + batch - if source < 3 { 50 } else { 0 };
    lost(&mut receiver, |_| true, 10, time);
    assert_eq!((receiver.timeline.refusals(), receiver.causes()), (0, vec![Cause::Start]));
}

#[test]
fn what_was_known_of_the_clock_is_forgotten_with_the_time() {
    // No more time passes than is sent. As the clock was before the first restart, it would explain the last jump.
    let mut receiver = receiver(4, true, Some(1e9));
    for (from, epochs) in [(LATER, 1), (0, 2), (10_000, 3)] {
        must_go_on(&mut receiver, from, 2);
        assert_eq!(receiver.causes().len(), epochs, "from {from}");
    }
}

#[test]
fn one_heap_of_each_source_does_not_make_time_begin_again() {
    // Behind the window, or between the steps of time, where those that have wrapped may be. Said twice, it does.
    for (step, off, expected) in
        [(4096, -40 * 4096, Outcome::TooOld), (4095, 7, Outcome::Rejected(Verdict::Misaligned))]
    {
        let mut receiver = Receiver::new(&layout(step, 8, 4, None), 4, 1, true, false);
        must_go_on(&mut receiver, LATER, 0);
        for source in 0..4 {
            let outcome = receiver.heap((LATER + 400) * i128::from(step) + off, source, 0);
            assert_eq!((outcome, receiver.causes()), (expected, vec![Cause::Start]), "{off} ticks off");
        }
        (0..4).for_each(|source| _ = receiver.heap((LATER + 401) * i128::from(step) + off, source, 0));
        assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart], "{off} ticks off");
    }
}

#[test]
fn a_heap_is_late_up_to_two_windows() {
    let mut receiver = receiver(4, true, None);
    must_go_on(&mut receiver, LATER, 0);
    let newest = (LATER + 399) / 8;
    for (behind, expected) in [(7, Outcome::TooOld), (8, Outcome::Rejected(Verdict::Implausible))] {
        assert_eq!(receiver.heap((newest - behind) * 8 * 4096, 0, 0), expected, "{behind} chunks behind");
    }
}

/// Four sources, whose first heap says where steps begin.
fn layout_that_begins_anywhere() -> Layout {
    let spec = r#"
        heap_bytes = 8
        sources = "antenna"
        time = { item = 0x1600, step = 4096, batches = 8, origin = "first" }
        axes = [{ name = "antenna", item = 0x4101, size = 4 }]
    "#;
    Layout::new(LayoutSpec::from_toml(spec).unwrap()).unwrap()
}

#[test]
fn without_resync_time_begins_again_only_where_the_first_heap_was_wrong() {
    let layout = layout_that_begins_anywhere();
    let mut receiver = Receiver::new(&layout, 4, 1, false, false);
    receiver.heap(LATER * 4096 + 7, 0, 0);
    must_go_on(&mut receiver, LATER, 2);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
    assert_eq!(receiver.batches(0..400), [400; 4]);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
}

#[test]
fn a_restart_waits_for_most_sources_or_for_a_second_heap() {
    let mut sources = receiver(4, true, None);
    must_go_on(&mut sources, LATER, 0);
    assert_eq!(sources.batches(0..10), [1, 1, 0, 0], "the third is one of most");
    let mut only = receiver(1, true, None);
    must_go_on(&mut only, LATER, 0);
    assert_eq!(only.heap(LATER * 3 * 4096, 0, 0), Outcome::Rejected(Verdict::Implausible));
    must_go_on(&mut only, LATER + 400, 0);
    assert_eq!(only.batches(0..10), [1]);
}

#[test]
fn who_is_wrong_twice_is_named_and_who_lags_is_not() {
    let mut receiver = receiver(4, true, None);
    must_go_on(&mut receiver, LATER, 0);
    for named in [vec![], vec![3], vec![3]] {
        receiver.heap((LATER * 5 + named.len() as i128) * 4096, 3, 0);
        assert_eq!(receiver.timeline.estranged().sources(), named);
    }
    must_go_on(&mut receiver, LATER + 400, 0);
    assert!(receiver.timeline.estranged().sources().is_empty());
    let mut receiver = Receiver::new(&layout(4096, 8, 2, None), 4, 2, true, false);
    must_go_on(&mut receiver, LATER, 0);
    // The stream of the second is held up for five chunks.
    (400..440).for_each(|batch| _ = receiver.heap((LATER + batch) * 4096, 0, 0));
    for from in (LATER + 440..LATER + 2440).step_by(20) {
        lost(&mut receiver, |_| true, 20, |source, batch| from + batch - if source == 1 { 40 } else { 0 });
        assert!(receiver.timeline.estranged().sources().is_empty());
    }
}

#[test]
fn timestamps_of_40_bits_wrap_also_within_a_gap() {
    let mut receiver = receiver(4, true, Some(1e9));
    let mut now = 0;
    let mut run = |from: i128, batches: i128| {
        let mut lost = vec![0; 4];
        for batch in from..from + batches {
            receiver.pass((batch - now) * 4096);
            now = batch;
            for (source, lost) in lost.iter_mut().enumerate() {
                // Half of them are a batch ahead.
                let time = (batch + i128::from(source > 1)) * 4096;
                let outcome = receiver.heap(time % FEW, source, 0);
                *lost += usize::from(outcome != Outcome::Received(time / receiver.chunk_step(), time));
            }
        }
        lost
    };
    let wrap = FEW / 4096;
    assert_eq!(run(wrap - 200, 400), [0; 4]);
    for from in [wrap * 14 / 10, wrap * 18 / 10, wrap * 2 - 1] {
        let lost = run(from, 100);
        assert_eq!(lost, [1, 1, 0, 0], "from {from}");
    }
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn time_that_few_sources_have_shown_has_no_gap() {
    // Nothing was lost before the others: it was the first source that was wrong.
    let mut receiver = receiver(4, true, None);
    (0..3).for_each(|batch| _ = receiver.heap((LATER + batch) * 4096, 0, 0));
    for source in 1..4 {
        (0..4).for_each(|batch| _ = receiver.heap((LATER * 2 + batch) * 4096, source, 0));
    }
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
}

#[test]
fn where_the_rest_are_silent_time_goes_to_where_most_are() {
    let mut receiver = receiver(5, true, None);
    must_go_on(&mut receiver, LATER, 0);
    for batch in 0..400 {
        for (source, at) in [(0, 0), (1, 5000), (2, 5000)] {
            receiver.heap((at + batch) * 4096, source, 0);
        }
    }
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
    assert!(matches!(receiver.heap(5400 * 4096, 1, 0), Outcome::Received(..)));
}

#[test]
fn without_resync_the_rest_go_on_where_most_have_gone_back() {
    let mut receiver = receiver(5, false, None);
    must_go_on(&mut receiver, LATER, 0);
    let time = |source, batch| if source == 2 { LATER + 400 + batch } else { batch };
    assert_eq!(lost(&mut receiver, |source| source != 2, 400, time), [0; 5]);
}

#[test]
fn a_wrap_costs_nothing() {
    for resync in [false, true] {
        let mut receiver = receiver(80, resync, Some(1e9));
        must_go_on(&mut receiver, RANGE / 4096 - 200, 0);
        assert_eq!(receiver.causes(), [Cause::Start]);
    }
}

#[test]
fn a_start_after_a_wrap_is_believed_at_the_second_heap() {
    // 2^48 is no multiple of the step: how often timestamps have wrapped can be told from them.
    for (step, wraps) in [(3, 1), (3, 2), (835_584, 40), (1_000_003, 1000), (96, 2)] {
        let mut receiver = Receiver::new(&layout(step, 8, 4, None), 4, 1, true, false);
        let from = wraps * RANGE / i128::from(step) + 1000;
        let lost = receiver.batches(from..from + 400);
        assert_eq!(lost, [1, 0, 0, 0], "step {step}, {wraps} wraps");
        let Outcome::Received(_, time) = receiver.heap((from + 399) * i128::from(step), 0, 0) else { panic!("lost") };
        assert_eq!(time, (from + 399) * i128::from(step));
    }
}

#[test]
fn a_wrong_first_heap_is_outvoted() {
    for sources in [1, 4, 80] {
        for wrong in [0, 1 << 40, 1 << 47, RANGE - 4096] {
            let mut receiver = receiver(sources, true, None);
            assert!(matches!(receiver.heap(wrong, 0, 0), Outcome::Received(..)));
            must_go_on(&mut receiver, LATER + 3, 2);
        }
    }
}

#[test]
fn a_mad_source_costs_the_others_nothing() {
    // Its clock is off by a constant, jumps, or drifts to either side.
    let madness: [fn(i128) -> i128; 7] = [
        |batch| batch + 100_000,
        |batch| batch - 100_000,
        |batch| (batch * 40_503) % (1 << 30),
        |batch| batch + batch / 4,
        |batch| batch - batch / 4,
        |batch| batch + batch / 40,
        |_| 0,
    ];
    for (i, mad) in madness.into_iter().enumerate() {
        for tick_rate in [None, Some(1e9)] {
            let mut receiver = receiver(80, true, tick_rate);
            let time = |source, batch| LATER + if source == 7 { mad(batch) } else { batch };
            assert_eq!(lost(&mut receiver, |source| source == 7, 800, time), [0; 80], "madness {i}");
            assert_eq!(receiver.causes(), [Cause::Start]);
            assert_eq!(receiver.timeline.estranged().sources(), [7], "madness {i}");
        }
    }
}

#[test]
fn bursts_and_repeats_give_no_weight() {
    // One of four has a wrong clock and sends 64 heaps in a row, or the same one again and again.
    for time in [|i: i128| LATER * 3 + i, |_| LATER * 3, |i| LATER + 48 + i % 3] {
        let mut receiver = receiver(4, true, None);
        must_go_on(&mut receiver, LATER, 0);
        let mut lost = 0;
        for batch in 0..400 {
            for source in 0..3 {
                let outcome = receiver.heap((LATER + 400 + batch) * 4096, source, 0);
                lost += usize::from(!matches!(outcome, Outcome::Received(..)));
            }
            (0..64).for_each(|i| _ = receiver.heap(time(batch * 64 + i) * 4096, 3, 0));
        }
        assert_eq!(lost, 0);
        assert_eq!(receiver.causes(), [Cause::Start]);
    }
}

#[test]
fn a_minority_ahead_takes_nobody_along() {
    for (sources, wrong) in [(5, 2), (16, 2), (16, 7), (80, 10), (80, 39)] {
        for ahead in [16, 24, 48, 100, 5000] {
            for drifts in [false, true] {
                let mut receiver = receiver(sources, true, None);
                let is_wrong = |source| source < wrong;
                let off = |batch: i128| if drifts { (batch / 50).min(ahead) } else { ahead };
                let time = |source, batch| LATER + batch + if is_wrong(source) { off(batch) } else { 0 };
                let lost = lost(&mut receiver, is_wrong, 6000, time);
                assert!(
                    lost.iter().all(|&lost| lost <= 2),
                    "{wrong} of {sources} ahead by {ahead}, {drifts}: {lost:?}"
                );
            }
        }
    }
}

#[test]
fn one_percent_of_heaps_from_up_to_two_windows_ahead_are_all_that_is_lost() {
    let mut receiver = receiver(16, true, None);
    let mut dice = 1_u64;
    let mut lost = [0; 16];
    for batch in 0..20_000 {
        for (source, lost) in lost.iter_mut().enumerate() {
            dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let off = if (dice >> 40) % 100 == 0 { i128::from(dice >> 50) % 64 } else { 0 };
            let outcome = receiver.heap((LATER + batch + off) * 4096, source, 0);
            *lost += usize::from(off == 0 && !matches!(outcome, Outcome::Received(..)));
        }
    }
    assert!(lost.iter().all(|&lost| lost <= 2), "lost {lost:?}");
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn an_outage_that_agrees_with_the_clock_is_no_restart() {
    // Longer than half the range of timestamps, too: nearest to the newest time, that would be in the past.
    for chunks in [5, 100, 1 << 20, 3 << 31] {
        let mut receiver = receiver(80, false, Some(1e9));
        must_go_on(&mut receiver, LATER, 0);
        receiver.pass(chunks * 8 * 4096);
        must_go_on(&mut receiver, LATER + 400 + chunks * 8, 1);
        assert_eq!(receiver.causes(), [Cause::Start]);
    }
}

#[test]
fn more_time_than_can_have_passed_is_a_restart() {
    let mut receiver = receiver(80, true, Some(1e9));
    must_go_on(&mut receiver, LATER, 0);
    receiver.pass(100 * 8 * 4096);
    must_go_on(&mut receiver, LATER + 400 + 200 * 8, 1);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
}

#[test]
fn an_outage_without_a_clock_is_no_restart_either() {
    let mut receiver = receiver(80, true, None);
    must_go_on(&mut receiver, LATER, 0);
    must_go_on(&mut receiver, LATER * 3, 1);
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn a_stream_that_was_held_up_catches_up_with_the_clock() {
    // While it was, the kernel kept what it could, and dropped the rest.
    let mut receiver = receiver(80, true, Some(1e9));
    must_go_on(&mut receiver, LATER, 0);
    receiver.pass(10_000 * 4096);
    must_go_on(&mut receiver, LATER + 400, 0);
    must_go_on(&mut receiver, LATER + 800 + 10_000, 1);
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn after_an_outage_one_wrong_source_is_not_believed() {
    let mut receiver = receiver(4, true, Some(1e9));
    must_go_on(&mut receiver, LATER, 0);
    receiver.pass(1000 * 4096);
    for heap in 0..64 {
        receiver.heap((LATER + 400 + 1060 + heap) * 4096, 3, 0);
    }
    let time = |source, batch| LATER + 400 + 1000 + batch + if source == 3 { 124 } else { 0 };
    let lost = lost(&mut receiver, |source| source == 3, 400, time);
    assert!(lost.iter().all(|&lost| lost <= 1), "lost {lost:?}");
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn sources_that_fall_silent_do_not_hold_up_the_rest() {
    for alive in [1, 2, 5, 39] {
        let mut receiver = receiver(80, true, Some(1e9));
        must_go_on(&mut receiver, LATER, 0);
        let mut lost = 0;
        for batch in 400..1200 {
            for source in 0..alive {
                let outcome = receiver.heap((LATER + batch) * 4096, source, 0);
                lost += usize::from(!matches!(outcome, Outcome::Received(..)));
            }
            receiver.pass(4096);
        }
        assert_eq!(lost, 0, "of {alive}");
        assert_eq!(receiver.causes(), [Cause::Start]);
    }
}

#[test]
fn a_member_that_was_silent_is_back_at_once() {
    // Source 0 has a stream of its own. It goes wrong alone while the others are silent.
    for silence in [20, 2000] {
        let mut receiver = Receiver::new(&layout(4096, 8, 4, None), 4, 2, true, false);
        must_go_on(&mut receiver, LATER, 0);
        for batch in 0..20 {
            receiver.heap((LATER * 4 + batch) * 4096, 0, 0);
        }
        let mut lost = 0;
        for batch in 400 + silence..3400 {
            for source in 1..4 {
                let outcome = receiver.heap((LATER + batch) * 4096, source, 1);
                lost += usize::from(!matches!(outcome, Outcome::Received(..)));
            }
        }
        assert!(lost <= 3, "{lost} lost after {silence}");
    }
}

#[test]
fn a_stream_of_a_group_that_lags_with_half_of_the_sources_does_not_restart_time() {
    // The second stream stands still while the first goes on, and then reads all that the kernel has kept, at once.
    let mut receiver = Receiver::new(&layout(4096, 8, 4, None), 4, 2, true, false);
    must_go_on(&mut receiver, LATER, 0);
    for batch in 400..1000 {
        for source in [0, 2] {
            assert!(matches!(receiver.heap((LATER + batch) * 4096, source, 0), Outcome::Received(..)));
        }
    }
    for batch in 400..1000 {
        for source in [1, 3] {
            let outcome = receiver.heap((LATER + batch) * 4096, source, 1);
            assert!(!matches!(outcome, Outcome::Rejected(_)), "it is late, not wrong");
        }
    }
    must_go_on(&mut receiver, LATER + 1000, 0);
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn what_was_flushed_is_too_old_and_what_comes_next_is_received() {
    let mut receiver = receiver(4, true, None);
    must_go_on(&mut receiver, LATER, 0);
    receiver.flush();
    // The newest batch was number 399 of its run: in the last place of its chunk but none.
    assert_eq!(receiver.heap((LATER + 399) * 4096, 1, 0), Outcome::TooOld);
    must_go_on(&mut receiver, LATER + 400, 0);
    // A second flush at once has nothing to do.
    receiver.flush();
    receiver.flush();
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Flush, Cause::Flush]);
}

#[test]
fn who_goes_on_with_a_flushed_chunk_has_not_gone_back() {
    let mut receiver = receiver(4, true, None);
    must_go_on(&mut receiver, LATER, 0);
    receiver.batches(LATER + 400..LATER + 404);
    receiver.flush();
    assert_eq!(receiver.batches(LATER + 404..LATER + 408), [4; 4], "the chunk has been given out");
    must_go_on(&mut receiver, LATER + 408, 0);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Flush]);
}

#[test]
fn a_capture_that_is_played_again_comes_out_again() {
    // Longer than a window, but not than two; and from before what a flush has given out.
    for (chunks, flushes) in [(5, false), (6, false), (7, false), (2, true), (4, true)] {
        let mut receiver = receiver(4, true, None);
        for play in 0..20 {
            let lost = receiver.batches(0..chunks * 8);
            assert!(play == 0 || lost.iter().all(|&lost| lost <= 2), "play {play} of {chunks} chunks: {lost:?}");
            if flushes {
                receiver.flush();
            }
        }
    }
}

#[test]
fn sources_that_are_restarted_one_after_the_other_restart_time_once() {
    let mut receiver = receiver(80, true, None);
    must_go_on(&mut receiver, LATER, 0);
    // Half of the sources, and one more, are restarted first; a while later the others.
    let time = |source, batch: i128| if source <= 40 || batch >= 30 { batch } else { LATER + 400 + batch };
    let lost = lost(&mut receiver, |source| source > 40, 200, time);
    assert!(lost.iter().all(|&lost| lost <= 1), "lost {lost:?}");
    must_go_on(&mut receiver, 200, 0);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
}

#[test]
fn what_one_mad_source_did_while_all_others_were_silent_is_undone() {
    let mut receiver = receiver(80, true, None);
    must_go_on(&mut receiver, LATER, 0);
    for batch in 0..200 {
        receiver.heap((LATER * 4 + batch) * 4096, 7, 0);
    }
    let time = |source, batch| if source == 7 { LATER * 4 + 200 + batch } else { LATER + 400 + batch };
    let lost = lost(&mut receiver, |source| source == 7, 400, time);
    assert!(lost.iter().all(|&lost| lost <= 2), "lost {lost:?}");
}

#[test]
fn equal_halves_do_not_flap() {
    for sources in [2, 4, 80] {
        for resync in [true, false] {
            let mut receiver = receiver(sources, resync, None);
            must_go_on(&mut receiver, LATER, 0);
            // One half goes on; the other has a time of its own.
            let time = |source, batch| if source % 2 == 0 { LATER + 400 + batch } else { LATER * 5 + batch };
            let lost = lost(&mut receiver, |source| source % 2 == 1, 2000, time);
            assert_eq!(lost.iter().sum::<usize>(), 0, "{sources} sources, resync {resync}");
            assert_eq!(receiver.causes(), [Cause::Start]);
            let estranged: Vec<u64> = (0..sources).filter(|source| source % 2 == 1).collect();
            assert_eq!(receiver.timeline.estranged().sources(), estranged);
        }
    }
}

#[test]
fn a_restart_after_a_wrap_may_make_sense_only_as_time_was_unwrapped() {
    // 2^48 is no multiple of the step: so long after the wrap, timestamps by themselves are not multiples of it.
    let mut receiver = Receiver::new(&layout(3, 8, 4, None), 4, 1, true, false);
    let begin = RANGE / 3 - 100;
    must_go_on(&mut receiver, begin, 0);
    must_go_on(&mut receiver, begin + 400, 0);
    let from = begin + 300;
    assert!((from * 3 % RANGE) % 3 != 0);
    must_go_on(&mut receiver, from, 2);
}

#[test]
fn an_outage_across_a_wrap_is_no_restart_where_timestamps_show_it() {
    // 2^48 is no multiple of the step, so that no timestamp after the wrap could be that of a restart.
    let mut receiver = Receiver::new(&layout(3000, 8, 4, None), 4, 1, true, false);
    let wrap = RANGE / 3000 + 1;
    must_go_on(&mut receiver, wrap - 500, 0);
    must_go_on(&mut receiver, wrap + 220, 1);
    assert_eq!(receiver.causes(), [Cause::Start]);
    // Without that, a restart is far more likely.
    let mut receiver = self::receiver(4, true, None);
    must_go_on(&mut receiver, RANGE / 4096 - 500, 0);
    must_go_on(&mut receiver, RANGE / 4096 + 220, 2);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
}

/// Sources that are read in turn, so many heaps of each, for some rounds: what each good one has lost.
fn lost_in_bursts(
    receiver: &mut Receiver,
    (burst, rounds): (i128, i128),
    from: i128,
    is_good: impl Fn(usize) -> bool,
    mut time: impl FnMut(usize, i128) -> i128,
) -> Vec<usize> {
    let mut lost = vec![0; receiver.sources()];
    for round in 0..rounds {
        for (source, lost) in lost.iter_mut().enumerate() {
            for batch in from + round * burst..from + (round + 1) * burst {
                let time = time(source, batch);
                let outcome = receiver.heap(time * 4096, source, 0);
                let counts = is_good(source) && time == batch;
                *lost += usize::from(counts && !matches!(outcome, Outcome::Received(..)));
            }
        }
    }
    lost
}

/// A window that just holds what bursts of 64 make sources differ by.
fn receiver_of_bursts(sources: u64) -> Receiver {
    Receiver::new(&layout(4096, 8, sources, None), 10, 1, true, false)
}

#[test]
fn a_wrong_source_that_is_heard_first_costs_the_others_a_heap() {
    // The others come late for its window, and each of them has been heard once when they are most.
    for (sources, ahead) in [(4, 48), (16, 48), (16, 41)] {
        let mut receiver = receiver(sources, true, None);
        let time = |source, batch| LATER + 3 + batch + if source == 0 { ahead } else { 0 };
        let lost = lost(&mut receiver, |source| source == 0, 100, time);
        assert_eq!(lost.iter().max(), Some(&1), "{sources} sources: {lost:?}");
    }
}

#[test]
fn garbage_ahead_costs_sources_little_that_are_read_in_bursts() {
    // Heaps of any time up to two windows ahead, in all parts of bursts; also two in a row.
    for sources in [4, 16] {
        for every in [101, 377] {
            let mut receiver = receiver_of_bursts(sources);
            let mut dice = 1_u64;
            let time = |_, batch| {
                dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                batch + if (dice >> 40) % every == 0 { 20 + i128::from(dice >> 50) % 140 } else { 0 }
            };
            let lost = lost_in_bursts(&mut receiver, (64, 40), LATER, |_| true, time);
            assert!(lost.iter().all(|&lost| lost <= 2560 / 100), "{sources} sources, one in {every}: {lost:?}");
            assert_eq!(receiver.causes(), [Cause::Start]);
        }
    }
}

#[test]
fn a_gap_within_the_window_costs_those_nothing_more_that_are_read_in_bursts() {
    for gap in [48, 60] {
        for at in [0, 3] {
            let mut receiver = receiver_of_bursts(80);
            let lost = lost_in_bursts(&mut receiver, (64, 4), LATER + at, |_| true, |_, batch| batch);
            assert_eq!(lost, [0; 80]);
            // What is read before more than half have been read again is lost to some.
            let from = LATER + at + 256 + gap;
            lost_in_bursts(&mut receiver, (64, 1), from, |_| true, |_, batch| batch);
            let lost = lost_in_bursts(&mut receiver, (64, 4), from + 64, |_| true, |_, batch| batch);
            assert!(lost.iter().all(|&lost| lost <= 2), "gap {gap} at {at}: {lost:?}");
        }
    }
}

#[test]
fn few_that_are_heard_first_a_window_behind_do_not_make_time_begin_again() {
    // The window moves on to where most are, and misses no chunk: the account expects all batches in between.
    let mut receiver = receiver_of_bursts(80);
    let time = |source, batch| batch - if source < 10 { 80 } else { 0 };
    lost_in_bursts(&mut receiver, (64, 4), LATER + 3, |source| source >= 10, time);
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn a_clock_that_runs_ahead_does_not_make_others_silent() {
    // A burst of it spans more chunks than the window can spare, with fewer heaps.
    for (sources, wrong) in [(4, 1), (80, 1), (80, 39)] {
        let mut receiver = receiver_of_bursts(sources);
        lost_in_bursts(&mut receiver, (64, 4), LATER + 3, |_| true, |_, batch| batch);
        let from = LATER + 3 + 256;
        let time = |source, batch| batch + if source < wrong { (batch - from) / 4 } else { 0 };
        let lost = lost_in_bursts(&mut receiver, (64, 10), from, |source| source >= wrong, time);
        assert!(lost.iter().all(|&lost| lost <= 2), "{wrong} of {sources}: {lost:?}");
    }
}

#[test]
fn a_source_that_loses_heaps_goes_on_where_others_fall_silent() {
    // How long others are silent is measured in its heaps: those that were lost on the way are missing there.
    for (every, bound) in [(100, 8), (10, 16), (2, 80)] {
        let mut receiver = receiver_of_bursts(4);
        lost_in_bursts(&mut receiver, (1, 256), LATER + 3, |_| true, |_, batch| batch);
        let heaps = (0..1000).filter(|batch| batch % every != 0);
        let outcomes = heaps.map(|batch| receiver.heap((LATER + 3 + 256 + batch) * 4096, 0, 0));
        let lost = outcomes.filter(|outcome| !matches!(outcome, Outcome::Received(..))).count();
        assert!(lost <= bound, "one in {every}: {lost} lost");
    }
}

#[test]
fn who_was_ahead_and_is_right_again_loses_nothing() {
    // What a source has asked for before it came back is no measure of what it may ask for now.
    let mut receiver = Receiver::new(&layout(4096, 8, 80, None), 6, 1, true, false);
    let end = LATER + 3 + 18 * 16;
    let time = |source, batch| batch + if source < 10 && batch < end { 24 } else { 0 };
    let lost = lost_in_bursts(&mut receiver, (16, 24), LATER + 3, |_| true, time);
    assert!(lost.iter().all(|&lost| lost <= 2), "{lost:?}");
}

#[test]
fn who_was_right_and_wrong_in_turn_is_soon_received_again() {
    let mut receiver = receiver_of_bursts(80);
    lost_in_bursts(&mut receiver, (64, 4), LATER + 3, |_| true, |_, batch| batch);
    let from = LATER + 3 + 256;
    let time = |source, batch| batch + if source < 39 { 80 * ((batch - from) / 3 % 2) } else { 0 };
    let lost = lost_in_bursts(&mut receiver, (64, 6), from, |source| source >= 39, time);
    assert!(lost.iter().all(|&lost| lost <= 2), "{lost:?}");
    let lost = lost_in_bursts(&mut receiver, (64, 4), from + 384, |_| true, |_, batch| batch);
    assert!(lost.iter().all(|&lost| lost <= 2), "{lost:?}");
}

#[test]
fn most_are_where_they_said_when_time_has_gone_to_them() {
    // Wrong ones are heard next, and must not find the others silent.
    let mut receiver = receiver_of_bursts(16);
    let time = |source, batch| batch + if source >= 9 { 120 } else { 0 };
    let is_good = |source| source < 9;
    let lost = lost_in_bursts(&mut receiver, (64, 4), LATER + 3, is_good, time);
    assert!(lost.iter().all(|&lost| lost <= 1), "{lost:?}");
    let from = LATER + 3 + 256 + 8000;
    lost_in_bursts(&mut receiver, (64, 1), from, is_good, time);
    let lost = lost_in_bursts(&mut receiver, (64, 4), from + 64, is_good, time);
    assert!(lost.iter().all(|&lost| lost <= 2), "{lost:?}");
}

#[test]
fn after_a_gap_time_goes_to_where_a_majority_began() {
    // Wrong ones are half a window ahead, and heard first: with few others, they are most that agree.
    for (sources, wrong, alone) in [(4, 1, 1), (16, 2, 20), (80, 39, 20)] {
        let mut receiver = receiver_of_bursts(sources);
        lost_in_bursts(&mut receiver, (64, 4), LATER + 3, |_| true, |_, batch| batch);
        let from = LATER + 3 + 256 + 1600;
        (0..wrong).for_each(|source| (0..alone).for_each(|i| _ = receiver.heap((from + 40 + i) * 4096, source, 0)));
        let time = |source, batch| batch + if source < wrong { 40 } else { 0 };
        let is_good = |source| source >= wrong;
        let lost = lost_in_bursts(&mut receiver, (64, 1), from + alone, is_good, time);
        // The last is read when more than half have been.
        assert!(lost.last().is_some_and(|&lost| lost <= 2), "{wrong} of {sources}: {lost:?}");
        let lost = lost_in_bursts(&mut receiver, (64, 4), from + alone + 64, is_good, time);
        assert!(lost.iter().all(|&lost| lost <= 2), "{wrong} of {sources}: {lost:?}");
    }
}

#[test]
fn garbage_that_the_window_holds_is_no_reason_to_leave_sources_behind() {
    // Each source has sent a heap that is ahead. They are not there yet, so the window must not follow another one from there.
    let mut receiver = receiver_of_bursts(2);
    must_go_on(&mut receiver, LATER, 0);
    for (source, ahead) in [(0, 60), (1, 60), (0, 124)] {
        receiver.heap((LATER + 400 + ahead) * 4096, source, 0);
    }
    must_go_on(&mut receiver, LATER + 400, 0);
}

#[test]
fn a_slow_source_of_two_does_not_hold_up_the_other() {
    let mut receiver = Receiver::new(&layout(4096, 8, 2, None), 4, 2, true, false);
    must_go_on(&mut receiver, LATER, 0);
    // The second stream has a backlog of five chunks.
    let time = |source, batch| LATER + 400 + batch - if source == 1 { 40 } else { 0 };
    assert_eq!(lost(&mut receiver, |source| source == 1, 2000, time), [0, 0]);
}

#[test]
fn big_heaps_of_a_slow_stream_lose_little() {
    // Two heaps a second, one in a chunk: a gap or a restart costs one of them.
    let mut receiver = Receiver::new(&layout(4096, 1, 1, Some(8192.0)), 4, 1, true, true);
    let mut from = LATER;
    for (gap, restarts) in [(0, 0), (10, 0), (1000, 0), (-500, 1), (-100_000, 2)] {
        receiver.pass(gap.max(0) * 500_000_000);
        from += gap;
        let mut lost = 0;
        for batch in from..from + 100 {
            lost += usize::from(!matches!(receiver.heap(batch * 4096, 0, 0), Outcome::Received(..)));
            receiver.pass(500_000_000);
        }
        from += 100;
        assert!(lost <= 1, "{lost} lost after {gap}");
        assert_eq!(receiver.causes().len(), 1 + restarts, "after {gap}");
    }
}

#[test]
fn the_rate_that_a_stream_shows_is_known() {
    for factor in [1.0, 0.96, 1.6] {
        let mut receiver = receiver(4, true, Some(4096e3 / factor));
        for batch in 0..2000 {
            for source in 0..4 {
                receiver.heap((LATER + batch) * 4096, source, 0);
            }
            receiver.pass(1_000_000);
        }
        let rate = receiver.timeline.measured_rate().expect("two seconds have passed");
        assert!((rate / 4096e3 - 1.0).abs() < 0.01, "{rate}");
        // An outage of 100 chunks is one whatever the layout says.
        receiver.pass(800 * 1_000_000);
        must_go_on(&mut receiver, LATER + 2800, 1);
        assert_eq!(receiver.causes(), [Cause::Start], "{factor}");
    }
}

/// A world that notes how often all sources were asked for, and in which one has gone on to this batch by then.
struct Watched<'a> {
    world: &'a World,
    asked: Cell<usize>,
    gone_on: Option<(u64, i64)>,
}

impl Witness for Watched<'_> {
    fn placed(&self, source: u64) -> u64 {
        self.world.placed(source)
    }

    fn newest(&self, source: u64) -> i64 {
        match self.gone_on {
            Some((who, batch)) if who == source && self.asked.get() > 0 => batch,
            _ => self.world.newest(source),
        }
    }

    fn look(&self, _is_urgent: bool) {
        self.asked.set(self.asked.get() + 1);
    }

    fn now(&self) -> Option<u64> {
        self.world.now()
    }
}

#[test]
fn a_gap_as_long_as_the_window_has_room_costs_nothing() {
    for (window, chunks) in [(4, 2), (5, 3), (10, 2), (10, 8)] {
        let mut receiver = Receiver::new(&layout(4096, 8, 4, None), window, 1, true, false);
        must_go_on(&mut receiver, LATER, 0);
        must_go_on(&mut receiver, LATER + 400 + (chunks - 1) * 8, 0);
        assert_eq!(receiver.causes(), [Cause::Start]);
    }
}

#[test]
fn who_has_just_been_heard_is_waited_for_by_those_who_led_before() {
    for chunks in 12..16 {
        let mut receiver = receiver(5, true, None);
        for batch in 0..chunks * 8 {
            (0..2).for_each(|source| _ = receiver.heap((LATER + batch) * 4096, source, 0));
        }
        // Most sources have been silent until now, and are where the window begins.
        let mut hear = |batch: i128, source| receiver.heap((LATER + batch) * 4096, source, 0);
        let first = (chunks - 4) * 8;
        for batch in first..chunks * 8 {
            for source in 2..5 {
                let outcome = hear(batch, source);
                assert!(matches!(outcome, Outcome::Received(..)), "{batch} of {source} in {chunks}: {outcome:?}");
            }
            if batch == first {
                (0..2).for_each(|source| _ = hear(chunks * 8, source));
            }
        }
    }
}

#[test]
fn who_was_ahead_by_mistake_is_asked_for_again_when_it_comes_there() {
    let mut receiver = receiver(80, true, None);
    must_go_on(&mut receiver, LATER, 0);
    // It asks so often in vain that no more is left that its heaps have paid for.
    for i in 0..96 {
        let outcome = receiver.heap((LATER + 400 + 16 + i % 8) * 4096, 0, 0);
        assert_eq!(outcome, Outcome::Rejected(Verdict::Implausible));
    }
    assert_eq!(receiver.batches(LATER + 400..LATER + 408), [0; 80]);
    must_go_on(&mut receiver, LATER + 400 + 16, 0);
}

#[test]
fn all_sources_are_asked_for_a_few_times_or_when_heaps_have_paid_for_it() {
    const SOURCES: i128 = 1000;
    let mut receiver = receiver(SOURCES as u64, true, None);
    assert_eq!(receiver.batches(LATER..LATER + 16), [0; SOURCES as usize]);
    let Receiver { timeline, world, .. } = &mut receiver;
    let watched = Watched { world, asked: Cell::new(0), gone_on: None };
    // Garbage ahead of the window, each heap of which is news.
    for i in 0..4 * SOURCES {
        let batch = LATER + if i % 2 == 0 { 32 } else { 100_000 + i * 1000 };
        let heap = Sighting { source: 7, stamp: (batch * 4096) as u64, slot: 7 };
        assert_eq!(timeline.observe(heap, &watched), Verdict::Implausible);
    }
    let asked = watched.asked.get();
    assert!((1..=64 + 2 + 4).contains(&asked), "{asked} times");
}

#[test]
fn who_goes_on_in_the_window_while_all_are_counted_has_not_won_elsewhere() {
    let mut receiver = receiver(4, true, None);
    must_go_on(&mut receiver, LATER, 0);
    let Receiver { timeline, world, .. } = &mut receiver;
    let before = timeline.newest();
    let newest = world.newest(0);
    let watched = Watched { world, asked: Cell::new(0), gone_on: Some((0, newest + 1)) };
    // The others are silent; it has gone on elsewhere for as long as they are given.
    let mut batches = LATER * 5..LATER * 5 + 200;
    while watched.asked.get() == 0 {
        let batch = batches.next().expect("it is asked for when it has gone on for two windows");
        let heap = Sighting { source: 0, stamp: (batch * 4096) as u64, slot: 0 };
        assert_eq!(timeline.observe(heap, &watched), Verdict::Implausible);
    }
    assert_eq!(timeline.newest(), before);
}

#[test]
fn a_heap_from_before_time_zero_is_not_what_its_timestamp_was_before_a_restart() {
    // The timestamp that would be before time 0 now has been one before the wrap.
    let mut receiver = receiver(2, true, None);
    (-1..1000).for_each(|chunk| _ = receiver.heap(RANGE + chunk * 8 * 4096, 0, 0));
    (0..2).for_each(|batch| _ = receiver.heap(batch * 4096, 0, 0));
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
    for chunk in 1..4 {
        let outcome = receiver.heap(RANGE - chunk * 8 * 4096, 1, 0);
        assert_eq!(outcome, Outcome::Rejected(Verdict::Implausible), "{chunk} chunks before");
    }
}

#[test]
fn timestamps_of_40_bits_that_have_wrapped_make_sense_with_a_step_that_is_no_power_of_two() {
    // Of 48 bits, they would be of a time after wraps beyond the end of time.
    const STEP: i128 = 1_000_003;
    let mut receiver = Receiver::new(&layout(STEP as u64, 8, 4, None), 4, 1, true, false);
    let mut lost = |from: i128, batches: i128| {
        let mut lost = vec![0; 4];
        for time in (from..from + batches).map(|batch| batch * STEP) {
            for (source, lost) in lost.iter_mut().enumerate() {
                let outcome = receiver.heap(time % FEW, source, 0);
                *lost += usize::from(outcome != Outcome::Received(time / (8 * STEP), time));
            }
        }
        lost
    };
    let wrap = FEW / STEP;
    assert_eq!(lost(wrap - 200, 400), [0; 4]);
    // An outage is one as with any other step.
    let after = lost(wrap + 10_000, 100);
    assert!(after.iter().all(|&lost| lost <= 1), "lost {after:?}");
}

#[test]
fn the_former_time_goes_on_for_a_window_at_most_and_is_late_up_to_two() {
    let layout = layout_that_begins_anywhere();
    for (chunks, expected) in [
        (-8, Outcome::Rejected(Verdict::Misaligned)),
        (-7, Outcome::TooOld),
        (0, Outcome::TooOld),
        (1, Outcome::Rejected(Verdict::Implausible)),
        (4, Outcome::Rejected(Verdict::Implausible)),
        (5, Outcome::Rejected(Verdict::Misaligned)),
    ] {
        let mut receiver = Receiver::new(&layout, 4, 1, true, false);
        for batch in 0..400 {
            (0..4).for_each(|source| _ = receiver.heap(batch * 4096 + 7, source, 0));
        }
        // After a restart, the steps of time are elsewhere.
        must_go_on(&mut receiver, LATER, 2);
        assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
        let time = (49 + chunks) * 8 * 4096 + 7;
        let is_aligned = expected != Outcome::Rejected(Verdict::Misaligned);
        assert_eq!(receiver.timeline.is_aligned(time as u64), is_aligned, "{chunks} chunks ahead");
        assert_eq!(receiver.heap(time, 0, 0), expected, "{chunks} chunks ahead");
    }
}

#[test]
fn a_stream_that_lags_may_bring_its_heaps_in_another_order() {
    let mut receiver = Receiver::new(&layout(4096, 8, 4, None), 4, 2, true, false);
    must_go_on(&mut receiver, LATER, 0);
    for batch in 400..560 {
        for source in [0, 2, 3] {
            receiver.heap((LATER + batch) * 4096, source, source % 2);
        }
    }
    // Up to a window of it before its newest, which is 399.
    for (batch, expected) in [
        (399 - 31, Outcome::TooOld),
        (399 - 32, Outcome::Rejected(Verdict::Implausible)),
        (400, Outcome::TooOld),
        (420, Outcome::TooOld),
        (401, Outcome::TooOld),
    ] {
        assert_eq!(receiver.heap((LATER + batch) * 4096, 1, 1), expected, "batch {batch}");
    }
}

#[test]
fn who_is_in_the_window_does_not_lag() {
    // The window begins with the last batch of a source, or just behind that. Then its heaps are late.
    for (last, named) in [(400, vec![3]), (399, vec![])] {
        let mut receiver = receiver(4, true, None);
        receiver.batches(LATER..=LATER + last);
        for batch in last + 1..432 {
            (0..3).for_each(|source| _ = receiver.heap((LATER + batch) * 4096, source, 0));
        }
        for batch in [380, 381] {
            assert_eq!(receiver.heap((LATER + batch) * 4096, 3, 0), Outcome::TooOld);
        }
        assert_eq!(receiver.timeline.estranged().sources(), named, "last batch {last}");
    }
}

#[test]
fn where_some_repeat_what_others_have_flushed_time_begins_again() {
    // They agree on a time that the window holds. It is no way ahead, whether a clock can tell or not.
    for tick_rate in [None, Some(1e9)] {
        let mut receiver = receiver(2, true, tick_rate);
        must_go_on(&mut receiver, LATER, 0);
        receiver.flush();
        assert_eq!(receiver.batches(LATER + 400..LATER + 408), [0; 2]);
        for batch in 400..403 {
            let stamp = ((LATER + batch) * 4096) as u64;
            assert!(!receiver.repeat(Sighting { source: 0, stamp, slot: 0 }));
        }
        (392..394).for_each(|batch| _ = receiver.heap((LATER + batch) * 4096, 1, 0));
        assert_eq!(receiver.causes(), [Cause::Start, Cause::Flush, Cause::Restart], "{tick_rate:?}");
    }
}

#[test]
fn a_flush_leaves_room_for_a_chunk_before_the_end_of_time() {
    let step = 1_000_003;
    let last = i128::from(i64::MAX) / (8 * step);
    for (before, control) in [(5, Some(last - 1)), (4, None)] {
        let mut receiver = Receiver::new(&layout(step as u64, 8, 1, None), 4, 1, true, false);
        let from = (last - before) * 8;
        assert_eq!(receiver.batches(from..from + 2), [1], "so long after a wrap, it must be said twice");
        assert_eq!(receiver.newest(), Some(last - before));
        assert_eq!(receiver.timeline.control().map(i128::from), control, "{before} chunks before");
        receiver.flush();
        assert_eq!(receiver.causes().len(), 1 + usize::from(control.is_some()));
    }
}

/// Sources that send a batch in so many nanoseconds, which takes them 4096 ticks.
fn receiver_at_rate(nanoseconds: i32) -> Receiver {
    let mut receiver = receiver(4, true, Some(4096e9 / f64::from(nanoseconds)));
    for batch in 0..400 {
        (0..4).for_each(|source| _ = receiver.heap((LATER + batch) * 4096, source, 0));
        receiver.pass(nanoseconds.into());
    }
    receiver
}

#[test]
fn how_far_time_can_have_come_depends_on_the_rate_of_the_stream() {
    for nanoseconds in [400, 4096, 40_000] {
        for (late, expected) in [(0, vec![Cause::Start]), (300, vec![Cause::Start, Cause::Restart])] {
            let mut receiver = receiver_at_rate(nanoseconds);
            receiver.pass(800 * i128::from(nanoseconds));
            // A tenth more is a tolerance, and so is a window.
            must_go_on(&mut receiver, LATER + 1200 + late, 2);
            assert_eq!(receiver.causes(), expected, "{late} batches more than in {nanoseconds} ns each");
        }
    }
}

#[test]
fn a_clock_that_is_a_little_slow_is_followed() {
    // A chunk of a second takes 50 us more.
    let mut receiver = Receiver::new(&layout(1_000_000, 1000, 1, Some(1e9)), 4, 1, true, true);
    let mut batch = 0;
    let mut send_after = |receiver: &mut Receiver, seconds: i128, chunks: i128| {
        receiver.pass(seconds * 1_000_050_000);
        batch += chunks * 1000;
        (0..3).for_each(|i| _ = receiver.heap((batch + i) * 1_000_000, 0, 0));
        receiver.causes()
    };
    for _ in 0..1000 {
        assert_eq!(send_after(&mut receiver, 1000, 1000), [Cause::Start]);
    }
    // More than has passed, though by less than it is slow by now.
    assert_eq!(send_after(&mut receiver, 10, 30), [Cause::Start, Cause::Restart]);
}

#[test]
fn of_a_capture_any_gap_of_an_hour_may_be() {
    const SECOND: i32 = 100_000_000;
    for (seconds, expected) in [(3599, vec![Cause::Start]), (3601, vec![Cause::Start, Cause::Restart])] {
        let mut receiver = Receiver::new(&layout(1000, 8, 4, Some(SECOND.into())), 4, 1, true, false);
        assert_eq!(receiver.batches(0..400), [0; 4]);
        receiver.batches((0..4).map(|batch| batch + seconds * i128::from(SECOND) / 1000));
        assert_eq!(receiver.causes(), expected, "{seconds} s");
    }
}

#[test]
fn after_half_the_range_only_the_time_to_expect_is_that_of_an_outage() {
    // What is nearest to the newest time is in the past.
    const OUTAGE: i128 = 3 << 46;
    let tenth = OUTAGE / 10;
    for (off, expected) in [
        (0, vec![Cause::Start]),
        (tenth / 2, vec![Cause::Start]),
        (-tenth / 2, vec![Cause::Start]),
        (tenth * 2, vec![Cause::Start, Cause::Restart]),
        (-tenth * 2, vec![Cause::Start, Cause::Restart]),
    ] {
        let mut receiver = receiver(4, true, Some(1e9));
        must_go_on(&mut receiver, LATER, 0);
        receiver.pass(OUTAGE);
        must_go_on(&mut receiver, LATER + 400 + (OUTAGE + off) / 4096, 2);
        assert_eq!(receiver.causes(), expected, "{off} ticks off");
    }
}

#[test]
fn one_that_is_right_again_clears_no_other_name() {
    let mut receiver = receiver(5, true, None);
    must_go_on(&mut receiver, LATER, 0);
    for batch in 0..4 {
        (2..4).for_each(|source| _ = receiver.heap((LATER * 5 + batch) * 4096, source as usize, 0));
    }
    assert_eq!(receiver.timeline.estranged().sources(), [2, 3]);
    for batch in 400..440 {
        for source in [0, 1, 3, 4] {
            receiver.heap((LATER + batch) * 4096, source, 0);
        }
    }
    assert_eq!(receiver.timeline.estranged().sources(), [2]);
}

/// Four sources whose timestamps have 40 bits and have just wrapped, and the first batch after that.
fn receiver_of_40_bits() -> (Receiver, i128) {
    let mut receiver = receiver(4, true, None);
    let wrap = FEW / 4096;
    for batch in wrap - 100..wrap + 100 {
        (0..4).for_each(|source| _ = receiver.heap(batch * 4096 % FEW, source, 0));
    }
    assert_eq!(receiver.causes(), [Cause::Start]);
    (receiver, wrap + 100)
}

#[test]
fn a_timestamp_of_more_than_40_bits_is_wrong_where_they_have_40() {
    let (mut receiver, next) = receiver_of_40_bits();
    assert_eq!(receiver.heap(next * 4096 + 8 * FEW, 0, 0), Outcome::Rejected(Verdict::Implausible));
    // One that would be right with 48 bits does no harm either.
    assert!(matches!(receiver.heap(next * 4096, 0, 0), Outcome::Received(..)));
    for batch in next..next + 100 {
        for source in 0..4 {
            let outcome = receiver.heap(batch * 4096 % FEW, source, 0);
            assert_eq!(outcome, Outcome::Received(batch / 8, batch * 4096), "source {source}");
        }
    }
}

#[test]
fn after_a_restart_timestamps_may_have_more_bits() {
    let (mut receiver, _) = receiver_of_40_bits();
    let from = 5 * FEW / 4096;
    must_go_on(&mut receiver, from, 2);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
    assert_eq!(receiver.heap((from + 400) * 4096 % FEW, 0, 0), Outcome::Rejected(Verdict::Implausible));
    must_go_on(&mut receiver, from + 400, 0);
}

#[test]
fn time_does_not_begin_with_a_heap_between_its_steps() {
    let mut receiver = receiver(1, true, None);
    assert_eq!(receiver.heap(LATER * 4096 + 7, 0, 0), Outcome::Rejected(Verdict::Misaligned));
    assert_eq!(receiver.causes(), []);
    must_go_on(&mut receiver, LATER, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// How often timestamps have wrapped is found again from any time.
    #[test]
    fn age_is_found(step in 1_u64..1 << 20, wraps in 0_i128..1000, batch in 0_i128..1000) {
        let odd = i128::from(step >> step.trailing_zeros());
        prop_assume!(wraps < odd);
        let mut receiver = Receiver::new(&layout(step, 8, 1, None), 4, 1, true, false);
        let from = wraps * RANGE / i128::from(step) + 1 + batch;
        receiver.heap(from * i128::from(step), 0, 0);
        let outcome = receiver.heap((from + 1) * i128::from(step), 0, 0);
        let Outcome::Received(_, time) = outcome else { panic!("{outcome:?}") };
        prop_assert_eq!(time, (from + 1) * i128::from(step));
    }
}
