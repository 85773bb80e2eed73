//! The placement callback: the only place where spead2 calls in, once for every heap, from its network threads.
#![expect(unsafe_code, reason = "the edge to C: raw pointers from spead2 become references here")]
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use crate::abi::{ChunkPlaceData, PlaceFn};
use crate::error::LayoutError;
use crate::layout::{Geometry, Layout, MAX_ITEM_AXES, SideField, SideType, reason};
use crate::ledger::Ledger;
use crate::place::{Items, Judged, Plan, judge};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::timeline::{Timeline, Window};

/// Which of a stream's statistics count our reject reasons.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Index of the first.
    pub base: usize,
    /// How many there are, from the first reason on.
    pub count: usize,
}

/// Everything that the callback of one stream works with.
#[derive(Debug)]
pub struct Context {
    window: Window,
    plan: Plan,
    ledger: Arc<Ledger>,
    side: Box<[SideField]>,
    n_required: usize,
    n_items: usize,
    extra_bytes: usize,
    timeline: Arc<Timeline>,
    stats: Option<Stats>,
    /// Test hook: the next cold call panics.
    panic_next: AtomicBool,
}

/// The head of the items array: what every layout with `N` item axes asks for first.
#[repr(C)]
struct Head<const N: usize> {
    time: i64,
    heap_length: i64,
    axes: [i64; N],
}

impl Context {
    /// Prepare the callback of one stream that has `window` chunks under construction.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] if so many chunks span too long a time or too many heaps.
    pub fn new(
        layout: &Layout,
        geometry: &Geometry,
        window: u64,
        stats: Option<Stats>,
        timeline: Arc<Timeline>,
    ) -> Result<Self, LayoutError> {
        Ok(Self {
            plan: Plan::new(layout, geometry, window)?,
            window: Window::new(layout, window),
            ledger: Arc::new(Ledger::new(layout, window)),
            side: layout.side.clone().into(),
            n_required: layout.spec().required_items.len(),
            n_items: layout.items.len(),
            extra_bytes: layout.extra_bytes(),
            timeline,
            stats,
            panic_next: AtomicBool::new(false),
        })
    }

    /// The ledger, which outlives the stream.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Make the next heap that leaves the fast path panic inside the callback.
    pub fn panic_next(&self) {
        self.panic_next.store(true, Relaxed);
    }

    /// The callback for this context, which must be passed to it as the last argument.
    #[must_use]
    pub fn function(&self) -> PlaceFn {
        const DENSE: [PlaceFn; MAX_ITEM_AXES + 1] = instances!(true);
        const STRIDED: [PlaceFn; MAX_ITEM_AXES + 1] = instances!(false);
        let instances = if self.plan.is_dense() { DENSE } else { STRIDED };
        let n_axes = self.plan.layout().axes.len();
        // Layout::new admits no more axes than there are instances.
        instances.get(n_axes).copied().unwrap_or(place_heap::<0, false>)
    }

    /// Count a rejected heap, here and in spead2's own statistics.
    fn reject(&self, data: &mut ChunkPlaceData, reason: usize) {
        data.chunk_id = -1;
        self.ledger.rejected(reason);
        if let Some(stats) = self.stats
            && reason < stats.count
            && !data.batch_stats.is_null()
        {
            // SAFETY: the stream was configured with `count` statistics from index `base` on (`Stats`), and spead2
            // passes an array with all of them, which nobody else touches during the call.
            unsafe {
                let counter = data.batch_stats.wrapping_add(stats.base.wrapping_add(reason));
                *counter = (*counter).wrapping_add(1);
            }
        }
    }

    /// Judge a heap that the fast path did not place.
    fn place_slowly(&self, items: &[i64]) -> Result<Judged, usize> {
        assert!(!self.panic_next.swap(false, Relaxed), "panic asked for by a test");
        let heap = judge(&self.plan, items, |stamp| self.timeline.unwrap(stamp))?;
        let moved = self.window.follow(heap.chunk);
        if moved != 0 {
            self.ledger.slide(moved);
        }
        self.timeline.accept(self.window.start(heap.chunk));
        self.ledger.placed(heap.source, heap.batch);
        // An older chunk is spead2's to judge; only the window has slots to mark.
        if let Some(chunk) = heap.chunk.checked_sub(self.window.view().first_chunk) {
            self.ledger.mark(heap.source, chunk, heap.at);
        }
        Ok(heap)
    }
}

