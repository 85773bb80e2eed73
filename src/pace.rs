//! How fast a stream's time goes by the clock, and how far it can have come.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]
#![expect(clippy::cast_precision_loss, reason = "what is compared with the clock has a tolerance of a tenth")]

/// Nanoseconds after which the rate that a stream shows is told to others.
const ENOUGH: u64 = 500_000_000;
/// Nanoseconds after which time is expected to have gone on at that rate, if it is the faster one.
const SOME: u64 = 1_000_000;
/// By how much the clocks of senders and receiver may differ in rate.
const CLOCK_DRIFT: f64 = 1e-4;
/// How much further than expected time may have come, as a part of what has passed.
const TOLERANCE: f64 = 0.1;
/// Longest gap, in seconds, that is an outage where no clock can tell.
const MAX_OUTAGE: f64 = 3600.0;

/// A reading of the clock, and the time that the stream had then.
#[derive(Clone, Copy, Debug)]
struct Reading {
    clock: u64,
    time: i64,
}

/// The time of a stream against the clock.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// Ticks in a nanosecond that the layout says.
    declared: Option<f64>,
    /// What time may be ahead in any case: a window.
    slack: i64,
    /// The first reading since time last began.
    first: Option<Reading>,
    last: Option<Reading>,
    /// The moment at which the stream was the least behind its senders.
    promptest: Option<Reading>,
}

impl Reading {
    fn predict(&self, clock: u64, rate: f64) -> i64 {
        self.time.saturating_add((clock.saturating_sub(self.clock) as f64 * rate) as i64)
    }
}

impl Pace {
    /// Nothing is known yet but what the layout says: ticks in a second.
    pub fn new(tick_rate: Option<f64>, slack: i64) -> Self {
        Self { declared: tick_rate.map(|rate| rate / 1e9), slack, first: None, last: None, promptest: None }
    }

    /// Time has begun again.
    pub fn begin_again(&mut self) {
        (self.first, self.last, self.promptest) = (None, None, None);
    }

    /// The newest time is now this.
    pub fn note(&mut self, time: i64, clock: Option<u64>) {
        let Some(clock) = clock else { return };
        let now = Reading { clock, time };
        self.first = self.first.or(Some(now));
        self.last = Some(now);
        let rate = self.rate().unwrap_or(0.0);
        if self.promptest.is_none_or(|then| time >= then.predict(clock, rate * (1.0 - CLOCK_DRIFT))) {
            self.promptest = Some(now);
        }
    }

    /// Ticks in a nanosecond that the stream shows, once it has shown it for long enough.
    pub fn measured(&self) -> Option<f64> {
        self.measured_for(ENOUGH)
    }

    fn measured_for(&self, enough: u64) -> Option<f64> {
        let (first, last) = (self.first?, self.last?);
        let passed = last.clock.saturating_sub(first.clock);
        (passed >= enough).then(|| last.time.saturating_sub(first.time) as f64 / passed as f64)
    }

    /// The rate to reckon with, if the layout has one: the faster one, for nothing is lost if time could have come further
    /// than it did.
    fn rate(&self) -> Option<f64> {
        let declared = self.declared?;
        Some(self.measured_for(SOME).map_or(declared, |measured| measured.max(declared)))
    }

    /// The time to expect, if a clock can tell.
    pub fn expected(&self, clock: Option<u64>) -> Option<i64> {
        Some(self.promptest?.predict(clock?, self.rate()?))
    }

    /// Whether it can be told how far time may have come.
    pub fn can_tell(&self) -> bool {
        self.declared.is_some()
    }

    /// Whether time can have come from one moment to a later one, if nothing was restarted.
    ///
    /// Without a clock, any gap of an hour can be; without any rate, any gap at all.
    pub fn is_possible(&self, from: i64, to: i64, clock: Option<u64>) -> bool {
        let Some(expected) = self.expected(clock) else {
            let most = self.declared.map_or(i64::MAX, |rate| (rate * 1e9 * MAX_OUTAGE) as i64);
            return to.saturating_sub(from) <= most;
        };
        let passed = expected.saturating_sub(from).max(0);
        to <= expected.saturating_add((passed as f64 * TOLERANCE) as i64).saturating_add(self.slack)
    }

    /// Whether a time is the one to expect.
    pub fn is_expected(&self, from: i64, time: i64, clock: Option<u64>) -> bool {
        let near = |expected: i64| {
            let passed = expected.saturating_sub(from).max(0);
            time >= expected.saturating_sub((passed as f64 * TOLERANCE) as i64).saturating_sub(self.slack)
        };
        self.expected(clock).is_some_and(near) && self.is_possible(from, time, clock)
    }
}
