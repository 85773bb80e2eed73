//! The timeline: what each fault costs, and that whatever came before, most sources are received.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use speadrx::epochs::Cause;

mod senders;

use senders::{LATER, Outcome, RANGE, Receiver, layout};

/// How sources may be wrong from now on, forever.
#[derive(Clone, Copy, Debug)]
enum Madness {
    Silent,
    /// Its clock is off by so many batches.
    Off(i128),
    /// It gains or loses a batch every so many.
    Drift(i128),
    /// Its clock stands still.
    Stuck,
    /// It repeats a batch many times.
    Slow(i128),
    /// Any time at all.
    Random,
    /// Right, but for one heap in so many, which is up to so many batches ahead.
    Garbage(i128, i128),
}

fn madness() -> impl Strategy<Value = Madness> {
    prop_oneof![
        Just(Madness::Silent),
        (-200..200_i128).prop_map(Madness::Off),
        prop_oneof![Just(1_i128 << 20), Just(-(1 << 20)), -20_000..20_000_i128].prop_map(Madness::Off),
        (4..100_i128).prop_map(Madness::Drift),
        (-100..-2_i128).prop_map(Madness::Drift),
        Just(Madness::Stuck),
        (2..10_i128).prop_map(Madness::Slow),
        Just(Madness::Random),
        (50..200_i128, 1..70_i128).prop_map(|(one_in, ahead)| Madness::Garbage(one_in, ahead)),
    ]
}

impl Madness {
    /// The batch that a source takes it to be, if it sends, at batch `now` of a run that began with `from`.
    fn batch(self, now: i128, from: i128, dice: &mut u64) -> Option<i128> {
        *dice = dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let random = i128::from(*dice >> 20);
        let passed = now - from;
        Some(match self {
            Self::Silent => return None,
            Self::Off(batches) => now + batches,
            Self::Drift(every) => now + passed / every,
            Self::Stuck => from,
            Self::Slow(every) => from + passed / every,
            Self::Random => random % (RANGE / 4096),
            Self::Garbage(one_in, ahead) => now + if random % one_in == 0 { 1 + (random >> 8) % ahead } else { 0 },
        })
    }
}

/// What may come before.
#[derive(Clone, Debug)]
enum Event {
    /// The first so many sources send this many batches.
    Send(i128, usize),
    /// Each of them sends so many heaps in a row.
    Burst(i128, usize),
    /// A heap of any time.
    Any(i128, usize),
    Restart(i128),
    /// All are set back or ahead a little.
    Nudge(i128),
    HalfRestart(i128),
    Silence(i128),
    /// A source is off by so much from now on.
    Mad(usize, i128),
    Flush,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (1..20_i128, 1..17_usize).prop_map(|(batches, sources)| Event::Send(batches, sources)),
        2 => (1..70_i128, 1..17_usize).prop_map(|(batches, sources)| Event::Burst(batches, sources)),
        1 => (0..RANGE, 0..17_usize).prop_map(|(time, source)| Event::Any(time, source)),
        1 => (0..400_000_i128).prop_map(Event::Restart),
        1 => (-100..100_i128).prop_map(Event::Nudge),
        1 => (0..400_000_i128).prop_map(Event::HalfRestart),
        1 => (0..4000_i128).prop_map(Event::Silence),
        1 => (0..17_usize, -3000..3000_i128).prop_map(|(source, off)| Event::Mad(source, off)),
        1 => Just(Event::Flush),
    ]
}

fn happen(receiver: &mut Receiver, clocks: &mut [i128], events: &[Event]) {
    let (n, streams) = (clocks.len(), receiver.streams());
    for event in events {
        match *event {
            Event::Send(batches, sources) => {
                for _ in 0..batches {
                    receiver.pass(1);
                    for (source, clock) in clocks.iter_mut().enumerate() {
                        *clock += 1;
                        if source < sources {
                            receiver.heap(*clock * 4096, source, source % streams);
                        }
                    }
                }
            }
            Event::Burst(batches, sources) => {
                receiver.pass(batches);
                for (source, clock) in clocks.iter_mut().enumerate() {
                    for batch in 1..=batches {
                        if source < sources {
                            receiver.heap((*clock + batch) * 4096, source, source % streams);
                        }
                    }
                    *clock += batches;
                }
            }
            Event::Any(time, source) => _ = receiver.heap(time, source % n, source % n % streams),
            Event::Restart(to) => clocks.fill(to),
            Event::Nudge(by) => {
                for clock in clocks.iter_mut() {
                    *clock = (*clock + by).max(0);
                }
            }
            Event::HalfRestart(to) => {
                for clock in clocks.iter_mut().step_by(2) {
                    *clock = to;
                }
            }
            Event::Silence(batches) => {
                for clock in clocks.iter_mut() {
                    *clock += batches;
                }
                receiver.pass(batches);
            }
            Event::Mad(source, off) => clocks[source % n] = (clocks[source % n] + off).max(0),
            Event::Flush => receiver.flush(),
        }
    }
}

