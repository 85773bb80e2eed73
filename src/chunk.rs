//! Kernels over finished chunks: presence of heaps, by source and in time; missing heaps overwritten.

#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "no library has memset for words, or prefetches"))]

use std::ops::Range;

use crate::layout::{Geometry, IndexFrom, Layout};

/// What is present in a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Heaps of each source.
    pub by_source: Vec<u64>,
    /// The first step of the time axis at which any heap is present; the number of steps if none is.
    pub first_batch: usize,
    /// The step after the last at which any heap is present; 0 if none is.
    pub end_batch: usize,
}

/// Account for the heaps of a chunk.
///
/// `present` has one byte for each heap, which is not 0 where the heap is there, in the order of the layout's axes.
/// Returns None if its length is not the number of heaps.
#[must_use]
pub fn account_present(layout: &Layout, present: &[u8]) -> Option<Presence> {
    if present.len() as u64 != layout.chunk_heaps() {
        return None;
    }
    // An axis as the number of its indices, and how many heaps stand together at each. Layout::new has bounded both.
    let axis = |i: usize| {
        let dimension = layout.dimensions.get(i)?;
        Some((dimension.size as usize, dimension.index_stride as usize))
    };
    let by_source = match layout.source {
        None => vec![count(present)],
        Some(i) => {
            let (size, together) = axis(i)?;
            let mut counts = vec![0; size];
            // Where few heaps of a source stand together, those of all sources are counted side by side.
            if together < 16 {
                count_side_by_side(present, together, &mut counts);
            } else {
                for block in present.chunks_exact(size * together) {
                    let blocks = counts.iter_mut().zip(block.chunks_exact(together));
                    blocks.for_each(|(total, heaps)| *total += count(heaps));
                }
            }
            counts
        }
    };
    let time = layout.dimensions.iter().position(|dimension| matches!(dimension.from, IndexFrom::Time))?;
    let (size, together) = axis(time)?;
    let is_any = |heaps: &[u8]| heaps.iter().any(|&byte| byte != 0);
    let (first_batch, end_batch) = present.chunks_exact(size * together).fold((size, 0), |(first, end), block| {
        let batches = block.chunks_exact(together);
        let before = batches.clone().take(first).position(is_any);
        let behind = batches.skip(end).rposition(is_any);
        (before.unwrap_or(first), behind.map_or(end, |last| end + last + 1))
    });
    Some(Presence { by_source, first_batch, end_batch })
}

/// So many heaps can be counted in a byte. The compiler turns that into vector instructions, with a heap in each byte.
const BYTE: usize = u8::MAX as usize;

/// Count the heaps that are present: bytes that are not 0.
#[must_use]
pub fn count(heaps: &[u8]) -> u64 {
    heaps.chunks(BYTE).map(|heaps| u64::from(heaps.iter().map(|&byte| u8::from(byte != 0)).sum::<u8>())).sum()
}

