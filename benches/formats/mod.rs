//! The three MeerKAT formats as layouts and item rows, for the benchmarks.

use std::collections::BTreeMap;
use std::ffi::c_void;

use speadrx::abi::{ChunkPlaceData, PlaceFn};
use speadrx::callback::Context;
use speadrx::group::Group;
use speadrx::layout::{Geometry, Layout};
use speadrx::place::{Heap, Items, Placer, kind};
use speadrx::segment::Moment;
use speadrx::spec::LayoutSpec;
use speadrx::sync::Arc;
use speadrx::timeline::TimeRules;
use speadrx::window::Window;

/// Chunks of a window.
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
required_items = [0x5004]
time = { item = 0x1600, step = 2097152, batches = 8 }
axes = [{ name = "substream", item = 0x4103, step = 64, size = 64 }, { name = "pol", from_user_data = "pol", size = 2 }]
"#;

/// Placement without any accounting: what the ledger's cost is measured against.
pub struct Alone {
    placer: Placer,
    window: Window,
}

/// The callback of [`Alone`], for layouts with one item axis and `REQUIRED` required items behind `SIDE` side items.
///
/// # Safety
///
/// `context` points to an [`Alone`] that nobody else uses, `data` to what spead2 passes.
unsafe extern "C" fn place_alone<const KIND: u8, const SIDE: usize, const REQUIRED: usize, const DENSE: bool>(
    data: *mut ChunkPlaceData,
    data_size: usize,
    context: *mut c_void,
) {
    if data_size < ChunkPlaceData::SIZE {
        return;
    }
    // SAFETY: see above; the items are time, length, one axis, side items and required items.
    let (data, alone) = unsafe { (&mut *data, &mut *context.cast::<Alone>()) };
    // SAFETY: likewise.
    let (head, required) =
        unsafe { (&*data.items.cast::<[i64; 3]>(), &*data.items.add(3 + SIDE).cast::<[i64; REQUIRED]>()) };
    let items = Items { time: head[0], heap_length: head[1], axes: &head[2..], required };
    let Some(placed) = alone.placer.place::<DENSE, KIND>(&alone.window, alone.window.limit, &items) else {
        return leave_alone(data, alone, 3 + SIDE + REQUIRED);
    };
    data.chunk_id = alone.window.first_chunk.wrapping_add(placed.chunk) as i64;
    data.heap_index = placed.slot.index as usize;
    data.heap_offset = placed.slot.offset as usize;
}

#[cold]
#[inline(never)]
extern "C" fn leave_alone(data: &mut ChunkPlaceData, alone: &mut Alone, n_items: usize) {
    // SAFETY: as in place_alone.
    let items = unsafe { std::slice::from_raw_parts(data.items, n_items) };
    let Ok(heap) = Heap::new(&alone.placer, items) else { return };
    // No benchmark runs for so long that timestamps wrap.
    let layout = alone.placer.layout();
    let (chunk, ticks) = (heap.stamp / layout.chunk_step(), heap.stamp % layout.chunk_step());
    if let Ok(placed) = heap.placed(&alone.placer, chunk, ticks / layout.spec().time.step) {
        let at = Moment { chunk, batch: 0, epoch_first: 0, epoch_offset: 0, origin: 0, bits: 48 };
        alone.window.follow(&at);
        data.chunk_id = placed.chunk as i64;
        data.heap_index = placed.slot.index as usize;
        data.heap_offset = placed.slot.offset as usize;
    }
}

/// How two streams belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    Group,
    Neighbours,
    FarApart,
}

/// One callback with the heaps of a few chunks, in order or shuffled within the window.
pub struct Feed {
    context: Context,
    alone: Alone,
    rows: Vec<i64>,
    n_items: usize,
    span: i64,
    stats: Vec<u64>,
    extra: [u8; 16],
}

impl Feed {
    /// Name and feed of each format.
    pub fn all() -> Vec<(&'static str, Self)> {
        let names = [
            "digitiser",
            "antenna-channelised/80",
            "tied-array/64",
            "antenna-channelised/4",
            "antenna-channelised/1024",
            "antenna-channelised/4 shuffled",
            "antenna-channelised/1024 shuffled",
        ];
        names.into_iter().map(|name| (name, Self::named(name))).collect()
    }

    /// The feed of one format.
    pub fn named(name: &str) -> Self {
        let (format, order) = name.split_once(' ').unwrap_or((name, ""));
        match format.split_once('/') {
            None => Self::new(DIGITISER, &BTreeMap::from([("stride".to_owned(), 256 * 5120 + 4096)]), false),
            Some(("tied-array", _)) => Self::new(TIED_ARRAY, &BTreeMap::from([("pol".to_owned(), 1)]), false),
            Some((_, n_ants)) => {
                let toml = antenna_channelised(n_ants.parse().expect("a number of antennas"));
                Self::new(&toml, &BTreeMap::new(), order == "shuffled")
            }
        }
    }

