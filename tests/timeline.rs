//! The timeline against a slow model, with any sequence of good, late, early, mad and restarting sources; and what each
//! fault costs.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use speadrx::epochs::Cause;
use speadrx::layout::Layout;
use speadrx::spec::LayoutSpec;
use speadrx::timeline::{self, Timeline, Verdict, Witness};

mod model;

use model::{Model, ModelRules, Rejected};

const RANGE: i128 = 1 << 48;
const EVENTS: usize = 400;

fn layout(step: u64, batches: u64, sources: u64, tick_rate: Option<f64>) -> Layout {
    let rate = tick_rate.map_or(String::new(), |rate| format!(", tick_rate = {rate:?}"));
    let text = format!(
        r#"
        heap_bytes = 8
        sources = "antenna"
        time = {{ item = 0x1600, step = {step}, batches = {batches}{rate} }}
        axes = [{{ name = "antenna", item = 0x4101, size = {sources} }}]
        "#
    );
    Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap()
}

/// Streams with a timeline and a model of it, which must agree on every heap.
struct Receiver {
    rules: ModelRules,
    timeline: Timeline,
    model: Model,
    /// The newest chunk that each stream has made.
    newest: Vec<i128>,
    now: u64,
}

struct World<'a> {
    model: &'a Model,
    now: u64,
    source: usize,
    stream: usize,
}

impl Witness for World<'_> {
    fn placed(&self) -> u64 {
        self.model.placed.try_into().unwrap()
    }

    fn source(&self) -> u64 {
        self.source as u64
    }

    fn newest_of_source(&self) -> i64 {
        self.model.newest[self.stream][self.source].try_into().unwrap()
    }

    fn newest_of_stream(&self) -> Option<u64> {
        let newest = self.model.newest[self.stream].iter().max()?.div_euclid(self.model.rules.batches);
        u64::try_from(newest).ok()
    }

    fn others(&self, since: u64, from: u64) -> (u64, u64) {
        let model = self.model;
        let others = (0..model.rules.n_sources).filter(|&i| i != self.source);
        let newest = others.map(|i| model.newest.iter().map(|stream| stream[i]).max().unwrap());
        let alive: Vec<i128> = newest.filter(|&batch| batch >= since.into()).collect();
        (alive.len() as u64, alive.iter().filter(|&&batch| batch >= from.into()).count() as u64)
    }

    fn now(&self) -> u64 {
        self.now
    }
}

impl Receiver {
    fn new(layout: &Layout, window: u64, streams: usize, max_jump: Option<u64>, resync: bool) -> Self {
        let reach = window + u64::from(streams > 1);
        let spec = layout.spec();
        let rules = ModelRules {
            step: spec.time.step.into(),
            batches: spec.time.batches.into(),
            window: window.into(),
            reach: reach.into(),
            max_jump: max_jump.unwrap_or(window.saturating_sub(1).max(1)).into(),
            resync,
            n_sources: layout.n_sources() as usize,
            rate: spec.time.tick_rate.map(|rate| rate / 1e9),
        };
        Self {
            timeline: Timeline::new(timeline::TimeRules::new(layout, window, reach, max_jump, resync).unwrap()),
            model: Model::new(rules.clone(), streams),
            rules,
            newest: vec![-1; streams],
            now: 0,
        }
    }

    fn chunk_step(&self) -> i128 {
        self.rules.step * self.rules.batches
    }

    /// Receive a heap: its chunk ID and true timestamp, or why it was rejected.
    fn heap(&mut self, time: i128, source: usize, stream: usize) -> Result<(i128, i128), Rejected> {
        let stamp = time.rem_euclid(RANGE);
        let world = World { model: &self.model, now: self.now, source, stream };
        let verdict = self.timeline.observe(stamp.try_into().unwrap(), &world);
        let expected = self.model.judge(stamp, source, stream, self.now);
        match (verdict, expected) {
            (Verdict::Place(moment), Ok((chunk, time))) => {
                assert_eq!(i128::from(moment.chunk), chunk);
                assert_eq!(i128::from(moment.batch), (time / self.rules.step).rem_euclid(self.rules.batches));
                // Readers find the same time for it, if its chunk can still come out.
                let (_, epoch) = self.timeline.epochs().of_chunk(moment.chunk).expect("its epoch has begun");
                assert_eq!(i128::from(epoch.true_chunk(moment.chunk)), time.div_euclid(self.chunk_step()));
                assert!(moment.epoch_first <= moment.chunk && time >= 0);
                let late = self.newest[stream] - chunk >= self.rules.window;
                self.newest[stream] = self.newest[stream].max(chunk);
                self.model.count(source, stream, chunk, time, late);
            }
            (Verdict::Misaligned, Err(Rejected::Misaligned))
            | (Verdict::Implausible, Err(Rejected::Implausible))
            | (Verdict::Backward, Err(Rejected::Backward)) => {}
            other => panic!("timeline and model differ on {stamp}: {other:?}"),
        }
        expected
    }

