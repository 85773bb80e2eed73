//! What each rule about the voices of sources is for: a short history each, which ends otherwise without the rule.

use std::ops::Range;

use speadrx::epochs::Cause;
use speadrx::timeline::{Sighting, TimeRules, Timeline};

mod senders;

use senders::{LATER, Outcome, Receiver, layout};

/// So many batches of 4096 ticks have timestamps of 40 bits.
const FEW: i128 = 1 << 28;

/// A window of so many chunks of so many batches.
fn receiver(window: u64, batches: u64, sources: u64) -> Receiver {
    Receiver::new(&layout(4096, batches, sources, None), window, 1, true, false)
}

/// These sources send these batches in turn: the heaps that are lost.
fn lost(receiver: &mut Receiver, sources: &[usize], batches: Range<i128>) -> Vec<(usize, i128)> {
    let heaps = batches.flat_map(|batch| sources.iter().map(move |&source| (source, batch)));
    heaps.filter(|&(source, batch)| !is_received(receiver, source, batch)).collect()
}

fn is_received(receiver: &mut Receiver, source: usize, batch: i128) -> bool {
    matches!(receiver.heap((LATER + batch) * 4096, source, 0), Outcome::Received(..))
}

/// Whether time has never begun again.
fn is_as_begun(receiver: &Receiver) -> bool {
    receiver.causes() == [Cause::Start]
}

#[test]
fn who_was_silent_and_is_left_behind_has_no_say() {
    // Others have stopped with the first batch of a chunk. While the window holds it, two of five are not most.
    for (until, are_most) in [(56, false), (65, true)] {
        let mut receiver = receiver(4, 8, 5);
        assert_eq!(lost(&mut receiver, &[0, 1, 2, 3, 4], 0..9), []);
        lost(&mut receiver, &[0, 1], 9..until);
        let lost = lost(&mut receiver, &[0, 1], 5000..5020);
        assert_eq!(lost.len() <= 2, are_most, "until {until}: {lost:?}");
    }
}

#[test]
fn who_is_not_heard_for_three_turns_has_no_say() {
    // With max_jump the window follows anybody and asks nobody: it is a wrong heap that has all counted.
    for (until, are_most) in [(80, false), (150, true)] {
        let mut receiver = receiver(4, 8, 5);
        let rules = TimeRules::new(&layout(4096, 8, 5, None), 4, 4, Some(3), true).unwrap();
        receiver.timeline = Timeline::new(rules);
        assert_eq!(lost(&mut receiver, &[0, 1, 2, 3, 4], 0..17), []);
        assert!(!is_received(&mut receiver, 4, 9999));
        assert_eq!(lost(&mut receiver, &[0, 1], 17..until), []);
        let lost = lost(&mut receiver, &[0, 1], 5000..5020);
        assert_eq!(lost.len() <= 2, are_most, "until {until}: {lost:?}");
    }
}

#[test]
fn who_goes_on_behind_garbage_takes_back_what_was_claimed() {
    // No heap is newer than the garbage that the window has followed; two that are placed show it as well.
    let mut receiver = receiver(4, 8, 1);
    assert_eq!(lost(&mut receiver, &[0], 0..8), []);
    assert_eq!(lost(&mut receiver, &[0], 20..21), []);
    for batch in (8..20).step_by(2) {
        assert!(!is_received(&mut receiver, 0, batch - 5000));
        assert_eq!(lost(&mut receiver, &[0], batch..batch + 2), []);
    }
    assert!(is_as_begun(&receiver));
}

#[test]
fn a_single_heap_in_between_does_not_take_back_a_claim() {
    // It may be the one that claims, once it has been placed.
    let mut receiver = receiver(3, 1, 1);
    assert!(is_received(&mut receiver, 0, 0));
    assert!(!is_received(&mut receiver, 0, 5));
    assert!(is_received(&mut receiver, 0, 0));
    assert!(is_received(&mut receiver, 0, 4), "it has said so twice");
}

