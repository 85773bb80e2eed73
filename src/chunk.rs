//! Kernels over finished chunks: presence of heaps by source.

use crate::layout::Layout;

/// Count the heaps of each source that are present in a chunk.
///
/// `present` has one byte for each heap, which is not 0 where the heap is there, in the order of the layout's axes.
/// Returns None if its length is not the number of heaps.
#[must_use]
pub fn count_present(layout: &Layout, present: &[u8]) -> Option<Vec<u64>> {
    if present.len() as u64 != layout.chunk_heaps() {
        return None;
    }
    let count = |heaps: &[u8]| heaps.iter().map(|&byte| u64::from(byte != 0)).sum::<u64>();
    let Some(source) = layout.source.and_then(|axis| layout.dimensions.get(axis)) else {
        return Some(vec![count(present)]);
    };
    // Sizes are bounded by the length of `present`, which is a usize.
    let n_sources = usize::try_from(source.size).ok()?;
    let inner = usize::try_from(source.index_stride).ok()?;
    let mut counts = vec![0; n_sources];
    for block in present.chunks_exact(n_sources * inner) {
        for (total, heaps) in counts.iter_mut().zip(block.chunks_exact(inner)) {
            *total += count(heaps);
        }
    }
    Some(counts)
}