/// Count the heaps of all sources, of which so many stand together for each source, and that again and again.
fn count_side_by_side(present: &[u8], together: usize, counts: &mut [u64]) {
    let mut sums = vec![0_u8; counts.len() * together];
    for blocks in present.chunks(BYTE * sums.len()) {
        sums.fill(0);
        for block in blocks.chunks_exact(sums.len()) {
            sums.iter_mut().zip(block).for_each(|(sum, &byte)| *sum += u8::from(byte != 0));
        }
        let sums = sums.chunks_exact(together).map(|sums| sums.iter().map(|&sum| u64::from(sum)).sum::<u64>());
        counts.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
}

/// Overwrite each missing heap of a chunk, as a whole, with a pattern that is repeated. Returns how many there were.
///
/// `present` is as for [`account_present`], `data` that of the chunk. What is between heaps is left as it is, and so are
/// heaps that are present. Returns None, with nothing written, if the length of `present` is not the number of heaps,
/// `data` is shorter than the geometry spans, or that of `pattern` does not divide a heap.
pub fn fill_missing(geometry: &Geometry, present: &[u8], data: &mut [u8], pattern: &[u8]) -> Option<u64> {
    let layout = geometry.layout();
    let is_whole = !pattern.is_empty() && layout.spec().heap_bytes % pattern.len() as u64 == 0;
    if !is_whole || present.len() as u64 != layout.chunk_heaps() || (data.len() as u64) < geometry.span_bytes() {
        return None;
    }
    let axes = layout.dimensions.iter().zip(geometry.strides());
    let offsets = Offsets::new(layout.spec().heap_bytes, axes.map(|(dimension, &stride)| (dimension.size, stride)));
    let filler = Filler::new(pattern, data.as_ptr().addr());
    overwrite(&offsets, present, data, &filler)
}

/// Set the side items of each missing heap of a chunk to 0.
///
/// `extra` is that of the chunk. Returns None if it is shorter than the records of all heaps, or the length of `present`
/// is not the number of heaps.
pub fn zero_missing_extra(layout: &Layout, present: &[u8], extra: &mut [u8]) -> Option<()> {
    let record = layout.extra_bytes();
    if record == 0 {
        return Some(());
    }
    if present.len() as u64 != layout.chunk_heaps() || extra.len() / record < present.len() {
        return None;
    }
    let offsets = Offsets::new(record as u64, [(layout.chunk_heaps(), record as u64)].into_iter());
    overwrite(&offsets, present, extra, &Filler::new(&[0], 0)).map(drop)
}

/// Overwrite the offsets of missing heaps; those that follow one another in memory in one go.
fn overwrite(offsets: &Offsets, present: &[u8], data: &mut [u8], filler: &Filler) -> Option<u64> {
    let mut filled = 0;
    let mut heaps = missing(present).map(|index| offsets.offset(index)).peekable();
    let mut runs = std::iter::from_fn(|| {
        let start = heaps.next()?;
        let mut run = start..start + offsets.bytes;
        filled += 1;
        while heaps.next_if_eq(&run.end).is_some() {
            run.end += offsets.bytes;
            filled += 1;
        }
        Some(run)
    });
    let mut found: Vec<Range<usize>> = Vec::with_capacity(TOGETHER);
    loop {
        found.clear();
        found.extend(runs.by_ref().take(TOGETHER));
        if found.is_empty() {
            return Some(filled);
        }
        for (i, run) in found.iter().enumerate() {
            if let Some(next) = found.get(i + AHEAD) {
                prefetch(data.get(next.clone())?);
            }
            filler.fill(data.get_mut(run.clone())?);
        }
    }
}

/// Runs that are looked for before the first of them is filled: each branch of the search that the processor guesses
/// wrong would hold up the filling.
const TOGETHER: usize = 64;

/// How many runs ahead memory is fetched. Single heaps lie far apart, in no cache: this way, the memory of some is
/// waited for at a time.
const AHEAD: usize = 4;

/// Bytes of a line of caches.
const LINE: usize = 64;

/// Have memory come to the caches, if it is short: where there is more to write, this would be in the way.
fn prefetch(memory: &[u8]) {
    const MOST: usize = 2048;
    if memory.len() > MOST {
        return;
    }
    for line in memory.chunks(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: it changes nothing that a program can see, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// The indices of missing heaps, in order.
fn missing(present: &[u8]) -> impl Iterator<Item = usize> {
    // Nearly all heaps are there, as a rule: the compiler makes vector instructions of the look for 0 in a block.
    const BLOCK: usize = 64;
    let blocks = present.chunks(BLOCK).enumerate();
    let lacking = blocks.filter(|(_, block)| block.iter().fold(u8::MAX, |least, &byte| least.min(byte)) == 0);
    lacking.flat_map(|(i, block)| {
        let mut found = block.chunks(8).enumerate().fold(0, |found, (j, eight)| found | zeros(eight) << (8 * j));
        std::iter::from_fn(move || {
            let index = (found != 0).then(|| i * BLOCK + found.trailing_zeros() as usize);
            found &= found.wrapping_sub(1);
            index
        })
    })
}

/// Which of up to eight bytes are 0, a bit for each.
fn zeros(eight: &[u8]) -> u64 {
    const LOW: u64 = u64::MAX / 0xff * 0x7f;
    let word = u64::from_le_bytes(eight.try_into().unwrap_or_else(|_| {
        let mut bytes = [u8::MAX; 8];
        bytes.iter_mut().zip(eight).for_each(|(to, from)| *to = *from);
        bytes
    }));
    // The highest bit of each byte that is 0: in any other, the sum or the byte itself has it.
    let found = !(((word & LOW) + LOW) | word | LOW);
    // The product has the lowest bits of the bytes side by side, in its highest byte.
    (found >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56
}

/// Where the heaps of a chunk are in its memory.
pub(crate) struct Offsets {
    /// Bytes of a heap.
    pub bytes: usize,
    /// Size and stride of each axis, slowest first, with axes as one where there is no gap between them.
    axes: Vec<(usize, usize)>,
}

impl Offsets {
    pub fn new(bytes: u64, axes: impl DoubleEndedIterator<Item = (u64, u64)>) -> Self {
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (size, stride) in axes.rev().filter(|&(size, _)| size > 1) {
            let (size, stride) = (size as usize, stride as usize);
            match merged.last_mut() {
                // Layout::new and Geometry have bounded both products.
                Some((inner_size, inner_stride)) if *inner_size * *inner_stride == stride => *inner_size *= size,
                _ => merged.push((size, stride)),
            }
        }
        merged.reverse();
        Self { bytes: bytes as usize, axes: merged }
    }

    /// The byte at which a heap begins.
    pub fn offset(&self, index: usize) -> usize {
        let Some(((_, slowest), faster)) = self.axes.split_first() else { return 0 };
        let mut rest = index;
        let mut offset = 0;
        for (size, stride) in faster.iter().rev() {
            offset += rest % size * stride;
            rest /= size;
        }
        offset + rest * slowest
    }
}

/// A pattern in a form that is fast to repeat.
enum Filler {
    /// The same byte throughout.
    Byte(u8),
    /// Patterns that divide eight bytes, as elements do.
    Word([u8; 8]),
    /// Any others, as many as fit into a block, and how many bytes are before them.
    Block(Vec<u8>, usize),
}

impl Filler {
    /// It stays in the first cache.
    const BLOCK: usize = 4096;

    /// `address` is where the first heap is.
    fn new(pattern: &[u8], address: usize) -> Self {
        let repeat = |size: usize| pattern.repeat((size / pattern.len().max(1)).max(1));
        match pattern {
            [first, rest @ ..] if rest.iter().all(|byte| byte == first) => Self::Byte(*first),
            _ => repeat(8).try_into().map_or_else(|_| Self::aligned(&repeat(Self::BLOCK), address), Self::Word),
        }
    }

    /// Lay a block such that lines of caches begin at the same of its bytes as of the first heap's: from there, it is
    /// copied much faster. Most heaps are so many lines long, and lie alike.
    fn aligned(patterns: &[u8], address: usize) -> Self {
        let mut block: Vec<u8> = Vec::with_capacity(LINE + patterns.len());
        let before = address.wrapping_sub(block.as_ptr().addr()) % LINE;
        block.resize(before, 0);
        block.extend_from_slice(patterns);
        Self::Block(block, before)
    }

    /// Fill a slice that starts where a pattern does.
    fn fill(&self, data: &mut [u8]) {
        match self {
            Self::Byte(byte) => data.fill(*byte),
            Self::Word(word) => {
                let (words, rest) = data.split_at_mut(data.len() / word.len() * word.len());
                fill_words(words, *word);
                rest.iter_mut().zip(word).for_each(|(to, from)| *to = *from);
            }
            Self::Block(block, before) => {
                let block = block.get(*before..).unwrap_or_default();
                for piece in data.chunks_mut(block.len()) {
                    piece.copy_from_slice(block.get(..piece.len()).unwrap_or_default());
                }
            }
        }
    }
}

/// Set all words of a slice to one.
fn fill_words(words: &mut [u8], word: [u8; 8]) {
    /// From so many bytes on, what the processor does to begin is worth it.
    #[cfg(target_arch = "x86_64")]
    const MANY: usize = 256;
    #[cfg(target_arch = "x86_64")]
    if words.len() >= MANY {
        // As memset does with many bytes: unlike a loop, this need not read memory before it overwrites it.
        // SAFETY: writes no more than the slice has: upwards, for that direction is set wherever a function begins.
        unsafe {
            std::arch::asm!(
                "rep stosq",
                inout("rcx") words.len() / word.len() => _,
                inout("rdi") words.as_mut_ptr() => _,
                in("rax") u64::from_ne_bytes(word),
                options(nostack, preserves_flags),
            );
        }
        return;
    }
    words.chunks_exact_mut(word.len()).for_each(|to| to.copy_from_slice(&word));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::spec::LayoutSpec;

    fn layout(order: &str) -> Layout {
        layout_of(order, 4)
    }

    fn layout_of(order: &str, batches: usize) -> Layout {
        let text = format!(
            r#"
            heap_bytes = 8
            order = {order}
            sources = "antenna"
            time = {{ item = 0x1600, step = 16, batches = {batches} }}
            axes = [{{ name = "antenna", item = 0x4101, size = 3 }}, {{ name = "pol", item = 0x3101, size = 2 }}]
            "#
        );
        Layout::new(LayoutSpec::from_toml(&text).unwrap()).unwrap()
    }

    #[test]
    fn counts_follow_the_order_of_the_axes() {
        for order in [
            r#"["time", "antenna", "pol"]"#,
            r#"["pol", "time", "antenna"]"#,
            r#"["antenna", "pol", "time"]"#,
            r#"["antenna", "time", "pol"]"#,
        ] {
            let layout = layout(order);
            let mut present = vec![0; 24];
            // Antenna 2 at times 1 and 3 in polarisation 0; antenna 0 at time 2 in both.
            for at in [[("time", 1), ("antenna", 2), ("pol", 0)], [("time", 3), ("antenna", 2), ("pol", 0)]]
                .into_iter()
                .chain([0, 1].map(|pol| [("time", 2), ("antenna", 0), ("pol", pol)]))
            {
                let stride = |name: &str| layout.dimensions.iter().find(|d| d.name == name).unwrap().index_stride;
                let index: u64 = at.iter().map(|&(name, i)| i * stride(name)).sum();
                present[index as usize] = 1;
            }
            let expected = Presence { by_source: vec![2, 0, 2], first_batch: 1, end_batch: 4 };
            assert_eq!(account_present(&layout, &present), Some(expected), "{order}");
        }
    }

    #[test]
    fn more_heaps_are_counted_than_a_byte_holds() {
        for order in [r#"["time", "antenna", "pol"]"#, r#"["antenna", "time", "pol"]"#, r#"["time", "pol", "antenna"]"#]
        {
            for batches in [127, 128, 255, 256, 1021] {
                let layout = layout_of(order, batches);
                let mut present = vec![0xff; batches * 6];
                let expected = Presence { by_source: vec![2 * batches as u64; 3], first_batch: 0, end_batch: batches };
                assert_eq!(account_present(&layout, &present), Some(expected.clone()), "{order}, {batches}");
                // The last heap of antenna 2, which comes last in all of these orders.
                *present.last_mut().unwrap() = 0;
                let by_source = vec![2 * batches as u64, 2 * batches as u64, 2 * batches as u64 - 1];
                assert_eq!(account_present(&layout, &present), Some(Presence { by_source, ..expected }), "{order}");
            }
        }
    }

    #[test]
    fn empty_chunk_has_no_first_batch() {
        let layout = layout(r#"["time", "antenna", "pol"]"#);
        let expected = Presence { by_source: vec![0; 3], first_batch: 4, end_batch: 0 };
        assert_eq!(account_present(&layout, &[0; 24]), Some(expected));
    }

    #[test]
    fn axes_without_gaps_are_one() {
        // As pol, time, antenna, with a gap after each time.
        assert_eq!(Offsets::new(8, [(2, 160), (4, 40), (3, 8)].into_iter()).axes, [(8, 40), (3, 8)]);
        // Dense; one index takes no steps, whatever its stride.
        assert_eq!(Offsets::new(8, [(2, 96), (1, 7), (4, 24), (3, 8)].into_iter()).axes, [(24, 8)]);
        // The order of memory is not that of the arrays.
        assert_eq!(Offsets::new(8, [(2, 8), (4, 16)].into_iter()).axes, [(2, 8), (4, 16)]);
        assert_eq!(Offsets::new(8, [(1, 8)].into_iter()).axes, []);
    }

    #[test]
    fn missing_heaps_are_found_in_and_between_blocks() {
        let mut present = vec![1; 300];
        let wanted = [0, 1, 63, 64, 200, 255, 299];
        for i in wanted {
            present[i] = 0;
        }
        assert_eq!(missing(&present).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn a_block_lies_as_the_first_heap_does() {
        let pattern: Vec<u8> = (0..100).collect();
        for address in [0, 1, 16, 63, 4096 + 48] {
            let Filler::Block(block, before) = Filler::new(&pattern, address) else { panic!("no block") };
            assert_eq!((block.as_ptr().addr() + before) % LINE, address % LINE);
        }
    }

    #[test]
    fn any_byte_but_0_is_presence() {
        // Together by source, and one by one.
        for order in [r#"["pol", "time", "antenna"]"#, r#"["antenna", "time", "pol"]"#] {
            let layout = Arc::new(layout(order));
            let ones: Vec<u8> = (0..24).map(|i| u8::from(i % 5 == 0)).collect();
            let expected = account_present(&layout, &ones);
            let geometry = layout.geometry(&BTreeMap::new()).unwrap();
            let filled = |present: &[u8]| {
                let mut data = [0; 24 * 8];
                (fill_missing(&geometry, present, &mut data, &[7]), data)
            };
            for byte in [2, 0x80, 0xff] {
                let present: Vec<u8> = ones.iter().map(|&one| one * byte).collect();
                assert_eq!(account_present(&layout, &present), expected, "{byte} in {order}");
                assert_eq!(filled(&present), filled(&ones), "{byte} in {order}");
                assert!(missing(&present).eq(missing(&ones)));
            }
        }
    }

    #[test]
    fn length_must_be_that_of_a_chunk() {
        assert_eq!(account_present(&layout(r#"["time", "antenna", "pol"]"#), &[0; 23]), None);
    }
}