#[test]
fn who_is_late_again_and_again_is_counted_though_some_heaps_are_in_time() {
    // Late heaps are placed, too: they do not show that a source is back.
    let mut receiver = receiver(5, 2, 3);
    assert_eq!(lost(&mut receiver, &[1], 0..1), []);
    let mut received = 0;
    for batch in -9..-4 {
        received +=
            usize::from(is_received(&mut receiver, 0, batch)) + usize::from(is_received(&mut receiver, 1, batch));
        is_received(&mut receiver, 2, batch + 10);
    }
    assert_eq!((received, is_as_begun(&receiver)), (6, false), "most are where these two are");
}

#[test]
fn a_heap_ahead_may_be_garbage_and_its_source_still_where_it_was() {
    // Of the second source there are two heaps, one of which is far ahead. So the first may not leave it behind at once.
    let mut receiver = receiver(6, 4, 2);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..1), []);
    assert_eq!(lost(&mut receiver, &[0], 1..14), []);
    assert_eq!(lost(&mut receiver, &[1], 14..15), []);
    assert!(!is_received(&mut receiver, 0, 20));
    assert!(is_received(&mut receiver, 0, 21), "it goes on from there");
}

#[test]
fn garbage_that_the_window_holds_does_not_become_true_with_time() {
    // A heap of each is ahead. To doubt another one has all counted, and each time those are found where they were.
    let mut receiver = receiver(10, 8, 2);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..40), []);
    assert_eq!(lost(&mut receiver, &[0, 1], 100..101), []);
    for (batch, wrong) in [(40, 164), (42, 250), (44, 164)] {
        assert!(!is_received(&mut receiver, 0, wrong), "{wrong}");
        assert_eq!(lost(&mut receiver, &[0, 1], batch..batch + 2), []);
    }
}

#[test]
fn what_a_source_goes_on_from_is_certain() {
    // After a gap, the first source goes on. So the other may leave its place from before the gap behind.
    let mut receiver = receiver(4, 1, 2);
    for (source, batches) in [(0, 0..1), (1, 0..7), (0, 7..10)] {
        lost(&mut receiver, &[source], batches);
    }
    assert!(is_received(&mut receiver, 1, 10));
}

#[test]
fn where_a_source_is_first_is_certain() {
    // So three sources that are heard for the first time do not hold up one of them that leaves out a batch.
    let mut receiver = receiver(10, 2, 5);
    assert_eq!(lost(&mut receiver, &[2, 3, 4], 1..2), []);
    assert!(is_received(&mut receiver, 4, 4));
}

#[test]
fn who_is_back_in_the_window_is_named_no_more() {
    let mut receiver = Receiver::new(&layout(4096, 4, 2, None), 4, 2, true, false);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..4), []);
    assert_eq!(lost(&mut receiver, &[0], -5000..-4998).len(), 2);
    // What was sent before is no sign of that, where a network repeats it through another stream.
    receiver.heap((LATER + 3) * 4096, 0, 1);
    assert_eq!(receiver.timeline.estranged().sources(), [0]);
    assert!(is_received(&mut receiver, 0, 4));
    assert!(receiver.timeline.estranged().sources().is_empty());
}

#[test]
fn who_is_new_has_all_counted_at_the_next_chunk() {
    let mut receiver = receiver(4, 1, 2);
    for (sources, batches) in [(&[1][..], 0..1), (&[0, 1], 1..3), (&[0], 3..6)] {
        assert_eq!(lost(&mut receiver, sources, batches), []);
    }
}

#[test]
fn claims_are_counted_when_they_may_have_come_to_where_another_is() {
    // A window holds times up to four batches apart.
    let mut receiver = receiver(4, 2, 2);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..1), []);
    assert!(!is_received(&mut receiver, 0, -4991));
    assert_eq!(lost(&mut receiver, &[1], -4999..-4994).len(), 4);
}

#[test]
fn claims_are_counted_for_each_heap_where_the_window_is_short() {
    let mut receiver = receiver(3, 1, 3);
    assert_eq!(lost(&mut receiver, &[2], 0..1), []);
    for batch in 0..3 {
        let outcome = [(0, batch - 4), (1, batch - 6)].map(|(source, batch)| is_received(&mut receiver, source, batch));
        assert_eq!(outcome, [batch == 2; 2], "heap {batch}");
    }
}