    fn new(toml: &str, user_data: &BTreeMap<String, u64>, shuffled: bool) -> Self {
        let layout = Arc::new(Layout::new(LayoutSpec::from_toml(toml).expect("toml")).expect("layout"));
        let geometry = layout.geometry(user_data).expect("geometry");
        let context = Context::new(&geometry, WINDOW, None, Self::group(&layout), None).expect("context");
        Self::of_context(context, &geometry, shuffled)
    }

    /// Two streams with every second source each, in chunks of so many batches: of one group, or of a group each. Of several
    /// of those, the two that lie closest to each other, or farthest apart.
    pub fn pair(n_ants: u64, batches: u64, streams: Streams) -> [Self; 2] {
        let toml = antenna_channelised(n_ants).replace("batches = 8", &format!("batches = {batches}"));
        let layout = Arc::new(Layout::new(LayoutSpec::from_toml(&toml).expect("toml")).expect("layout"));
        let geometry = layout.geometry(&BTreeMap::new()).expect("geometry");
        let group = Self::group(&layout);
        let make = |_| {
            let group = if streams == Streams::Group { Arc::clone(&group) } else { Self::group(&layout) };
            Context::new(&geometry, WINDOW, None, group, None).expect("context")
        };
        let mut contexts: Vec<_> = (0..if streams == Streams::Group { 2 } else { 12 }).map(make).collect();
        contexts.sort_by_key(Context::argument);
        let gap = |index: usize| contexts[index + 1].argument().addr() - contexts[index].argument().addr();
        if streams == Streams::Neighbours {
            let closest = (0..contexts.len() - 1).min_by_key(|&index| gap(index)).expect("contexts");
            contexts.rotate_left(closest + 1);
        }
        let ends = [contexts.pop(), contexts.drain(..).next()];
        let mut member = 0;
        ends.map(|context| {
            let mut feed = Self::of_context(context.expect("two contexts"), &geometry, false);
            feed.rows = feed.rows.chunks(feed.n_items).skip(member).step_by(2).flatten().copied().collect();
            member += 1;
            feed
        })
    }

    fn group(layout: &Layout) -> Arc<Group> {
        Group::new(TimeRules::new(layout, WINDOW, WINDOW, None, true).expect("rules"))
    }

    fn of_context(context: Context, geometry: &Geometry, shuffled: bool) -> Self {
        let layout = geometry.layout();
        let time = &layout.spec().time;
        let axis = &layout.spec().axes[0];
        let mut rows = Vec::new();
        // Half a window, so that a shuffled heap is never too late for it.
        for batch in 0..time.batches * WINDOW / 2 {
            for index in 0..axis.size.expect("size") {
                let mut row = vec![0; layout.items().len()];
                row[0] = (batch * time.step) as i64;
                row[1] = layout.spec().heap_bytes as i64;
                row[2] = (index * axis.step) as i64;
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
        let alone =
            Alone { placer: Placer::new(geometry, WINDOW).expect("placer"), window: Window::new(layout, WINDOW) };
        Self {
            context,
            alone,
            rows: rows.concat(),
            n_items: layout.items().len(),
            span: (layout.chunk_step() * WINDOW / 2) as i64,
            stats: vec![0; 16],
            extra: [0; 16],
        }
    }

    /// Where what its callback uses for every heap lies.
    pub fn address(&self) -> usize {
        self.context.argument().addr()
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
        self.call_for_all(self.context.function(), self.context.argument())
    }

    /// The same without any accounting.
    #[inline(never)]
    pub fn pass_alone(&mut self) -> usize {
        let layout = self.alone.placer.layout();
        let function: PlaceFn = match (
            layout.spec().side_items.len(),
            self.n_items - 3 - layout.spec().side_items.len(),
            self.alone.placer.is_dense(),
            self.alone.placer.kind(),
        ) {
            (1, 0, false, kind::BITS) => place_alone::<{ kind::BITS }, 1, 0, false>,
            (0, 1, true, kind::POWER) => place_alone::<{ kind::POWER }, 0, 1, true>,
            (0, 0, true, kind::UNIT) => place_alone::<{ kind::UNIT }, 0, 0, true>,
            other => panic!("no instance for {other:?}"),
        };
        let context = std::ptr::from_mut(&mut self.alone).cast();
        self.call_for_all(function, context)
    }

    #[inline(never)]
    fn call_for_all(&mut self, function: PlaceFn, context: *mut c_void) -> usize {
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