/// What is tried.
#[derive(Clone, Debug)]
struct Case {
    window: u64,
    streams: usize,
    sources: usize,
    rate: Option<f64>,
    is_live: bool,
    /// What comes before.
    events: Vec<Event>,
    /// How many sources are wrong from then on, if so many can be, in what way, and whether they are the first.
    wrong: usize,
    madness: Vec<Madness>,
    are_first: bool,
    /// Of the good ones: heaps of each that are read in a row, and where they begin.
    burst: i128,
    at: i128,
    seed: u64,
}

fn case(wrong: usize, burst: i128) -> impl Strategy<Value = Case> {
    (
        (1_u64..13, 1_usize..5, select(vec![1_usize, 2, 3, 4, 5, 6, 7, 16, 17])),
        (prop_oneof![Just(None), Just(Some(4096e9))], any::<bool>()),
        vec(event(), 0..40),
        (0..=wrong, vec(madness(), 8), any::<bool>()),
        (0..burst, prop_oneof![Just(0_i128), -100..100_i128, 0..400_000_i128], any::<u64>()),
    )
        .prop_map(|(streams, clock, events, wrong, good)| Case {
            window: streams.0,
            streams: streams.1,
            sources: streams.2,
            rate: clock.0,
            is_live: clock.1,
            events,
            wrong: wrong.0,
            madness: wrong.1,
            are_first: wrong.2,
            burst: good.0,
            at: good.1,
            seed: good.2,
        })
}

/// How many heaps each good source loses, not counting those that are read before more than half of the sources had been
/// read again; and why time began again.
fn losses(case: &Case) -> (Vec<usize>, Vec<Cause>) {
    let Case { window, streams, sources, .. } = *case;
    let layout = layout(4096, 8, sources as u64, case.rate);
    let mut receiver = Receiver::new(&layout, window, streams, true, case.is_live);
    let mut clocks = vec![LATER; sources];
    happen(&mut receiver, &mut clocks, &case.events);

    let window = i128::from(window);
    let wrong = case.wrong.min((sources - 1) / 2);
    // Good sources must fit the window, also while some of them have been read and the others not yet.
    // As long as some are wrong, the window must hold that twice.
    let room = if wrong > 0 { window / 2 - 1 } else { window - 3 };
    let burst = (case.burst % (room.max(0) * 8 + 1)).max(1);
    let from = (*clocks.iter().max().unwrap() + 1 + case.at).max(300);
    // What was given out by a flush is lost, by the user's own wish.
    let given = receiver.given_out();
    let from = if from < given && from >= given - 8 * (window + 2) { given } else { from };
    // Where the window begins, some may be too late until they come into it.
    let start = receiver.window_start();
    let from = if from < start && start <= from + burst { start } else { from };

    let is_good = |source: usize| if case.are_first { source >= wrong } else { source < sources - wrong };
    let (mut lost, mut read) = (vec![0; sources], vec![false; sources]);
    let (mut dice, mut batch) = (case.seed, from);
    while batch < from + 800 {
        receiver.pass(burst);
        for source in 0..sources {
            for now in batch..batch + burst {
                let time =
                    if is_good(source) { Some(now) } else { case.madness[source % 8].batch(now, from, &mut dice) };
                let Some(time) = time else { continue };
                let outcome = receiver.heap(time * 4096, source, source % streams);
                if is_good(source) {
                    read[source] = true;
                    let enough = 2 * read.iter().filter(|&&read| read).count() > sources;
                    // Sources that are read in turn, so many heaps each, may find the window in their midst until all have
                    // been read twice. Where all have gone back a little, they are known to have been further on, until they
                    // come there again.
                    let is_again = case.at < 0 && batch < (from - case.at).min(from + window * 8);
                    let is_edge = burst > 1 && (batch < from + 2 * burst || is_again);
                    lost[source] += usize::from(enough && !is_edge && !matches!(outcome, Outcome::Received(..)));
                }
            }
        }
        batch += burst;
    }
    (lost, receiver.causes())
}