#[test]
fn who_leaps_twice_does_not_go_on() {
    // The other is far enough ahead for all of this.
    let mut receiver = receiver(10, 8, 2);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..40), []);
    assert_eq!(lost(&mut receiver, &[1], 40..60), []);
    assert!(!is_received(&mut receiver, 0, 110));
    assert!(!is_received(&mut receiver, 0, 118));
    assert!(is_received(&mut receiver, 0, 119), "it goes on from there");
}

#[test]
fn a_single_wrong_heap_gives_no_say() {
    let mut receiver = receiver(4, 8, 5);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..40), []);
    for (source, wrong) in [(2, 18_000), (3, 27_000), (4, 36_000)] {
        assert!(!is_received(&mut receiver, source, wrong));
    }
    assert!(lost(&mut receiver, &[0, 1], 5000..5020).len() <= 2);
}

#[test]
fn who_says_it_twice_has_a_say() {
    let mut receiver = receiver(4, 8, 5);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..40), []);
    for (source, wrong) in [(2, 18_000), (3, 27_000), (4, 36_000)] {
        assert_eq!(lost(&mut receiver, &[source], wrong..wrong + 2).len(), 2);
    }
    assert!(lost(&mut receiver, &[0, 1], 5000..5020).len() > 2);
}

#[test]
fn who_is_a_chunk_behind_is_not_slow() {
    // When two fall silent, the others lose nothing, though one of them is a chunk behind.
    let mut receiver = receiver(8, 2, 4);
    for batch in 1..27 {
        for (source, behind) in [(0, 0), (1, 0), (2, 0), (3, 2)] {
            if batch < 13 || source >= 2 {
                assert!(is_received(&mut receiver, source, batch - behind), "{source} at {batch}");
            }
        }
    }
}

#[test]
fn where_the_window_comes_to_a_claim_it_is_over() {
    for (batches, named) in [(40..80, &[2][..]), (40..112, &[])] {
        let mut receiver = receiver(4, 8, 3);
        assert_eq!(lost(&mut receiver, &[0, 1, 2], 0..40), []);
        assert_eq!(lost(&mut receiver, &[2], 80..82).len(), 2);
        assert_eq!(lost(&mut receiver, &[0, 1], batches), []);
        assert_eq!(receiver.timeline.estranged().sources(), named);
    }
    // But not where it passes by: the next chunk after the claim is the first that it holds.
    let mut receiver = receiver(4, 8, 3);
    assert_eq!(lost(&mut receiver, &[0, 1, 2], 0..40), []);
    assert_eq!(lost(&mut receiver, &[2], 80..82).len(), 2);
    assert_eq!(lost(&mut receiver, &[0, 1], 112..140).len(), 1);
    assert_eq!(receiver.timeline.estranged().sources(), [2]);
}

#[test]
fn who_would_lead_for_the_first_time_has_all_counted() {
    let mut receiver = receiver(5, 1, 6);
    assert_eq!(lost(&mut receiver, &[3], 0..4), []);
    assert_eq!(lost(&mut receiver, &[0, 3, 5], 4..5), [(0, 4)]);
    assert!(is_received(&mut receiver, 0, 5));
}

#[test]
fn who_finds_others_silent_has_all_counted_again() {
    let mut receiver = receiver(2, 2, 3);
    let mut outcomes = vec![];
    for batch in 0..3 {
        for (source, ahead) in [(0, 0), (1, 3), (2, 0)] {
            outcomes.push(is_received(&mut receiver, source, batch + ahead));
        }
    }
    assert_eq!(outcomes, [true, true, true, true, false, true, true, true, true]);
}

#[test]
fn in_a_window_of_two_chunks_nobody_waits_while_others_are_read() {
    let mut receiver = receiver(2, 8, 5);
    for batch in 0..4 {
        for (source, behind) in [(0, 12), (1, 0), (2, 12), (3, 0), (4, 12)] {
            is_received(&mut receiver, source, batch - behind);
        }
    }
    is_received(&mut receiver, 0, 4 - 12);
    assert!(is_received(&mut receiver, 1, 4));
}

#[test]
fn who_says_it_is_ahead_is_not_waited_for_where_it_was() {
    let mut receiver = receiver(8, 8, 5);
    assert_eq!(lost(&mut receiver, &[2, 3], 0..42), []);
    assert!(!is_received(&mut receiver, 3, 106));
    assert_eq!(lost(&mut receiver, &[4], 42..57), []);
}