macro_rules! instances {
    ($dense:literal) => {
        [
            place_heap::<0, $dense>,
            place_heap::<1, $dense>,
            place_heap::<2, $dense>,
            place_heap::<3, $dense>,
            place_heap::<4, $dense>,
            place_heap::<5, $dense>,
            place_heap::<6, $dense>,
            place_heap::<7, $dense>,
            place_heap::<8, $dense>,
        ]
    };
}
use instances;

/// What spead2 calls.
///
/// # Safety
///
/// `context` must point to a [`Context`] whose [`Context::function`] this is; `data` to a `chunk_place_data` of
/// `data_size` bytes whose `items` are those of the layout; and no two calls with the same context may overlap.
unsafe extern "C" fn place_heap<const N: usize, const DENSE: bool>(
    data: *mut ChunkPlaceData,
    data_size: usize,
    context: *mut c_void,
) {
    if data_size < ChunkPlaceData::SIZE {
        return; // Not the struct that we know: the heap stays rejected.
    }
    // SAFETY: the caller vouches for both pointers, and data_size for the size of what `data` points to.
    let (data, context) = unsafe { (&mut *data, &*context.cast::<Context>()) };
    // SAFETY: `items` has all items of the layout, of which these come first.
    let head = unsafe { &*data.items.cast::<Head<N>>() };
    let required = if context.n_required == 0 {
        &[]
    } else {
        // SAFETY: likewise; the required items come last.
        unsafe { slice::from_raw_parts(data.items.add(context.n_items.wrapping_sub(context.n_required)), context.n_required) }
    };
    let items = Items { time: head.time, heap_length: head.heap_length, axes: &head.axes, required };
    let window = context.window.view();
    let Some(slot) = context.plan.place::<N, DENSE>(window, &items) else {
        return leave_fast_path(data, context);
    };
    context.ledger.placed(slot.source, window.first_batch.wrapping_add(slot.batch));
    context.ledger.mark(slot.source, slot.chunk, slot.at);
    data.chunk_id = window.first_chunk.wrapping_add(slot.chunk).cast_signed();
    data.heap_index = slot.at.index as usize;
    data.heap_offset = slot.at.offset as usize;
    if context.extra_bytes != 0 {
        store_side_items(data, context);
    }
}

/// Everything that is not a good heap in the window.
#[cold]
#[inline(never)]
fn leave_fast_path(data: &mut ChunkPlaceData, context: &Context) {
    // SAFETY: as in place_heap, `items` has all items of the layout.
    let items = unsafe { slice::from_raw_parts(data.items, context.n_items) };
    let judged = catch_unwind(AssertUnwindSafe(|| context.place_slowly(items)));
    match judged {
        Ok(Ok(heap)) => {
            data.chunk_id = heap.chunk.cast_signed();
            data.heap_index = heap.at.index as usize;
            data.heap_offset = heap.at.offset as usize;
            if context.extra_bytes != 0 {
                store_side_items(data, context);
            }
        }
        Ok(Err(reason)) => context.reject(data, reason),
        Err(_) => context.reject(data, reason::internal_error(context.plan.layout().reasons.len())),
    }
}

/// Write the record of side items of a placed heap.
#[inline]
fn store_side_items(data: &mut ChunkPlaceData, context: &Context) {
    if data.extra.is_null() {
        return; // The stream was configured without: the values are not wanted.
    }
    // SAFETY: the side items stand in front of the required ones; `extra` has room for the record, which is what the
    // stream's max_heap_extra says.
    let (items, record) = unsafe {
        let first = context.n_items.wrapping_sub(context.n_required).wrapping_sub(context.side.len());
        (slice::from_raw_parts(data.items.add(first), context.side.len()), slice::from_raw_parts_mut(data.extra, context.extra_bytes))
    };
    let mut rest = record;
    for (field, &item) in context.side.iter().zip(items) {
        // An absent item is stored as 0.
        let value = item.max(0).cast_unsigned().wrapping_shr(field.shift).to_le_bytes();
        rest = match field.dtype {
            SideType::U8 => store::<1>(rest, value),
            SideType::U16 => store::<2>(rest, value),
            SideType::U32 => store::<4>(rest, value),
            SideType::U64 => store::<8>(rest, value),
        };
    }
    data.extra_offset = data.heap_index.wrapping_mul(context.extra_bytes);
    data.extra_size = context.extra_bytes;
}

/// Store the low `BYTES` bytes of a little-endian value, and return what lies behind.
#[inline]
fn store<const BYTES: usize>(record: &mut [u8], value: [u8; 8]) -> &mut [u8] {
    match (record.split_first_chunk_mut::<BYTES>(), value.first_chunk::<BYTES>()) {
        (Some((here, rest)), Some(low)) => {
            *here = *low;
            rest
        }
        _ => &mut [],
    }
}