/// Few sources have a time of their own, and then either all have that, or they had it from the start.
#[derive(Clone, Debug)]
struct Few {
    window: u64,
    streams: usize,
    sources: usize,
    /// How many they are, by how many batches they are off, and whether they are read first.
    how_many: usize,
    off: i128,
    are_first: bool,
    /// Heaps of each source that are read in a row.
    burst: i128,
    /// Where all begin, from the middle of a chunk to the next.
    at: i128,
}

fn few() -> impl Strategy<Value = Few> {
    let sources = select(vec![3_usize, 4, 5, 6, 7, 16, 17]);
    ((5_u64..13, 1_usize..5, sources), (1_usize..9, 0..1000_i128, any::<bool>()), 1..70_i128, 0..8_i128).prop_map(
        |((window, streams, sources), (few, off, are_first), burst, at)| {
            // Good sources must fit the window, also while some of them have been read and the others not yet.
            let burst = (burst - 1) % (i128::from(window - 3) * 8) + 1;
            Few { window, streams, sources, how_many: few.min((sources - 1) / 2), off, are_first, burst, at }
        },
    )
}

impl Few {
    fn receiver(&self) -> Receiver {
        Receiver::new(&layout(4096, 8, self.sources as u64, None), self.window, self.streams, true, false)
    }

    /// Read some rounds of all sources, of which the good ones begin with batch `from`: what each of these has lost since
    /// more than half of all had been read.
    fn lost(&self, receiver: &mut Receiver, from: i128, rounds: i128, off: i128) -> Vec<usize> {
        let is_few = |source: usize| source < self.how_many;
        let mut order: Vec<usize> = (0..self.sources).collect();
        order.sort_by_key(|&source| is_few(source) != self.are_first);
        let (mut lost, mut read) = (vec![0; self.sources], 0);
        for round in 0..rounds {
            for &source in &order {
                let is_good = off == 0 || !is_few(source);
                read += usize::from(is_good && round == 0);
                for batch in from + round * self.burst..from + (round + 1) * self.burst {
                    let time = batch + if is_good { 0 } else { off };
                    let outcome = receiver.heap(time * 4096, source, source % self.streams);
                    let counts = is_good && 2 * read > self.sources;
                    lost[source] += usize::from(counts && !matches!(outcome, Outcome::Received(..)));
                }
            }
        }
        lost
    }
}

/// How many cases: many more in a long run.
fn cases() -> u32 {
    std::env::var("LIVENESS_CASES").map_or(600, |cases| cases.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        rng_seed: RngSeed::Fixed(48),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    })]

    /// More than half of the sources are of one mind from now on: each of them loses two heaps at most (three where it is the
    /// only one), whatever the others do.
    #[test]
    fn most_sources_are_received_whatever_came_before(case in case(8, 1)) {
        let (lost, causes) = losses(&case);
        let bound = if case.sources == 1 { 3 } else { 2 };
        prop_assert!(lost.iter().all(|&lost| lost <= bound), "lost {lost:?}, causes {causes:?}");
    }

    /// Few had gone back by one to two windows before all others do.
    #[test]
    fn few_that_went_back_first_speak_for_those_who_follow(few in few()) {
        let mut receiver = few.receiver();
        let (from, span) = (LATER + few.at, i128::from(few.window) * 8);
        let rounds = span * 3 / few.burst + 1;
        few.lost(&mut receiver, from, rounds, 0);
        let (back, from) = (span + few.off % (span - 8), from + rounds * few.burst);
        few.lost(&mut receiver, from, rounds, -back);
        let lost = few.lost(&mut receiver, from + rounds * few.burst - back, rounds, 0);
        prop_assert!(lost.iter().all(|&lost| lost <= 2), "lost {lost:?}, back by {back}");
    }

    /// Few are ahead from the start, and heard first.
    #[test]
    fn few_that_are_ahead_at_the_start_are_outvoted(few in few()) {
        let few = Few { are_first: true, ..few };
        let ahead = few.off % (i128::from(few.window) * 16);
        let lost = few.lost(&mut few.receiver(), LATER + few.at, 12, ahead);
        prop_assert!(lost.iter().all(|&lost| lost <= 2), "lost {lost:?}, ahead by {ahead}");
    }

    /// Likewise where heaps of each source are read in a row, as spead2 reads sockets: not counting those that were read before
    /// more than half of the sources had been read again.
    #[test]
    fn sources_that_are_read_in_turn_are_received_whatever_came_before(case in case(8, 70)) {
        let (lost, causes) = losses(&case);
        let bound = if case.sources == 1 { 3 } else { 2 };
        prop_assert!(lost.iter().all(|&lost| lost <= bound), "lost {lost:?}, causes {causes:?}");
    }
}