#[test]
fn who_said_it_was_ahead_is_taken_to_be_there() {
    let mut receiver = receiver(6, 1, 3);
    assert_eq!(lost(&mut receiver, &[1, 2], 0..1), []);
    assert_eq!(lost(&mut receiver, &[1], 1..4), []);
    for source in 0..3 {
        lost(&mut receiver, &[source], 4..8);
    }
    assert_eq!(lost(&mut receiver, &[2], 8..12), []);
}

#[test]
fn who_repeats_its_heaps_is_not_waited_for() {
    let mut receiver = receiver(4, 8, 2);
    assert_eq!(lost(&mut receiver, &[0, 1], 0..8), []);
    for batch in [6, 7] {
        receiver.repeat(Sighting { source: 1, stamp: ((LATER + batch) * 4096) as u64, slot: 1 });
    }
    assert!(is_received(&mut receiver, 0, 24));
}

#[test]
fn without_resync_nobody_leads_away_from_most_that_are_late() {
    for (window, sources, ahead, from, bound) in [(4, 5, 32, 4, 12), (1, 3, 8, 0, 16)] {
        let mut receiver = Receiver::new(&layout(4096, 8, sources, None), window, 1, false, false);
        let few = (sources - 1) / 2;
        let mut lost = 0;
        for batch in from - ahead..from - ahead + 9 {
            for source in 0..sources {
                let batch = batch + if source < few { ahead } else { 0 };
                let is_received = is_received(&mut receiver, source as usize, batch);
                lost += usize::from(source >= few && !is_received);
            }
        }
        assert!(lost <= bound, "{lost} lost in a window of {window}");
    }
}

#[test]
fn who_is_two_windows_behind_is_not_late() {
    let mut receiver = receiver(8, 1, 2);
    assert!(is_received(&mut receiver, 1, 0));
    assert!(!is_received(&mut receiver, 1, -16));
    assert!(is_received(&mut receiver, 0, 1));
}

#[test]
fn times_that_just_fit_a_window_agree() {
    let mut receiver = receiver(4, 1, 2);
    assert!(is_received(&mut receiver, 0, 0));
    assert!(!is_received(&mut receiver, 0, 4));
    assert!(is_received(&mut receiver, 1, 6));
}

#[test]
fn of_two_groups_as_large_time_goes_to_the_earlier() {
    let mut receiver = receiver(8, 1, 3);
    assert!(is_received(&mut receiver, 2, 0));
    let outcomes =
        [(0, 10), (1, 19), (2, 15), (0, 11)].map(|(source, batch)| is_received(&mut receiver, source, batch));
    assert_eq!(outcomes, [false, false, true, true]);
}

#[test]
fn a_group_is_of_those_whom_the_heap_agrees_with() {
    // Two are ahead by a window. Those who are still where all were do not follow them.
    let mut receiver = receiver(8, 2, 5);
    assert_eq!(lost(&mut receiver, &[0, 1, 2, 3, 4], 0..1), []);
    for (source, from, bound) in [(0, 18, 16), (1, 18, 16), (3, 1, 0), (4, 1, 1)] {
        assert_eq!(lost(&mut receiver, &[source], from..from + 16).len(), bound, "source {source}");
    }
}

#[test]
fn who_does_not_fit_the_window_with_all_others_is_not_one_of_them() {
    let mut receiver = receiver(4, 8, 5);
    assert_eq!(lost(&mut receiver, &[0, 1, 2, 3, 4], 0..40), []);
    for (source, batch) in [(1, 5008), (2, 5020), (0, 5000)] {
        assert!(!is_received(&mut receiver, source, batch));
    }
    assert!(is_as_begun(&receiver));
    assert!(is_received(&mut receiver, 0, 5004), "all three fit");
}

#[test]
fn who_is_wrong_otherwise_does_not_hold_up_those_who_are_alone() {
    let mut receiver = receiver(4, 8, 3);
    assert_eq!(lost(&mut receiver, &[0, 1, 2], 0..40), []);
    assert!(!is_received(&mut receiver, 1, 9000));
    assert_eq!(lost(&mut receiver, &[0], 5000..5200).len(), 64);
}

