//! Kernels over finished chunks: presence of heaps, by source and in time.

use crate::layout::{IndexFrom, Layout};

/// What is present in a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Heaps of each source.
    pub by_source: Vec<u64>,
    /// The first step of the time axis at which any heap is present; the number of steps if none is.
    pub first_batch: usize,
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
            for block in present.chunks_exact(size * together) {
                if together == 1 {
                    // The same as below, in a loop that the compiler turns into vector instructions.
                    counts.iter_mut().zip(block).for_each(|(total, &byte)| *total += u64::from(byte != 0));
                } else {
                    counts
                        .iter_mut()
                        .zip(block.chunks_exact(together))
                        .for_each(|(total, heaps)| *total += count(heaps));
                }
            }
            counts
        }
    };
    let time = layout.dimensions.iter().position(|dimension| matches!(dimension.from, IndexFrom::Time))?;
    let (size, together) = axis(time)?;
    let first_batch = present.chunks_exact(size * together).fold(size, |first, block| {
        let mut before = block.chunks_exact(together).take(first);
        before.position(|heaps| heaps.iter().any(|&byte| byte != 0)).unwrap_or(first)
    });
    Some(Presence { by_source, first_batch })
}

fn count(heaps: &[u8]) -> u64 {
    heaps.iter().map(|&byte| u64::from(byte != 0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::LayoutSpec;

    fn layout(order: &str) -> Layout {
        let text = format!(
            r#"
            heap_bytes = 8
            order = {order}
            sources = "antenna"
            time = {{ item = 0x1600, step = 16, batches = 4 }}
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
            let expected = Presence { by_source: vec![2, 0, 2], first_batch: 1 };
            assert_eq!(account_present(&layout, &present), Some(expected), "{order}");
        }
    }

    #[test]
    fn empty_chunk_has_no_first_batch() {
        let layout = layout(r#"["time", "antenna", "pol"]"#);
        let expected = Presence { by_source: vec![0; 3], first_batch: 4 };
        assert_eq!(account_present(&layout, &[0; 24]), Some(expected));
    }

    #[test]
    fn length_must_be_that_of_a_chunk() {
        assert_eq!(account_present(&layout(r#"["time", "antenna", "pol"]"#), &[0; 23]), None);
    }
}
