//! Packed samples, of 1 to 16 bits each, turned into integers of 8 or 16 bits.

use crate::chunk::Offsets;
use crate::layout::Geometry;

/// So many samples are turned at once: they always end at a whole byte.
const GROUP: usize = 8;
/// Bytes that are read for a group. There may be fewer in it: those behind belong to the next one.
const WINDOW: usize = 16;

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
        macro_rules! run {
            ($($bits:literal)*) => {
                match (self.bits, self.little, self.signed) {
                    $(
                        ($bits, false, false) => turn::<$bits, false, false>(packed, samples),
                        ($bits, false, true) => turn::<$bits, false, true>(packed, samples),
                        ($bits, true, false) => turn::<$bits, true, false>(packed, samples),
                        ($bits, true, true) => turn::<$bits, true, true>(packed, samples),
                    )*
                    _ => return None,
                }
            };
        }
        run!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
        Some(())
    }
}

/// Turn as many samples as there is space for. The widths are constants, so that each has loops of its own.
fn turn<const BITS: usize, const LITTLE: bool, const SIGNED: bool>(packed: &[u8], samples: &mut [u8]) {
    let group_bytes = GROUP * if BITS <= 8 { 1 } else { 2 };
    let mut rest = packed;
    let mut groups = samples.chunks_exact_mut(group_bytes);
    // As long as a whole window can be read.
    while let Some(window) = rest.first_chunk() {
        let Some(group) = groups.next() else { break };
        store::<BITS>(extract::<BITS, LITTLE, SIGNED>(window), group);
        rest = rest.get(BITS..).unwrap_or_default();
    }
    let mut last = |group: &mut [u8]| {
        let mut window = [0; WINDOW];
        window.iter_mut().zip(rest.iter().take(BITS)).for_each(|(to, from)| *to = *from);
        store::<BITS>(extract::<BITS, LITTLE, SIGNED>(&window), group);
        rest = rest.get(BITS..).unwrap_or_default();
    };
    groups.by_ref().for_each(&mut last);
    last(groups.into_remainder());
}

/// The samples of a group.
#[inline(always)]
fn extract<const BITS: usize, const LITTLE: bool, const SIGNED: bool>(window: &[u8; WINDOW]) -> [u16; GROUP] {
    // Two words of 64 bits hold any group, the second one from where the fifth sample begins.
    let word = |start: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&window[start..start + 8]);
        if LITTLE { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) }
    };
    let half = GROUP / 2 * BITS;
    let (first, second) = (word(0), if BITS <= 8 { 0 } else { word(half / 8) });
    std::array::from_fn(|i| {
        let (word, bit) = match i * BITS {
            bit if BITS > 8 && i >= GROUP / 2 => (second, bit - half / 8 * 8),
            bit => (first, bit),
        };
        let highest = word << if LITTLE { 64 - BITS - bit } else { bit };
        if SIGNED { (highest as i64 >> (64 - BITS)) as u16 } else { (highest >> (64 - BITS)) as u16 }
    })
}

/// Write samples, as many as there is space for.
#[inline(always)]
fn store<const BITS: usize>(group: [u16; GROUP], samples: &mut [u8]) {
    if BITS <= 8 {
        samples.iter_mut().zip(group).for_each(|(to, sample)| *to = sample as u8);
    } else {
        let spaces = samples.chunks_exact_mut(2);
        spaces.zip(group).for_each(|(to, sample)| to.copy_from_slice(&sample.to_ne_bytes()));
    }
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
            packed in prop::collection::vec(any::<u8>(), 0..120), left_out in 0_usize..40,
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
