//! The timeline once more, slow and obvious: the rules one after the other, in numbers that cannot overflow.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::cast_precision_loss, reason = "what is compared with the clock has a tolerance of a tenth")]

const RANGE: i128 = 1 << 48;

/// Why a heap is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    Misaligned,
    Implausible,
    Backward,
}

/// What a model goes by.
#[derive(Clone, Debug)]
pub struct ModelRules {
    pub step: i128,
    pub batches: i128,
    pub window: i128,
    pub reach: i128,
    pub max_jump: i128,
    pub resync: bool,
    pub n_sources: usize,
    /// Ticks in a nanosecond.
    pub rate: Option<f64>,
}

/// A run of chunks: their IDs are `shift` more than the number of chunks from time 0.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub first: i128,
    pub newest: i128,
    pub shift: i128,
}

/// One who speaks for or against the candidate, and how many heaps had been placed then.
#[derive(Clone, Copy, Debug)]
enum Voice {
    For(i128),
    Against(i128),
}

#[derive(Clone, Debug)]
pub struct Model {
    pub rules: ModelRules,
    pub spans: Vec<Span>,
    alive_since: i128,
    placed_before: i128,
    candidate: Option<i128>,
    said: Vec<Voice>,
    refused: bool,
    /// Votes since a heap was last placed.
    barren: i128,
    /// Whether the last span began with a flush.
    flushed: bool,
    /// When the last heap was judged.
    asked: Option<u64>,
    /// Source and timestamp of the last heap that had jumped to what time it was.
    sighting: Option<(usize, i128)>,
    /// Clock and time of the most prompt heap.
    promptest: Option<(u64, i128)>,
    /// How often time began again.
    pub restarts: usize,
    /// What all streams have placed into their windows.
    pub placed: i128,
    /// The newest batch of each source, in chunk IDs: for each stream.
    pub newest: Vec<Vec<i128>>,
}

impl Model {
    pub fn new(rules: ModelRules, streams: usize) -> Self {
        let newest = vec![vec![-1; rules.n_sources]; streams];
        Self {
            rules,
            spans: Vec::new(),
            alive_since: 0,
            placed_before: 0,
            candidate: None,
            said: Vec::new(),
            refused: false,
            barren: 0,
            flushed: false,
            asked: None,
            sighting: None,
            promptest: None,
            restarts: 0,
            placed: 0,
            newest,
        }
    }

    fn chunk_step(&self) -> i128 {
        self.rules.step * self.rules.batches
    }

    fn quorum(&self) -> i128 {
        self.rules.n_sources.max(16) as i128
    }

    fn near(stamp: i128, reference: i128) -> i128 {
        let round = (reference - stamp).div_euclid(RANGE);
        (round - 1..=round + 1)
            .map(|k| stamp + k * RANGE)
            .find(|time| (-RANGE / 2..RANGE / 2).contains(&(time - reference)))
            .expect("one of three is near")
    }

    fn newest_time(&self, span: Span) -> i128 {
        (span.newest - span.shift) * self.chunk_step()
    }

    fn unwrap(&self, span: Span, stamp: i128) -> i128 {
        Self::near(stamp, self.newest_time(span))
    }

    fn chunk(&self, span: Span, time: i128) -> i128 {
        time.div_euclid(self.chunk_step()) + span.shift
    }

    fn aligned(&self, time: i128) -> bool {
        time.rem_euclid(self.rules.step) == 0
    }

    fn batch(&self, chunk: i128, time: i128) -> i128 {
        chunk * self.rules.batches + (time / self.rules.step).rem_euclid(self.rules.batches)
    }

    fn agree(&self, one: i128, other: i128) -> bool {
        Self::near(one - other, 0).abs() <= self.rules.max_jump * self.chunk_step()
    }

    fn enter(&mut self, span: Span, restart: bool) {
        self.spans.push(span);
        self.flushed = false;
        self.barren = 0;
        self.alive_since = span.first;
        self.restarts += usize::from(restart);
        self.placed_before = self.placed;
        self.candidate = None;
        self.promptest = None;
    }

