//! Packed samples, of 1 to 16 bits each, turned into integers of 8 or 16 bits.

use crate::chunk::Offsets;
use crate::layout::Geometry;

/// So many samples are turned at once. They always end at a whole byte, and are enough to fill vector registers.
const GROUP: usize = 32;
/// As many bytes as any group needs.
const WINDOW: usize = window(16);

/// How samples are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    bits: u32,
    /// Whether samples are signed, as two's complement.
    signed: bool,
    /// Whether the first sample has the lowest bits of the first byte; otherwise it has the highest.
    little: bool,
}

impl Packing {
    /// None if `bits` is not from 1 to 16.
    #[must_use]
    pub fn new(bits: u32, signed: bool, little: bool) -> Option<Self> {
        (1..=16).contains(&bits).then_some(Self { bits, signed, little })
    }

    /// Bytes of the integer that each sample becomes.
    #[must_use]
    pub fn sample_bytes(self) -> usize {
        if self.bits <= 8 { 1 } else { 2 }
    }

    /// Turn packed samples into integers in the byte order of this machine.
    ///
    /// There are as many samples as `samples` has space for. Returns None, with nothing written, if that is no whole
    /// number, or if `packed` does not hold so many.
    pub fn unpack(self, packed: &[u8], samples: &mut [u8]) -> Option<()> {
        let bytes = self.sample_bytes();
        let wanted = (samples.len() / bytes).checked_mul(self.bits as usize)?.div_ceil(8);
        if samples.len() % bytes != 0 || packed.len() < wanted {
            return None;
        }
        macro_rules! turn {
            ($($bits:literal)*) => {
                match (self.bits, self.little, self.signed) {
                    $(
                        ($bits, false, false) => turn::<$bits, false, false>,
                        ($bits, false, true) => turn::<$bits, false, true>,
                        ($bits, true, false) => turn::<$bits, true, false>,
                        ($bits, true, true) => turn::<$bits, true, true>,
                    )*
                    _ => return None,
                }
            };
        }
        let turn: fn(&[u8], &mut [u8]) -> usize = turn!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
        let (read, written) = (GROUP / 8 * self.bits as usize, GROUP * bytes);
        let groups = turn(packed, samples);
        let rest = samples[groups * written..].chunks_mut(written);
        // The last groups, behind which too little is left to be read.
        for (packed, samples) in packed[groups * read..].chunks(read).zip(rest) {
            let (mut window, mut group) = ([0; WINDOW], [0; GROUP * 2]);
            window[..packed.len()].copy_from_slice(packed);
            turn(&window, &mut group[..written]);
            samples.copy_from_slice(&group[..samples.len()]);
        }
        Some(())
    }
}

/// Turn as many groups as can be read in whole windows, and return how many these are.
///
/// The widths are constants, so that each has a loop of its own.
fn turn<const BITS: usize, const LITTLE: bool, const SIGNED: bool>(packed: &[u8], samples: &mut [u8]) -> usize {
    let (mut rest, mut count) = (packed, 0);
    for group in samples.chunks_exact_mut(GROUP * lane(BITS) / 8) {
        let Some(window) = rest.get(..window(BITS)) else { break };
        extract::<BITS, LITTLE, SIGNED>(window, group);
        rest = &rest[GROUP / 8 * BITS..];
        count += 1;
    }
    count
}

/// Bytes that are read for a group: those behind it belong to the next one.
const fn window(bits: usize) -> usize {
    GROUP / 8 * bits + 8
}

/// Bits of the integer that a sample becomes.
const fn lane(bits: usize) -> usize {
    if bits <= 8 { 8 } else { 16 }
}

/// Turn the samples of a group.
#[inline(always)]
fn extract<const BITS: usize, const LITTLE: bool, const SIGNED: bool>(window: &[u8], group: &mut [u8]) {
    // So many samples become one word of integers. They are in a word, too, from the byte on where the first begins.
    let count = 64 / lane(BITS);
    let mut words = [0_u64; GROUP / 4];
    let used = &mut words[..GROUP / count];
    for (i, word) in used.iter_mut().enumerate() {
        let (start, rest) = (i * count * BITS / 8, i * count * BITS % 8);
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&window[start..start + 8]);
        let unused = 64 - count * BITS;
        *word = if LITTLE {
            (u64::from_le_bytes(bytes) << (unused - rest)) >> unused
        } else {
            (u64::from_be_bytes(bytes) << rest) >> unused
        };
    }
    for word in used.iter_mut() {
        *word = spread::<BITS, LITTLE, SIGNED>(*word);
    }
    for (integers, word) in group.chunks_exact_mut(8).zip(used) {
        integers.copy_from_slice(&word.to_le_bytes());
        if cfg!(target_endian = "big") {
            integers.chunks_exact_mut(lane(BITS) / 8).for_each(<[u8]>::reverse);
        }
    }
}

/// From samples side by side to integers side by side, of which the first is the lowest.
///
/// Halves are moved apart, then quarters, and so on, those of all samples at the same time.
#[inline(always)]
fn spread<const BITS: usize, const LITTLE: bool, const SIGNED: bool>(word: u64) -> u64 {
    // In each `2 * room` bits, move the halves of what is there apart: each has `width` bits, in the mask `low` the lower.
    let step = |word: u64, low: u64, room: usize, width: usize| {
        if LITTLE {
            (word & low) | ((word & !low) << (room - width))
        } else {
            ((word >> width) & low) | ((word & low) << room)
        }
    };
    let mut word = word;
    if BITS <= 8 {
        word = step(word, const { every(64, ones(4 * BITS)) }, 32, 4 * BITS);
        word = step(word, const { every(32, ones(2 * BITS)) }, 16, 2 * BITS);
        word = step(word, const { every(16, ones(BITS)) }, 8, BITS);
    } else {
        word = step(word, const { every(64, ones(2 * BITS)) }, 32, 2 * BITS);
        word = step(word, const { every(32, ones(BITS)) }, 16, BITS);
    }
    if SIGNED && BITS < lane(BITS) {
        // The highest bit of each integer is set, so that no subtraction borrows from the next one.
        let (sign, high) = const { (every(lane(BITS), 1 << (BITS - 1)), every(lane(BITS), 1 << (lane(BITS) - 1))) };
        word = (((word ^ sign) | high) - sign) ^ high;
    }
    word
}

