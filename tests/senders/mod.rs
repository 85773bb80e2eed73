//! Streams of a group as the timeline sees them: with a window that all share, and a fast path that asks nobody.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::cell::Cell;

use speadrx::epochs::Cause;
use speadrx::layout::Layout;
use speadrx::segment::Moment;
use speadrx::spec::{Align, LayoutSpec};
use speadrx::timeline::{Sighting, TimeRules, Timeline, Verdict, Witness};
use speadrx::window::UNKNOWN;

pub const RANGE: i128 = 1 << 48;
pub const LATER: i128 = 1 << 20;

/// So many batches a chunk, and heaps of 8 bytes.
pub fn layout(step: u64, batches: u64, sources: u64, tick_rate: Option<f64>) -> Layout {
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

/// What has become of a heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in a chunk with this ID and has this time.
    Received(i128, i128),
    /// Its chunk had gone.
    TooOld,
    Rejected(Verdict),
}

/// What streams have placed.
pub struct World {
    placed: Vec<u64>,
    newest: Vec<i64>,
    now: Option<u64>,
    /// How often all sources have been counted.
    pub counts: Cell<usize>,
}

impl Witness for World {
    fn placed(&self, source: u64) -> u64 {
        self.placed[source as usize]
    }

    fn newest(&self, source: u64) -> i64 {
        self.newest[source as usize]
    }

    fn look(&self, is_urgent: bool) {
        self.counts.set(self.counts.get() + usize::from(!is_urgent));
    }

    fn now(&self) -> Option<u64> {
        self.now
    }
}

/// Streams with a timeline.
pub struct Receiver {
    pub timeline: Timeline,
    pub world: World,
    step: i128,
    batches: i128,
    window: i128,
    align: Align,
    /// Which streams know where the window is.
    knows: Vec<bool>,
    /// The first chunk that has not been given out by a flush, and its first batch as senders count.
    floor: i128,
    given_out: i128,
}

impl Receiver {
    pub fn new(layout: &Layout, window: u64, streams: usize, resync: bool, is_live: bool) -> Self {
        let reach = window + u64::from(streams > 1);
        let sources = layout.n_sources() as usize;
        let time = &layout.spec().time;
        Self {
            timeline: Timeline::new(TimeRules::new(layout, window, reach, None, resync).unwrap()),
            world: World {
                placed: vec![0; sources],
                newest: vec![-1; sources],
                now: is_live.then_some(0),
                counts: Cell::new(0),
            },
            step: time.step.into(),
            batches: time.batches.into(),
            window: window.into(),
            align: time.align,
            knows: vec![false; streams],
            floor: 0,
            given_out: 0,
        }
    }

    pub fn streams(&self) -> usize {
        self.knows.len()
    }

    pub fn sources(&self) -> usize {
        self.world.placed.len()
    }

    pub fn chunk_step(&self) -> i128 {
        self.step * self.batches
    }

    /// So many nanoseconds pass on the clock.
    pub fn pass(&mut self, nanoseconds: i128) {
        if let Some(now) = &mut self.world.now {
            *now += u64::try_from(nanoseconds).unwrap();
        }
    }

    /// A timestamp less the phase of its source, and shifted so that it is rounded down; None if the phase is not known.
    fn shifted(&self, heap: Sighting) -> Option<i128> {
        let phase = match self.timeline.phases().get(heap.source as usize) {
            Some(&UNKNOWN) => return None,
            Some(&phase) => i128::from(phase as i64),
            None => 0,
        };
        let bias = if self.align == Align::Nearest { self.step / 2 } else { 0 };
        Some(i128::from(heap.stamp) + bias - phase)
    }

    /// Chunk, batch and time of a heap, if the window of a stream holds it, for all that the stream knows.
    fn in_window(&self, heap: Sighting, stream: usize) -> Option<(i128, i128, i128)> {
        let newest = self.timeline.newest().filter(|_| self.knows[stream])?;
        let (origin, range) = (i128::from(newest.origin), 1 << newest.bits);
        if i128::from(heap.stamp) >= range {
            return None;
        }
        let start = (i128::from(newest.chunk) - i128::from(newest.epoch_offset)) * self.chunk_step() + origin;
        let time = start + (self.shifted(heap)? - start + range / 2).rem_euclid(range) - range / 2;
        let steps = (time - origin).div_euclid(self.step);
        let is_aligned = self.align != Align::Reject || (time - origin) % self.step == 0;
        let chunk = steps.div_euclid(self.batches) + i128::from(newest.epoch_offset);
        let behind = i128::from(newest.chunk) - chunk;
        let is_there = (0..self.window).contains(&behind) && chunk >= newest.epoch_first.into() && steps >= 0;
        // Where timestamps wrap within the window, the fast path ends.
        let first = (self.window_first() - i128::from(newest.epoch_offset)) * self.batches;
        let until_wrap = (range - 1 - (first * self.step + origin).rem_euclid(range)) / self.step + 1;
        (is_there && is_aligned && steps - first < until_wrap).then_some((
            chunk,
            steps.rem_euclid(self.batches),
            steps * self.step + origin,
        ))
    }