    fn predict((clock, time): (u64, i128), now: u64, rate: f64) -> i128 {
        time + ((now - clock) as f64 * rate) as i128
    }

    /// A heap of the current span, which may be the newest now.
    fn accept(&mut self, chunk: i128, time: i128, source: usize, now: u64) -> (i128, i128) {
        let span = self.spans.last_mut().unwrap();
        span.newest = span.newest.max(chunk);
        let rate = self.rules.rate.filter(|_| self.others_reached(chunk - 1, source));
        let expected = |rate| self.promptest.map(|then| Self::predict(then, now, rate * (1.0 - 1e-4)));
        if rate.is_some_and(|rate| expected(rate).is_none_or(|expected| time >= expected)) {
            self.promptest = Some((now, time));
        }
        (chunk, time)
    }

    pub fn is_aligned(&self, stamp: i128) -> bool {
        match self.spans.last() {
            None => self.aligned(stamp),
            Some(&span) => self.aligned(self.unwrap(span, stamp)) || self.previous(stamp).is_some(),
        }
    }

    /// Chunk ID and true timestamp of a heap, or why it is rejected.
    pub fn judge(&mut self, stamp: i128, source: usize, stream: usize, now: u64) -> Result<(i128, i128), Rejected> {
        let asked = self.asked.replace(now);
        let Some(&span) = self.spans.last() else {
            if !self.aligned(stamp) {
                return Err(Rejected::Misaligned);
            }
            let chunk = stamp / self.chunk_step();
            self.enter(Span { first: 0, newest: chunk, shift: 0 }, false);
            return Ok(self.accept(chunk, stamp, source, now));
        };
        let time = self.unwrap(span, stamp);
        let aligned = self.aligned(time);
        let chunk = self.chunk(span, time);
        let ahead = chunk - span.newest;
        let placeable = aligned && time >= 0 && chunk >= span.first;
        let window = self.rules.window;

        if placeable && -window < ahead && ahead <= 0 {
            return Ok((chunk, time));
        }
        if aligned && 0 < ahead && ahead <= self.rules.max_jump && self.keeps_others(chunk, source) {
            return Ok(self.accept(chunk, time, source, now));
        }
        if let Some((chunk, time)) = self.outage(span, stamp, source, asked, now) {
            self.alive_since = (chunk - window + 1).max(0);
            return Ok(self.accept(chunk, time, source, now));
        }
        if let Some(found) = self.previous(stamp) {
            return found;
        }
        if placeable && -2 * window < ahead && ahead < 0 {
            return Ok((chunk, time));
        }
        if let Some(found) = self.lagging(stamp, source, stream) {
            return Ok(found);
        }
        if ((aligned && time >= 0) || self.aligned(stamp)) && self.vote(stamp) {
            return self.win(stamp, source, now);
        }
        if !aligned {
            return Err(Rejected::Misaligned);
        }
        let refused = self.refused && self.candidate.is_some_and(|candidate| self.agree(stamp, candidate));
        Err(if refused { Rejected::Backward } else { Rejected::Implausible })
    }

    /// Note that a heap was placed.
    pub fn count(&mut self, source: usize, stream: usize, chunk: i128, time: i128, late: bool) {
        self.placed += i128::from(!late);
        let batch = self.batch(chunk, time);
        let newest = &mut self.newest[stream][source];
        *newest = batch.max(*newest);
    }

    fn keeps_others(&self, chunk: i128, source: usize) -> bool {
        if self.candidate.is_some() && self.refused && self.votes() > self.placed - self.placed_then() {
            return true; // the others have gone back, and must not
        }
        self.others_reached((chunk - self.rules.window + 1).min(self.spans.last().unwrap().newest), source)
    }