/// So many bits that are 1.
const fn ones(bits: usize) -> u64 {
    if bits < 64 { (1 << bits) - 1 } else { u64::MAX }
}

/// A number in every so many bits of a word.
const fn every(bits: usize, number: u64) -> u64 {
    let (mut word, mut at) = (0, 0);
    while at < 64 {
        word |= number << at;
        at += bits;
    }
    word
}

/// Turn the packed samples of all heaps of a chunk into integers, in the order of the layout's axes, without gaps.
///
/// `data` is that of the chunk. Each heap has `samples` samples, from its first byte on. Returns None if `data` is
/// shorter than the geometry spans, a heap cannot hold so many samples, or `out` has not the size of all of them.
pub fn unpack_chunk(geometry: &Geometry, packing: Packing, samples: usize, data: &[u8], out: &mut [u8]) -> Option<()> {
    let layout = geometry.layout();
    let heaps = layout.chunk_heaps() as usize;
    let bytes = samples.checked_mul(packing.sample_bytes())?;
    if bytes == 0 || bytes.checked_mul(heaps)? != out.len() || (data.len() as u64) < geometry.span_bytes() {
        return None;
    }
    let axes = layout.dimensions.iter().zip(geometry.strides());
    let offsets = Offsets::new(layout.spec().heap_bytes, axes.map(|(dimension, &stride)| (dimension.size, stride)));
    for (index, heap) in out.chunks_exact_mut(bytes).enumerate() {
        let start = offsets.offset(index);
        packing.unpack(data.get(start..start + offsets.bytes)?, heap)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The samples, bit by bit.
    fn slowly(bits: usize, signed: bool, little: bool, packed: &[u8], samples: usize) -> Vec<i32> {
        let bit = |at: usize| i32::from(packed[at / 8] >> if little { at % 8 } else { 7 - at % 8 } & 1);
        let weight = |i: usize| if little { i } else { bits - 1 - i };
        let value = |n: usize| (0..bits).map(|i| bit(n * bits + i) << weight(i)).sum::<i32>();
        (0..samples)
            .map(value)
            .map(|value| if signed && value >> (bits - 1) == 1 { value - (1 << bits) } else { value })
            .collect()
    }

    fn quickly(packing: Packing, packed: &[u8], samples: usize) -> Option<Vec<i32>> {
        // Bytes behind the samples must be left alone.
        let mut out = vec![0xa5; samples * packing.sample_bytes() + 8];
        let (space, behind) = out.split_at_mut(samples * packing.sample_bytes());
        packing.unpack(packed, space)?;
        assert_eq!(behind, [0xa5; 8]);
        let number = |bytes: &[u8]| match (bytes, packing.signed) {
            (&[byte], true) => i32::from(byte as i8),
            (&[byte], false) => i32::from(byte),
            (bytes, true) => i32::from(i16::from_ne_bytes(bytes.try_into().unwrap())),
            (bytes, false) => i32::from(u16::from_ne_bytes(bytes.try_into().unwrap())),
        };
        Some(space.chunks_exact(packing.sample_bytes()).map(number).collect())
    }

    #[test]
    fn first_samples_by_hand() {
        let first = |bits, signed, little, packed: &[u8]| {
            quickly(Packing::new(bits, signed, little).unwrap(), packed, packed.len() * 8 / bits as usize).unwrap()
        };
        assert_eq!(first(4, true, false, &[0x1f, 0x80]), [1, -1, -8, 0]);
        assert_eq!(first(4, true, true, &[0x1f, 0x80]), [-1, 1, 0, -8]);
        assert_eq!(first(12, false, false, &[0x12, 0x34, 0x56]), [0x123, 0x456]);
        assert_eq!(first(12, false, true, &[0x12, 0x34, 0x56]), [0x412, 0x563]);
        assert_eq!(first(1, true, false, &[0x81]), [-1, 0, 0, 0, 0, 0, 0, -1]);
        assert_eq!(first(10, true, false, &[0x80, 0x1f, 0xf0, 0x04, 0x00]), [-512, 511, 1, 0]);
    }

    proptest! {
        #[test]
        fn all_packings_are_as_bit_by_bit(
            packed in prop::collection::vec(any::<u8>(), 0..300), left_out in 0_usize..80,
        ) {
            for bits in 1..=16 {
                for (signed, little) in [(false, false), (false, true), (true, false), (true, true)] {
                    let packing = Packing::new(bits, signed, little).unwrap();
                    let most = packed.len() * 8 / bits as usize;
                    let samples = most.saturating_sub(left_out);
                    let wanted = slowly(bits as usize, signed, little, &packed, samples);
                    prop_assert_eq!(quickly(packing, &packed, samples), Some(wanted));
                    prop_assert_eq!(quickly(packing, &packed, most + 1), None);
                }
            }
        }
    }

    #[test]
    fn widths_are_from_1_to_16() {
        assert_eq!(Packing::new(0, true, false), None);
        assert_eq!(Packing::new(17, true, false), None);
        assert_eq!(Packing::new(9, true, false).unwrap().unpack(&[0; 9], &mut [0; 3]), None);
    }
}