    /// ID of the newest chunk.
    pub fn newest(&self) -> Option<i128> {
        self.timeline.newest().map(|newest| newest.chunk.into())
    }

    /// ID of the first chunk of the window.
    pub fn window_first(&self) -> i128 {
        let first = |newest: Moment| (i128::from(newest.chunk) - self.window + 1).max(newest.epoch_first.into());
        self.timeline.newest().map_or(0, first).max(self.floor)
    }

    /// Place a heap that comes through a stream: its chunk and time. Or why it is rejected.
    pub fn place(&mut self, heap: Sighting, stream: usize) -> Result<(i128, i128), Verdict> {
        let (chunk, batch, time) = match self.in_window(heap, stream) {
            Some(place) => place,
            None => match self.ask(heap, stream) {
                Verdict::Place(moment) => {
                    let (chunk, batch) = (i128::from(moment.chunk), i128::from(moment.batch));
                    let steps = (chunk - i128::from(moment.epoch_offset)) * self.batches + batch;
                    let beyond =
                        (self.shifted(heap).expect("it is placed") - steps * self.step - i128::from(moment.origin))
                            .rem_euclid(1 << moment.bits);
                    assert!(beyond < if self.align == Align::Reject { 1 } else { self.step }, "{beyond} ticks beyond");
                    (chunk, batch, steps * self.step + i128::from(moment.origin))
                }
                verdict => return Err(verdict),
            },
        };
        let source = heap.source as usize;
        self.world.placed[source] += 1;
        let newest = &mut self.world.newest[source];
        *newest = (*newest).max((chunk * self.batches + batch) as i64);
        Ok((chunk, time))
    }

    /// Tell of a heap that was there already, more often than a network repeats heaps. Whether time has begun again.
    pub fn repeat(&mut self, heap: Sighting) -> bool {
        let before = self.timeline.newest();
        self.timeline.repeat(heap, &self.world);
        let has_begun = self.timeline.newest() != before;
        if has_begun {
            self.knows.fill(false);
        }
        has_begun
    }

    /// Receive a heap of a layout that has one for each source and batch.
    pub fn heap(&mut self, time: i128, source: usize, stream: usize) -> Outcome {
        let stamp = time.rem_euclid(RANGE).try_into().unwrap();
        match self.place(Sighting { source: source as u64, stamp, slot: source as u64 }, stream) {
            Err(verdict) => Outcome::Rejected(verdict),
            Ok((chunk, _)) if chunk < self.window_first() => Outcome::TooOld,
            Ok((chunk, time)) => Outcome::Received(chunk, time),
        }
    }

    fn ask(&mut self, heap: Sighting, stream: usize) -> Verdict {
        let before = self.timeline.newest();
        let verdict = self.timeline.observe(heap, &self.world);
        if self.timeline.newest() != before {
            self.knows.fill(false);
        }
        self.knows[stream] = true;
        if let Verdict::Place(moment) = verdict {
            // Readers find the same time for it.
            let (_, epoch) = self.timeline.epochs().of_chunk(moment.chunk).expect("its epoch has begun");
            assert_eq!(epoch.offset, moment.epoch_offset);
        }
        verdict
    }

    /// The first batch that has not been given out by a flush.
    pub fn given_out(&self) -> i128 {
        self.given_out
    }

    /// The first batch of the window, as senders count.
    pub fn window_start(&self) -> i128 {
        let start = |newest: Moment| i128::from(newest.chunk) - i128::from(newest.epoch_offset) - self.window + 1;
        self.timeline.newest().map_or(0, start) * self.batches
    }

    /// Have all chunks given out.
    pub fn flush(&mut self) {
        if let Some(newest) = self.timeline.newest() {
            let chunk = i128::from(newest.chunk) + 1 - i128::from(newest.epoch_offset);
            self.given_out = chunk * self.batches;
        }
        if let Some(control) = self.timeline.flush(&self.world) {
            self.floor = i128::from(control) + 1;
            self.knows.fill(false);
        }
    }

    /// Receive batches of all sources, which send in turn; how many heaps each of them has lost.
    pub fn batches(&mut self, times: impl IntoIterator<Item = i128>) -> Vec<usize> {
        let mut lost = vec![0; self.sources()];
        for batch in times {
            for (source, lost) in lost.iter_mut().enumerate() {
                let time = batch * self.step;
                let outcome = self.heap(time, source, source % self.streams());
                *lost += usize::from(
                    !matches!(outcome, Outcome::Received(_, at) if at.rem_euclid(RANGE) == time.rem_euclid(RANGE)),
                );
            }
            self.pass(self.step);
        }
        lost
    }

    /// Why each epoch began.
    pub fn causes(&self) -> Vec<Cause> {
        let epochs = self.timeline.epochs();
        (0..epochs.len()).map(|i| epochs.get(i).unwrap().cause).collect()
    }
}