    /// Whether one in eight of the other sources alive, and at least one, has its newest time in a chunk or later.
    fn others_reached(&self, chunk: i128, source: usize) -> bool {
        let since = self.spans.last().unwrap().first.max(self.alive_since);
        let chunk_of = |source: usize| {
            let newest = self.newest.iter().map(|stream| stream[source]).max().unwrap();
            newest.div_euclid(self.rules.batches)
        };
        let others = (0..self.rules.n_sources).filter(|&other| other != source).map(chunk_of);
        let mut alive: Vec<i128> = others.filter(|&newest| newest >= since).collect();
        alive.sort_unstable_by(|a, b| b.cmp(a));
        let rank = (alive.len() / 8).max(1);
        self.rules.n_sources == 1
            || chunk <= since
            || alive.len() == 1
            || alive.get(rank - 1).is_none_or(|&newest| newest >= chunk)
    }

    fn outage(&mut self, span: Span, stamp: i128, source: usize, asked: Option<u64>, now: u64) -> Option<(i128, i128)> {
        let rate = self.rules.rate?;
        let step = self.chunk_step() as f64;
        let expected = Self::predict(self.promptest?, now, rate);
        let time = Self::near(stamp, expected);
        let newest = self.newest_time(span);
        let passed = (expected - newest).max(0) as f64;
        let near = (time - expected).abs() as f64 <= 0.1 * passed + 0.5 * step;
        let chunk = self.chunk(span, time);
        if !self.aligned(time) || !near || chunk - span.newest <= self.rules.max_jump {
            return None;
        }
        let silent = (time - newest) as f64 <= (now - asked?) as f64 * rate * 1.1 + 1.5 * step;
        let second = self.sighting.is_some_and(|(other, seen)| other != source && self.agree(stamp, seen));
        self.sighting = Some((source, stamp));
        (silent || second || self.rules.n_sources == 1).then_some((chunk, time))
    }

    fn previous(&self, stamp: i128) -> Option<Result<(i128, i128), Rejected>> {
        let span = self.spans[..self.spans.len() - 1].last()?;
        let time = self.unwrap(*span, stamp);
        let chunk = self.chunk(*span, time);
        let ahead = chunk - span.newest;
        if !self.aligned(time) || ahead > self.rules.window || ahead <= -2 * self.rules.window {
            return None;
        }
        if ahead > 0 {
            return Some(Err(Rejected::Implausible));
        }
        (time >= 0 && chunk >= span.first).then_some(Ok((chunk, time)))
    }

    /// The votes as they stand after all that was said: counted again each time.
    fn votes(&self) -> i128 {
        let mut votes = 0;
        let mut placed_before = None;
        for voice in &self.said {
            let (Voice::For(placed) | Voice::Against(placed)) = *voice;
            votes = (votes - (placed - placed_before.unwrap_or(placed))).max(0);
            placed_before = Some(placed);
            votes = match voice {
                Voice::For(_) => (votes + 1).min(self.quorum()),
                Voice::Against(_) => votes - 1,
            };
        }
        votes
    }

    fn placed_then(&self) -> i128 {
        self.said.last().map_or(0, |voice| match voice {
            Voice::For(placed) | Voice::Against(placed) => *placed,
        })
    }

    /// A heap that its stream is late with, since it is behind the window with all that it has.
    fn lagging(&self, stamp: i128, source: usize, stream: usize) -> Option<(i128, i128)> {
        let own = self.newest[stream][source];
        let newest_of_stream = self.newest[stream].iter().max()?.div_euclid(self.rules.batches);
        let now = self.spans.last()?;
        if newest_of_stream < 0 || newest_of_stream > now.newest - self.rules.window {
            return None;
        }
        let flushed = self.spans.iter().rev().nth(1).filter(|_| self.flushed);
        for &span in [Some(now), flushed].into_iter().flatten() {
            let time = self.unwrap(span, stamp);
            let chunk = self.chunk(span, time);
            let placeable = self.aligned(time) && time >= 0 && chunk >= span.first && chunk <= span.newest;
            if placeable && own >= span.first * self.rules.batches && self.batch(chunk, time) > own {
                return Some((chunk, time));
            }
        }
        None
    }

