//! Marks: an item by which whoever sends a recording again says that time goes on elsewhere, as it once did.

use crate::clock::low_bits;
use crate::segment::difference;

/// Bits of the timestamp in a mark. Another one says whether time begins again, and all flavours have room for these.
const STAMP_BITS: u32 = 39;

/// What a heap says of the time before it.
///
/// It is believed only where that is the time so far. So neither a stream that is sent by mistake to where another one is
/// received, nor one wrong heap, moves the time of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The timestamp of the heap that was sent before it, in its low bits.
    before: u64,
    /// Whether time begins again with it; otherwise nothing was received in between.
    pub begins: bool,
}

impl Mark {
    /// The mark that an item holds, if it is there and holds one.
    #[must_use]
    pub fn read(item: i64) -> Option<Self> {
        let value = u64::try_from(item).ok().filter(|value| value.wrapping_shr(STAMP_BITS) < 2)?;
        Some(Self { before: value & low_bits(STAMP_BITS), begins: value.wrapping_shr(STAMP_BITS) == 1 })
    }

    /// Ticks from a timestamp, of a layout whose timestamps have so many bits, to that of the heap before.
    pub(crate) fn ticks_after(self, stamp: u64, bits: u32) -> i64 {
        difference(self.before, stamp, bits.min(STAMP_BITS))
    }
}
