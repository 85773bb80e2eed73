//! The epochs of a stream: what time each chunk ID stands for, told to readers that never wait.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::sync::OnceLock;

use crate::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// Why an epoch began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The first heap came.
    Start,
    /// Time began again: a sender was restarted, or the time so far was wrong. How long the gap is cannot be known.
    Restart,
    /// Chunks were flushed: time goes on, only chunk IDs have been skipped. The ID before the first is that of the
    /// control heap, whose chunk holds nothing.
    Flush,
}

/// A run of chunks whose IDs count time from the same point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// ID of its first chunk; it ends where the next epoch begins.
    pub first: u64,
    /// Chunk ID less the number of chunks from time 0.
    pub offset: i64,
    /// The timestamp of time 0.
    pub origin: u64,
    /// Why it began.
    pub cause: Cause,
}

impl Epoch {
    /// The number of chunks from time 0 to a chunk of this epoch.
    #[must_use]
    pub fn true_chunk(&self, chunk: u64) -> u64 {
        chunk.wrapping_sub(self.offset as u64)
    }
}

/// All epochs of a timeline, oldest first: append-only.
///
/// Invariant: one thread at a time appends (the group's mutex sees to it), anyone reads. An entry is written before the
/// length that includes it is stored with release, and never again; a reader loads the length with acquire, so it
/// sees every entry below it whole.
#[derive(Debug)]
pub struct Epochs {
    /// Block k holds 2^k entries, so that none is ever moved.
    blocks: [OnceLock<Box<[Entry]>>; BLOCKS],
    length: AtomicU64,
}

const BLOCKS: usize = 40;

#[derive(Debug, Default)]
struct Entry {
    first: AtomicU64,
    offset: AtomicU64,
    origin: AtomicU64,
    cause: AtomicU64,
    /// See [`Epochs::utc`]; 1 more, so that 0 is none. Unlike the others, it is stored when it is known, and alone.
    utc: AtomicU64,
}

impl Default for Epochs {
    fn default() -> Self {
        Self { blocks: [const { OnceLock::new() }; BLOCKS], length: AtomicU64::new(0) }
    }
}

/// Block of an entry, and its position in there.
fn block_of(index: u64) -> (usize, usize) {
    let one_based = index.saturating_add(1);
    let block = one_based.checked_ilog2().unwrap_or(0);
    (block as usize, one_based.wrapping_sub(1_u64.wrapping_shl(block)) as usize)
}

impl Epochs {
    /// Append an epoch, which must begin after the last one; only one thread at a time may.
    pub fn push(&self, epoch: Epoch) {
        let index = self.length.load(Relaxed);
        let (block, position) = block_of(index);
        let Some(block) = self.blocks.get(block) else { return };
        let entries = block.get_or_init(|| (0..=index).map(|_| Entry::default()).collect());
        let Some(entry) = entries.get(position) else { return };
        entry.first.store(epoch.first, Relaxed);
        entry.offset.store(epoch.offset as u64, Relaxed);
        entry.origin.store(epoch.origin, Relaxed);
        entry.cause.store(epoch.cause as u64, Relaxed);
        self.length.store(index.wrapping_add(1), Release);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length.load(Acquire)
    }

    /// Whether no heap has come yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, index: u64) -> Option<Epoch> {
        let entry = self.entry(index)?;
        Some(Epoch {
            first: entry.first.load(Relaxed),
            offset: entry.offset.load(Relaxed) as i64,
            origin: entry.origin.load(Relaxed),
            cause: match entry.cause.load(Relaxed) {
                cause if cause == Cause::Start as u64 => Cause::Start,
                cause if cause == Cause::Restart as u64 => Cause::Restart,
                _ => Cause::Flush,
            },
        })
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        let (block, position) = block_of(index);
        self.blocks.get(block)?.get()?.get(position).filter(|_| index < self.len())
    }

    /// UTC at tick 0 in an epoch, in seconds since 1970, as heaps have told it.
    #[must_use]
    pub fn utc(&self, index: u64) -> Option<u64> {
        self.entry(index)?.utc.load(Relaxed).checked_sub(1)
    }

    /// Note what heaps of the last epoch tell of it; only who may append may do that.
    pub fn set_utc(&self, seconds: u64) {
        if let Some(entry) = self.len().checked_sub(1).and_then(|last| self.entry(last)) {
            entry.utc.store(seconds.saturating_add(1), Relaxed);
        }
    }

    /// The epoch of a chunk, and its index; None if the chunk is older than all.
    #[must_use]
    pub fn of_chunk(&self, chunk: u64) -> Option<(u64, Epoch)> {
        let length = self.len();
        let is_later = |index: u64| self.get(index).is_none_or(|epoch| epoch.first > chunk);
        let (mut low, mut high) = (0, length);
        // Nearly always it is the last.
        if let Some(last) = length.checked_sub(1).filter(|&last| !is_later(last)) {
            low = last;
        }
        // Those below `low` are not later; those from `high` on are.
        while low < high {
            let middle = low.wrapping_add(high.wrapping_sub(low) >> 1);
            if is_later(middle) { high = middle } else { low = middle.wrapping_add(1) }
        }
        let index = low.checked_sub(1)?;
        Some((index, self.get(index)?))
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_in_the_last_epoch_that_has_begun() {
        let epochs = Epochs::default();
        assert_eq!((epochs.is_empty(), epochs.of_chunk(7)), (true, None));
        for i in 0..100 {
            epochs.push(Epoch { first: 5 + i * i, offset: -(i as i64), origin: i, cause: Cause::Restart });
            assert_eq!(epochs.of_chunk(4), None);
            for chunk in 5..6 + i * i {
                let index = (0..=i).rev().find(|&j| 5 + j * j <= chunk).unwrap();
                let epoch =
                    Epoch { first: 5 + index * index, offset: -(index as i64), origin: index, cause: Cause::Restart };
                assert_eq!(epochs.of_chunk(chunk), Some((index, epoch)));
                assert_eq!(epoch.true_chunk(chunk), chunk + index);
            }
        }
        assert_eq!((epochs.is_empty(), epochs.len(), epochs.get(100)), (false, 100, None));
    }
}
