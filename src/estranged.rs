//! Which sources disagree with the majority about the time, for anybody to read at any time.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A bit for each source.
///
/// Invariant: one thread at a time writes (the group's mutex sees to it). A bit says nothing about other memory, so relaxed
/// ordering is enough.
#[derive(Debug)]
pub struct Estranged {
    words: Box<[AtomicU64]>,
    n_sources: u64,
}

impl Estranged {
    /// So many sources, none of which disagrees.
    #[must_use]
    pub fn new(n_sources: u64) -> Self {
        Self { words: (0..n_sources.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), n_sources }
    }

    fn write(&self, source: u64, change: impl Fn(u64, u64) -> u64) {
        if let Some(word) = self.words.get((source >> 6) as usize) {
            word.store(change(word.load(Relaxed), 1_u64.wrapping_shl(source as u32)), Relaxed);
        }
    }

    /// A source disagrees.
    pub(crate) fn set(&self, source: u64) {
        self.write(source, |word, bit| word | bit);
    }

    /// It does not disagree any more.
    pub(crate) fn clear(&self, source: u64) {
        self.write(source, |word, bit| word & !bit);
    }

    /// The sources that disagree, in rising order.
    #[must_use]
    pub fn sources(&self) -> Vec<u64> {
        let disagrees = |source: &u64| {
            let word = self.words.get((*source >> 6) as usize).map_or(0, |word| word.load(Relaxed));
            word.wrapping_shr(*source as u32) & 1 == 1
        };
        (0..self.n_sources).filter(disagrees).collect()
    }
}