    fn flush(&mut self) {
        let control = self.timeline.flush().map(i128::from);
        assert_eq!(control, self.model.flush());
        if let Some(control) = control {
            self.newest.fill(control);
        }
    }

    /// Receive batches of all sources; how many heaps were placed with their true timestamp.
    fn batches(&mut self, times: impl IntoIterator<Item = i128>) -> usize {
        let n = self.rules.n_sources;
        let streams = self.newest.len();
        let step = self.rules.step;
        times
            .into_iter()
            .flat_map(|batch| (0..n).map(move |source| (batch * step, source)))
            .filter(|&(time, source)| {
                let placed = self.heap(time, source, source % streams);
                self.now += u64::try_from(step).unwrap() / n as u64; // ticks of a nanosecond, if they have a rate
                placed.is_ok_and(|(chunk, true_time)| {
                    true_time == time && self.newest[source % streams] - chunk < self.rules.window
                })
            })
            .count()
    }

    fn causes(&self) -> Vec<Cause> {
        let epochs = self.timeline.epochs();
        (0..epochs.len()).map(|i| epochs.get(i).unwrap().cause).collect()
    }
}

#[derive(Clone, Debug)]
enum Event {
    /// The senders go on by some batches; each of so many sources sends a heap.
    Send {
        batches: i128,
        sources: usize,
        skew: i128,
    },
    /// One heap is off by so many batches, or has any timestamp.
    Odd {
        off: i128,
        source: usize,
    },
    Any {
        stamp: i128,
        source: usize,
    },
    /// The senders are restarted, all of them or those of a half.
    Restart {
        at: i128,
    },
    HalfRestart {
        at: i128,
    },
    /// Time passes on the clock: with the senders silent, or with them going on unseen.
    Silence {
        chunks: i128,
        agrees: bool,
    },
    /// One source's clock is wrong from now on.
    Mad {
        source: usize,
        off: i128,
    },
    Flush,
}

