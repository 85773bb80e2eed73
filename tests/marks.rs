//! Marks of recordings that are sent again: time follows one that is right at once, and no other.

use speadrx::epochs::Cause;
use speadrx::mark::Mark;
use speadrx::timeline::{Sighting, Verdict};

mod senders;

use senders::{LATER, Outcome, RANGE, Receiver, layout};

const STEP: i128 = 4096;
const BEGINS: i64 = 1 << 39;

/// Chunks of 8 batches, and a window of 4 chunks, in which all sources have sent batches from one on: the last of them.
fn receiver(resync: bool, from: i128) -> (Receiver, i128) {
    let mut receiver = Receiver::new(&layout(4096, 8, 5, Some(1e9)), 4, 1, resync, true);
    assert_eq!(receiver.batches(from..from + 100), [0; 5]);
    (receiver, from + 99)
}

/// The mark of a heap before which a batch was sent.
fn mark(before: i128, kind: i64) -> Option<Mark> {
    Mark::read(kind | (before * STEP).rem_euclid(1 << 39) as i64)
}

/// A heap of a source with a mark: the chunk and batch where it goes, less the epoch's offset.
fn marked(receiver: &mut Receiver, batch: i128, source: u64, mark: Option<Mark>) -> Result<i128, Verdict> {
    let stamp = (batch * STEP).rem_euclid(RANGE) as u64;
    match receiver.timeline.observe_marked(Sighting { source, stamp, slot: source }, mark, &receiver.world) {
        Verdict::Place(at) => Ok((i128::from(at.chunk) - i128::from(at.epoch_offset)) * 8 + i128::from(at.batch)),
        verdict => Err(verdict),
    }
}

#[test]
fn one_heap_is_enough_for_a_gap() {
    for from in [LATER, RANGE / STEP - 150, (1 << 40) / STEP - 50] {
        let (mut receiver, last) = receiver(true, from);
        let to = last + 100_000;
        assert_eq!(marked(&mut receiver, to, 3, mark(last, 0)), Ok(to));
        assert_eq!(receiver.batches(to + 1..to + 100), [0; 5]);
        assert_eq!(receiver.causes(), [Cause::Start]);
    }
}

#[test]
fn one_heap_is_enough_for_a_restart() {
    for to in [0, 5, LATER - 40, LATER + 50, LATER + 99, LATER + 140, LATER * 9] {
        let (mut receiver, last) = receiver(true, LATER);
        assert_eq!(marked(&mut receiver, to, 3, mark(last, BEGINS)), Ok(to));
        assert_eq!(receiver.batches(to + 1..to + 100), [0; 5]);
        assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
    }
}

#[test]
fn a_restart_right_after_another_needs_one_heap_too() {
    let (mut receiver, last) = receiver(true, LATER);
    assert_eq!(marked(&mut receiver, 1000, 3, mark(last, BEGINS)), Ok(1000));
    assert_eq!(marked(&mut receiver, 5, 3, mark(1000, BEGINS)), Ok(5));
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart, Cause::Restart]);
}

#[test]
fn the_other_heaps_with_the_mark_of_a_restart_change_nothing() {
    let (mut receiver, last) = receiver(true, LATER);
    for source in [3, 0, 1, 2, 4, 0] {
        assert_eq!(marked(&mut receiver, last - 10, source, mark(last, BEGINS)), Ok(last - 10));
    }
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
}

#[test]
fn the_other_heaps_with_the_mark_of_a_gap_leave_nobody_behind() {
    // One of two is as far ahead as it may be, so that the other can go on.
    let mut receiver = Receiver::new(&layout(4096, 8, 2, None), 4, 1, true, false);
    assert_eq!(receiver.batches(LATER..LATER + 100), [0; 2]);
    assert!(matches!(receiver.heap((LATER + 14 * 8) * STEP, 0, 0), Outcome::Received(..)));
    assert_eq!(marked(&mut receiver, LATER + 14 * 8 + 1, 0, mark(LATER + 99, 0)), Ok(LATER + 14 * 8 + 1));
    for chunk in [15, 16] {
        assert_eq!(receiver.heap((LATER + chunk * 8) * STEP, 0, 0), Outcome::Rejected(Verdict::Implausible));
    }
    for batch in 100..128 {
        assert!(matches!(receiver.heap((LATER + batch) * STEP, 1, 0), Outcome::Received(..)), "batch {batch}");
    }
}

#[test]
fn heaps_before_it_may_be_lost() {
    let (mut receiver, last) = receiver(true, LATER);
    assert_eq!(marked(&mut receiver, 7, 3, mark(last + 30, BEGINS)), Ok(7));
}

#[test]
fn a_wrong_mark_counts_for_nothing() {
    for kind in [0, BEGINS] {
        for before in [-50, 50, 1000, -1000, 1 << 26] {
            for to in [1000, LATER + 1000] {
                let (mut receiver, last) = receiver(true, LATER);
                for _ in 0..100 {
                    assert_eq!(
                        marked(&mut receiver, to, 3, mark(last + before, kind)),
                        Err(Verdict::Implausible),
                        "{before}"
                    );
                }
                assert_eq!(receiver.batches(last + 1..last + 100), [0; 5]);
                assert_eq!(receiver.causes(), [Cause::Start]);
            }
        }
    }
}

#[test]
fn a_gap_does_not_go_back() {
    let (mut receiver, last) = receiver(true, LATER);
    assert_eq!(marked(&mut receiver, 0, 3, mark(last, 0)), Err(Verdict::Implausible));
}

#[test]
fn time_does_not_begin_again_where_it_must_not() {
    let (mut receiver, last) = receiver(false, LATER);
    assert!(marked(&mut receiver, 0, 3, mark(last, BEGINS)).is_err());
    assert_eq!(receiver.causes(), [Cause::Start]);
    assert!(matches!(receiver.heap((last + 1) * STEP, 0, 0), Outcome::Received(..)));
}

#[test]
fn a_recording_may_begin_after_a_wrap() {
    // A step that is no power of two tells how often timestamps have wrapped; without a mark, two heaps must agree.
    let (range, step) = (RANGE, 24);
    let time = (range / step + 7) * step;
    for is_marked in [false, true] {
        let mut receiver = Receiver::new(&layout(24, 8, 1, None), 4, 1, true, false);
        let heap = Sighting { source: 0, stamp: (time % range) as u64, slot: 0 };
        let mark = Mark::read(0).filter(|_| is_marked);
        let verdict = receiver.timeline.observe_marked(heap, mark, &receiver.world);
        assert_eq!(matches!(verdict, Verdict::Place(_)), is_marked, "{verdict:?}");
    }
}

#[test]
fn what_is_no_mark() {
    assert_eq!(Mark::read(-1), None);
    assert_eq!(Mark::read(1 << 40), None);
    assert_eq!(Mark::read(i64::MAX), None);
    assert!(Mark::read(0).is_some_and(|mark| !mark.begins));
    assert!(Mark::read((1 << 40) - 1).is_some_and(|mark| mark.begins));
}