    /// Whether the vote for a time is won, after which it is the candidate.
    fn vote(&mut self, stamp: i128) -> bool {
        let had_candidate = self.candidate.is_some();
        let placed_then = self.placed_then();
        if had_candidate {
            self.barren = if self.placed > placed_then { 0 } else { self.barren + 1 };
        }
        if self.poll(stamp, placed_then) {
            return true;
        }
        let is_refused = self.refused && self.agree(stamp, self.candidate.unwrap());
        if had_candidate && self.barren >= 8 * self.quorum() && !is_refused {
            self.stand(stamp);
            return true;
        }
        false
    }

    fn stand(&mut self, stamp: i128) {
        self.candidate = Some(stamp);
        self.refused = false;
        self.said = vec![Voice::For(self.placed)];
    }

    fn poll(&mut self, stamp: i128, placed_then: i128) -> bool {
        let standing = self.candidate.filter(|_| self.votes() > self.placed - placed_then);
        if let Some(candidate) = standing {
            let agrees = self.agree(stamp, candidate);
            self.said.push(if agrees { Voice::For(self.placed) } else { Voice::Against(self.placed) });
            if self.votes() > 0 {
                if agrees && Self::near(stamp - candidate, 0) > 0 {
                    self.candidate = Some(stamp);
                }
                return self.votes() >= self.quorum() && !self.refused;
            }
        }
        self.stand(stamp);
        false
    }

    fn win(&mut self, stamp: i128, source: usize, now: u64) -> Result<(i128, i128), Rejected> {
        let candidate = self.candidate.unwrap();
        let span = *self.spans.last().unwrap();
        let time = self.unwrap(span, candidate);
        let chunk = self.chunk(span, time);
        let ahead = if self.aligned(time) { chunk - span.newest } else { 0 };
        let wraps = time.div_euclid(RANGE) != self.newest_time(span).div_euclid(RANGE);
        let proven = self.placed - self.placed_before >= self.quorum();
        let window = self.rules.window;
        let goes_on =
            ahead <= self.rules.max_jump || (proven && self.rules.rate.is_none() && !(wraps && self.rules.resync));
        if ahead > 0 && goes_on {
            self.spans.last_mut().unwrap().newest = chunk;
            self.candidate = None;
            self.barren = 0;
            self.alive_since = (chunk - window + 1).max(0);
        } else if ahead > 0 && !self.rules.resync {
            let (first, flushed) = (span.first, self.flushed);
            self.enter(Span { first, newest: chunk, shift: span.shift }, true);
            // It is the same run of chunks still.
            let last = self.spans.pop().unwrap();
            *self.spans.last_mut().unwrap() = last;
            self.flushed = flushed;
            self.alive_since = (chunk - window + 1).max(0);
        } else if self.rules.resync {
            let first = span.newest + self.rules.reach;
            let newest = first + window - 1;
            let begins = if self.aligned(candidate) || !self.aligned(time) { candidate } else { time };
            let shift = newest - begins.div_euclid(self.chunk_step());
            self.enter(Span { first: shift.max(first), newest, shift }, true);
        } else {
            self.refused = true;
            return Err(Rejected::Backward);
        }
        let span = *self.spans.last().unwrap();
        let time = self.unwrap(span, stamp);
        if !self.aligned(time) {
            return Err(Rejected::Misaligned);
        }
        let chunk = self.chunk(span, time);
        if chunk > span.newest || time < 0 || chunk < span.first {
            return Err(Rejected::Implausible);
        }
        Ok(self.accept(chunk, time, source, now))
    }

    /// Begin a span after all chunks in windows, unless there are none.
    pub fn flush(&mut self) -> Option<i128> {
        let span = *self.spans.last()?;
        if span.newest < span.first {
            return None;
        }
        let control = span.newest + self.rules.reach;
        let shift = span.shift + control - span.newest;
        self.flushed = true;
        self.spans.push(Span { first: control + 1, newest: control, shift });
        self.alive_since = control + 1;
        Some(control)
    }
}