fn event() -> impl Strategy<Value = Event> {
    let anywhere = || prop_oneof![0..50_i128, RANGE - 50..RANGE, 0..RANGE];
    prop_oneof![
        24 => (0..4_i128, 1..7_usize, 0..3_i128)
            .prop_map(|(batches, sources, skew)| Event::Send { batches, sources, skew }),
        4 => (-60..60_i128, 0..7_usize).prop_map(|(off, source)| Event::Odd { off, source }),
        1 => (anywhere(), 0..7_usize).prop_map(|(stamp, source)| Event::Any { stamp, source }),
        1 => anywhere().prop_map(|at| Event::Restart { at }),
        1 => anywhere().prop_map(|at| Event::HalfRestart { at }),
        1 => (0..40_i128, any::<bool>()).prop_map(|(chunks, agrees)| Event::Silence { chunks, agrees }),
        1 => (0..7_usize, -200..200_i128).prop_map(|(source, off)| Event::Mad { source, off }),
        1 => Just(Event::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1500,
        max_shrink_iters: 5000,
        rng_seed: RngSeed::Fixed(48),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn timeline_equals_model(
        (step, batches) in (select(vec![1_u64, 3, 4096, 1_000_003, 1 << 40]), 1_u64..6),
        (window, streams, max_jump) in (1_u64..6, 1_usize..3, prop_oneof![3 => Just(None), 1 => (1_u64..12).prop_map(Some)]),
        (sources, resync) in (1_u64..7, any::<bool>()),
        rate in prop_oneof![Just(None), Just(Some(1e9))],
        start in prop_oneof![0..50_i128, RANGE - 50..RANGE, 0..RANGE],
        events in vec(event(), EVENTS),
    ) {
        let layout = layout(step, batches, sources, rate);
        let mut receiver = Receiver::new(&layout, window, streams, max_jump, resync);
        let (sources, step, batches) = (sources as usize, i128::from(step), i128::from(batches));
        // What each source takes the time to be, in batches.
        let mut clocks = vec![start / step; sources];
        for event in events {
            match event {
                Event::Send { batches, sources: n, skew } => {
                    for clock in &mut clocks {
                        *clock += batches;
                    }
                    receiver.now += u64::try_from(batches * step).unwrap().min(1 << 50);
                    for (source, clock) in clocks.iter().enumerate().take(n) {
                        let time = (clock - skew * (source as i128 % 2)) * step;
                        let _ = receiver.heap(time, source, source % streams);
                    }
                }
                Event::Odd { off, source } => {
                    let source = source % sources;
                    let _ = receiver.heap((clocks[source] + off) * step, source, source % streams);
                }
                Event::Any { stamp, source } => {
                    let _ = receiver.heap(stamp, source % sources, source % streams);
                }
                Event::Restart { at } => clocks.fill(at / step),
                Event::HalfRestart { at } => clocks.iter_mut().step_by(2).for_each(|clock| *clock = at / step),
                Event::Silence { chunks, agrees } => {
                    receiver.now += u64::try_from(chunks * step * batches).unwrap().min(1 << 50);
                    if agrees {
                        for clock in &mut clocks {
                            *clock += chunks * batches;
                        }
                    }
                }
                Event::Mad { source, off } => clocks[source % sources] += off,
                Event::Flush => receiver.flush(),
            }
        }
        prop_assert_eq!(receiver.causes().iter().filter(|&&cause| cause == Cause::Restart).count(),
                        receiver.model.restarts);
    }
}

/// Chunks of 8 batches of 4096 ticks.
fn receiver(sources: u64, resync: bool, tick_rate: Option<f64>) -> Receiver {
    Receiver::new(&layout(4096, 8, sources, tick_rate), 4, 1, None, resync)
}

const LATER: i128 = 1 << 20;

/// Batches of sources that go on after an event; nearly all of their heaps must come.
fn must_go_on(receiver: &mut Receiver, from: i128, lost: usize) {
    let n = receiver.rules.n_sources;
    let placed = receiver.batches(from..from + 400);
    assert!(400 * n - placed <= lost, "{} heaps lost of {}", 400 * n - placed, 400 * n);
}

#[test]
fn a_restart_costs_the_quorum() {
    for sources in [1, 4, 80] {
        for at in [0, LATER - 1000, LATER * 2, LATER - 20, 5] {
            let mut receiver = receiver(sources, true, Some(1e9));
            must_go_on(&mut receiver, LATER, 0);
            let quorum = 16.max(sources as usize);
            must_go_on(&mut receiver, at, quorum);
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
        must_go_on(&mut receiver, 0, 16);
        assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
    }
}

#[test]
fn without_resync_time_never_goes_back() {
    let mut receiver = receiver(4, false, None);
    must_go_on(&mut receiver, LATER, 0);
    assert_eq!(receiver.batches(0..400), 0);
    assert_eq!(receiver.timeline.refusals(), 1);
    assert_eq!(receiver.heap(400 * 4096, 0, 0), Err(Rejected::Backward));
    // The right time is right still, and a jump ahead is followed.
    must_go_on(&mut receiver, LATER + 400, 0);
    must_go_on(&mut receiver, LATER * 2, 16);
    assert_eq!(receiver.causes(), [Cause::Start]);
    let (chunk, time) = receiver.heap((LATER * 2 + 399) * 4096, 0, 0).unwrap();
    assert_eq!(chunk, time / receiver.chunk_step());
}

#[test]
fn without_resync_the_rest_go_on_where_most_have_gone_back() {
    let mut receiver = receiver(5, false, None);
    must_go_on(&mut receiver, LATER, 0);
    let mut placed = 0;
    for batch in 0..400 {
        for source in 0..5 {
            let time = if source == 2 { LATER + 400 + batch } else { batch };
            placed += usize::from(receiver.heap(time * 4096, source, 0).is_ok());
        }
    }
    assert_eq!(placed, 400);
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
fn a_wrong_first_heap_is_outvoted() {
    for sources in [1, 4, 80] {
        for wrong in [0, 1 << 40, 1 << 47, RANGE - 4096] {
            let mut receiver = receiver(sources, true, None);
            assert!(receiver.heap(wrong, 0, 0).is_ok());
            must_go_on(&mut receiver, LATER + 3, 16.max(sources as usize));
        }
    }
}

#[test]
fn a_mad_source_costs_the_others_nothing() {
    // Its clock is off by a constant, jumps, or drifts to either side.
    let madness: [fn(i128) -> i128; 6] = [
        |batch| batch + 100_000,
        |batch| batch - 100_000,
        |batch| (batch * 40_503) % (1 << 30),
        |batch| batch + batch / 4,
        |batch| batch - batch / 4,
        |batch| batch + batch / 40,
    ];
    for (i, mad) in madness.into_iter().enumerate() {
        for tick_rate in [None, Some(1e9)] {
            let mut receiver = receiver(80, true, tick_rate);
            let mut wrong = 0;
            for batch in 0..800 {
                for source in 0..80 {
                    let since = if source == 7 { mad(batch) } else { batch };
                    let outcome = receiver.heap((LATER + since) * 4096, source, 0);
                    receiver.now += 4096 / 80;
                    let in_window = outcome.is_ok_and(|(chunk, _)| receiver.newest[0] - chunk < 4);
                    if source != 7 {
                        assert!(in_window, "source {source} lost batch {batch} to madness {i}");
                    }
                    wrong += usize::from(source == 7 && !in_window);
                }
            }
            // The last one does not get further than the window is wide.
            assert!(if i == 5 { wrong == 0 } else { wrong > 300 }, "madness {i}: {wrong} heaps were found wrong");
            assert_eq!(receiver.causes(), [Cause::Start]);
        }
    }
}

#[test]
fn an_outage_that_agrees_with_the_clock_costs_nothing() {
    // Longer than half the range of timestamps, too: nearest to the newest time, that would be in the past.
    for chunks in [5, 100, 1 << 20, 3 << 31] {
        let mut receiver = receiver(80, false, Some(1e9));
        must_go_on(&mut receiver, LATER, 0);
        receiver.now = u64::try_from((400 + chunks * 8) * 4096).unwrap();
        let placed = receiver.heap((LATER + 400 + chunks * 8) * 4096, 3, 0);
        assert_eq!(placed, Ok(((LATER + 400) / 8 + chunks, (LATER + 400 + chunks * 8) * 4096)));
        must_go_on(&mut receiver, LATER + 400 + chunks * 8, 0);
        assert_eq!(receiver.causes(), [Cause::Start]);
    }
}

#[test]
fn an_outage_without_a_clock_costs_the_quorum_and_is_no_restart() {
    let mut receiver = receiver(80, true, None);
    must_go_on(&mut receiver, LATER, 0);
    must_go_on(&mut receiver, LATER * 3, 80);
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn a_stream_that_was_held_up_catches_up_with_the_clock() {
    // While it was, the kernel kept what it could, and dropped the rest.
    let mut receiver = receiver(80, true, Some(1e9));
    must_go_on(&mut receiver, LATER, 0);
    receiver.now += 10_000 * 4096;
    must_go_on(&mut receiver, LATER + 400, 0);
    let now = LATER + i128::from(receiver.now) / 4096;
    must_go_on(&mut receiver, now, 1);
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn sources_that_fall_silent_do_not_hold_up_the_rest() {
    let mut receiver = receiver(80, true, Some(1e9));
    must_go_on(&mut receiver, LATER, 0);
    let mut lost = 0;
    for batch in 400..1200 {
        for source in 0..5 {
            let outcome = receiver.heap((LATER + batch) * 4096, source, 0);
            receiver.now += 4096 / 5;
            lost += usize::from(outcome.is_err());
        }
    }
    assert!(lost <= 80, "{lost} heaps lost");
    assert_eq!(receiver.causes(), [Cause::Start]);
}

#[test]
fn a_stream_of_a_group_that_lags_does_not_restart_time() {
    // The second stream stands still while the first goes on, and then reads all that the kernel has kept, at once.
    let mut receiver = Receiver::new(&layout(4096, 8, 4, None), 4, 2, None, true);
    must_go_on(&mut receiver, LATER, 0);
    for batch in 400..1000 {
        for source in [0, 2] {
            assert!(receiver.heap((LATER + batch) * 4096, source, 0).is_ok());
        }
    }
    for batch in 400..1000 {
        for source in [1, 3] {
            // Placed, though spead2 may have given up on the chunk.
            assert!(receiver.heap((LATER + batch) * 4096, source, 1).is_ok());
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
    let newest = receiver.newest[0];
    // The newest batch was number 399 of its run: in the last place of its chunk but none.
    let late = receiver.heap((LATER + 399) * 4096, 1, 0).unwrap();
    assert!(late.0 < newest - 3, "the chunk has been handed over");
    must_go_on(&mut receiver, LATER + 400, 0);
    // A second flush at once has nothing to do.
    receiver.flush();
    let flushed = receiver.newest[0];
    receiver.flush();
    assert_eq!(receiver.newest[0], flushed);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Flush, Cause::Flush]);
}

#[test]
fn stragglers_of_the_time_before_do_not_vote() {
    let mut receiver = receiver(80, true, None);
    must_go_on(&mut receiver, LATER, 0);
    // Half of the sources, and one more, are restarted first; a while later the others.
    for batch in 0..200 {
        for source in 0..80 {
            let restarted = source <= 40 || batch >= 30;
            let time = if restarted { batch } else { LATER + 400 + batch };
            let _ = receiver.heap(time * 4096, source, 0);
        }
    }
    must_go_on(&mut receiver, 200, 0);
    assert_eq!(receiver.causes(), [Cause::Start, Cause::Restart]);
}

/// Heaps of all sources but one that are placed into the window, while that one sends what it wants.
fn others_placed(receiver: &mut Receiver, mad: usize, from: i128, batches: i128, time: impl Fn(i128) -> i128) -> usize {
    let mut placed = 0;
    for batch in 0..batches {
        for source in 0..receiver.rules.n_sources {
            let at = if source == mad { time(batch) } else { from + batch };
            let outcome = receiver.heap(at * 4096, source, 0);
            let in_window = outcome.is_ok_and(|(chunk, _)| receiver.newest[0] - chunk < receiver.rules.window);
            placed += usize::from(source != mad && in_window);
        }
    }
    placed
}

#[test]
fn what_one_mad_source_did_while_all_others_were_silent_is_undone() {
    let mut receiver = receiver(80, true, None);
    must_go_on(&mut receiver, LATER, 0);
    for batch in 0..200 {
        let _ = receiver.heap((LATER * 4 + batch) * 4096, 7, 0);
    }
    let placed = others_placed(&mut receiver, 7, LATER + 400, 400, |batch| LATER * 4 + 200 + batch);
    assert!(placed >= 79 * 400 - 2 * 80, "{placed} placed");
}

#[test]
fn a_clock_that_drifts_after_time_was_refused_takes_nobody_along() {
    let mut receiver = receiver(80, false, None);
    must_go_on(&mut receiver, LATER, 0);
    assert_eq!(receiver.batches(0..3), 0);
    assert_eq!(receiver.timeline.refusals(), 1);
    let drift = |batch| LATER + 400 + batch + batch / 4;
    assert_eq!(others_placed(&mut receiver, 7, LATER + 400, 1000, drift), 79 * 1000);
}

#[test]
fn where_nobody_has_a_majority_some_are_received() {
    for sources in [2, 4, 80] {
        for resync in [true, false] {
            let mut receiver = receiver(sources, resync, None);
            must_go_on(&mut receiver, LATER, 0);
            let mut placed = 0;
            for batch in 0..400 {
                for source in 0..sources as usize {
                    let time = if source % 2 == 0 { LATER * 3 + batch } else { LATER * 5 + batch };
                    placed += usize::from(receiver.heap(time * 4096, source, 0).is_ok());
                }
            }
            let half = 200 * sources as usize;
            assert!(placed >= half * 9 / 10 - 200, "{placed} of {half} placed, {sources} sources, resync {resync}");
        }
    }
}

#[test]
fn a_restart_after_a_wrap_may_make_sense_only_as_time_was_unwrapped() {
    // 2^48 is no multiple of the step: so long after the wrap, timestamps by themselves are not multiples of it.
    let mut receiver = Receiver::new(&layout(3, 8, 4, None), 4, 1, None, true);
    let begin = RANGE / 3 - 100;
    must_go_on(&mut receiver, begin, 0);
    must_go_on(&mut receiver, begin + 400, 0);
    let from = begin + 300;
    assert!((from * 3 % RANGE) % 3 != 0);
    must_go_on(&mut receiver, from, 16);
}

#[test]
fn a_slow_source_of_two_does_not_hold_up_the_other() {
    let mut receiver = Receiver::new(&layout(4096, 8, 2, None), 4, 2, None, true);
    must_go_on(&mut receiver, LATER, 0);
    let mut placed = [0, 0];
    for batch in 0..2000 {
        for (source, placed) in placed.iter_mut().enumerate() {
            // The second stream has a backlog of five chunks.
            let time = LATER + 400 + batch - if source == 1 { 40 } else { 0 };
            *placed += usize::from(receiver.heap(time * 4096, source, source).is_ok());
        }
    }
    assert_eq!(placed, [2000, 2000]);
}
