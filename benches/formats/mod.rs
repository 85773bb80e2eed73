//! The three MeerKAT formats as layouts and item rows, for the benchmarks.

use std::collections::BTreeMap;

use speadrx::abi::ChunkPlaceData;
use speadrx::callback::Context;
use speadrx::layout::Layout;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;

/// Chunks that are under construction at a time.
pub const WINDOW: u64 = 4;

const DIGITISER: &str = r#"
heap_bytes = 5120
order = ["pol", "time"]
sources = "pol"
strides = { pol = "stride" }
time = { item = 0x1600, step = 4096, batches = 256 }
axes = [{ name = "pol", item = 0x3101, mask = 1, size = 2 }]
side_items = [{ name = "saturated", item = 0x3102, shift = 32, dtype = "u16" }]
"#;

fn antenna_channelised(n_ants: u64) -> String {
    format!(
        r#"
heap_bytes = 8192
sources = "antenna"
time = {{ item = 0x1600, step = 2097152, batches = 8 }}
axes = [{{ name = "antenna", item = 0x4101, size = {n_ants} }}]
"#
    )
}

const TIED_ARRAY: &str = r#"
heap_bytes = 8192
order = ["pol", "time", "substream"]
sources = "substream"
required_items = [0x4104]
time = { item = 0x1600, step = 2097152, batches = 8 }
axes = [{ name = "substream", item = 0x4103, step = 64, size = 64 }, { name = "pol", from_user_data = "pol", size = 2 }]
"#;

/// One callback with the heaps of a few chunks, in order or shuffled within the window.
pub struct Feed {
    context: Context,
    rows: Vec<i64>,
    n_items: usize,
    span: i64,
    stats: Vec<u64>,
    extra: [u8; 16],
}

impl Feed {
    /// Name and feed of each format.
    pub fn all() -> Vec<(&'static str, Self)> {
        let padded = BTreeMap::from([("stride".to_owned(), 256 * 5120 + 4096)]);
        let second_pol = BTreeMap::from([("pol".to_owned(), 1)]);
        let none = BTreeMap::new();
        vec![
            ("digitiser", Self::new(DIGITISER, &padded, false)),
            ("antenna-channelised/80", Self::new(&antenna_channelised(80), &none, false)),
            ("tied-array/64", Self::new(TIED_ARRAY, &second_pol, false)),
            ("antenna-channelised/4", Self::new(&antenna_channelised(4), &none, false)),
            ("antenna-channelised/1024", Self::new(&antenna_channelised(1024), &none, false)),
            ("antenna-channelised/4 shuffled", Self::new(&antenna_channelised(4), &none, true)),
            ("antenna-channelised/1024 shuffled", Self::new(&antenna_channelised(1024), &none, true)),
        ]
    }

    fn new(toml: &str, user_data: &BTreeMap<String, u64>, shuffled: bool) -> Self {
        let layout = Layout::new(LayoutSpec::from_toml(toml).expect("toml")).expect("layout");
        let geometry = layout.geometry(user_data).expect("geometry");
        let context = Context::new(&layout, &geometry, WINDOW, None, Arc::default()).expect("context");
        let time = &layout.spec().time;
        let axis = &layout.spec().axes[0];
        let mut rows = Vec::new();
        // Half a window, so that a shuffled heap is never too late for it.
        for batch in 0..time.batches * WINDOW / 2 {
            for index in 0..axis.size.expect("size") {
                let mut row = vec![0; layout.items.len()];
                row[0] = (batch * time.step).cast_signed();
                row[1] = layout.spec().heap_bytes.cast_signed();
                row[2] = (index * axis.step).cast_signed();
                rows.push(row);
            }
        }
        if shuffled {
            // Fisher and Yates' shuffle with Knuth's MMIX generator: the same order in every run.
            let mut state = 1_u64;
            for i in (1..rows.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                rows.swap(i, (state >> 33) as usize % (i + 1));
            }
        }
        Self {
            context,
            rows: rows.concat(),
            n_items: layout.items.len(),
            span: (layout.chunk_step * WINDOW / 2).cast_signed(),
            stats: vec![0; 16],
            extra: [0; 16],
        }
    }

    /// Heaps of one pass.
    pub fn heaps(&self) -> usize {
        self.rows.len() / self.n_items
    }

    /// Move all heaps on in time, so that the next pass brings new ones.
    pub fn advance(&mut self) {
        for row in self.rows.chunks_exact_mut(self.n_items) {
            row[0] = (row[0] + self.span) & ((1 << 48) - 1);
        }
    }

    /// Call the callback for every heap, as spead2 does; return the number placed.
    #[inline(never)]
    pub fn pass(&mut self) -> usize {
        let function = self.context.function();
        let context = std::ptr::from_ref(&self.context).cast_mut().cast();
        let mut data = ChunkPlaceData {
            packet: std::ptr::null(),
            packet_size: 0,
            items: std::ptr::null(),
            chunk_id: -1,
            heap_index: 0,
            heap_offset: 0,
            batch_stats: self.stats.as_mut_ptr(),
            extra: self.extra.as_mut_ptr(),
            extra_offset: 0,
            extra_size: 0,
        };
        let mut placed = 0;
        for row in self.rows.chunks_exact(self.n_items) {
            data.chunk_id = -1;
            data.items = row.as_ptr();
            // SAFETY: the function belongs to the context, the row has all items of the layout, and `extra` has
            // room for the record.
            unsafe { function(&raw mut data, ChunkPlaceData::SIZE, context) };
            placed += usize::from(data.chunk_id >= 0);
        }
        placed
    }
}