#[test]
fn who_repeats_what_it_has_said_has_nobody_counted() {
    // They are most, but each has a time of its own.
    let mut receiver = receiver(4, 8, 8);
    assert_eq!(lost(&mut receiver, &[0, 1, 2, 3, 4, 5, 6, 7], 0..40), []);
    let said = [(0, 10_000), (1, 20_000), (2, 30_000), (3, 40_000), (4, 50_000)];
    for (source, batch) in said {
        assert_eq!(lost(&mut receiver, &[source], batch - 1..batch + 1).len(), 2);
    }
    receiver.world.counts.set(0);
    for _ in 0..100 {
        for (source, batch) in said {
            assert!(!is_received(&mut receiver, source, batch));
        }
    }
    assert_eq!(receiver.world.counts.get(), 0);
}

#[test]
fn half_of_the_sources_have_nobody_counted() {
    let mut receiver = receiver(4, 8, 8);
    assert_eq!(lost(&mut receiver, &[0, 1, 2, 3, 4, 5, 6, 7], 0..40), []);
    receiver.world.counts.set(0);
    assert_eq!(lost(&mut receiver, &[0, 1, 2, 3], 5000..5004).len(), 16);
    assert_eq!(receiver.world.counts.get(), 0);
}

#[test]
fn without_resync_late_majorities_are_counted_now_and_then() {
    let mut receiver = Receiver::new(&layout(4096, 8, 4, None), 4, 1, false, false);
    assert_eq!(lost(&mut receiver, &[0, 1, 2, 3], 0..80), []);
    receiver.world.counts.set(0);
    lost(&mut receiver, &[0, 1, 2], 20..40);
    assert!(receiver.world.counts.get() <= 4, "{} counts", receiver.world.counts.get());
}

#[test]
fn who_was_ahead_and_is_right_again_does_not_speak_for_that_time() {
    let mut receiver = receiver(4, 8, 5);
    let all = [0, 1, 2, 3, 4];
    assert_eq!(lost(&mut receiver, &all, 0..40), []);
    assert_eq!(lost(&mut receiver, &[3, 4], 5000..5002).len(), 4);
    assert_eq!(lost(&mut receiver, &all, 40..50), []);
    assert_eq!(lost(&mut receiver, &[2], 5002..5004).len(), 2);
    assert_eq!(lost(&mut receiver, &all, 50..80), []);
}

/// A receiver of timestamps that have wrapped after 40 bits, and its time in batches.
fn receiver_of_few_bits() -> (Receiver, i128) {
    let mut receiver = Receiver::new(&layout(4096, 8, 4, Some(1e9)), 4, 1, true, true);
    for batch in FEW - 100..FEW + 100 {
        (0..4).for_each(|source| _ = receiver.heap(batch % FEW * 4096, source, 0));
        receiver.pass(4096);
    }
    assert!(is_as_begun(&receiver));
    (receiver, FEW + 100)
}

#[test]
fn timestamps_of_40_bits_agree_across_a_wrap() {
    let (mut receiver, now) = receiver_of_few_bits();
    receiver.pass((FEW * 2 - now) * 4096);
    for (source, batch) in [(2, FEW * 2), (3, FEW * 2), (0, FEW * 2 - 1)] {
        let outcome = receiver.heap(batch % FEW * 4096, source, 0);
        assert_eq!(matches!(outcome, Outcome::Received(..)), source == 0, "{outcome:?}");
    }
    assert!(is_as_begun(&receiver));
}

#[test]
fn timestamps_of_more_bits_do_not_agree_with_those_of_40() {
    // Their low 40 bits would: two of four sources are of one mind, and not three.
    let (near, far) = (FEW / 2, FEW * 16);
    for batches in [[far + near, near + 1, near + 2], [far + FEW - 1, far, far + 1]] {
        let (mut receiver, _) = receiver_of_few_bits();
        for (source, batch) in batches.into_iter().enumerate() {
            let outcome = receiver.heap(batch * 4096, source, 0);
            assert!(!matches!(outcome, Outcome::Received(..)), "{outcome:?}");
        }
        assert!(is_as_begun(&receiver));
    }
}
