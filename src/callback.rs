//! The placement callback: the only place where spead2 calls in, once for every heap, from its network threads.
#![expect(unsafe_code, reason = "the edge to C: raw pointers from spead2 become references here")]
#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::cell::{Cell, UnsafeCell};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicPtr, AtomicUsize};

use crate::abi::{ChunkPlaceData, PlaceFn};
use crate::error::LayoutError;
use crate::filled::Filled;
use crate::group::Group;
use crate::layout::{FIRST_AXIS, Geometry, SideField};
use crate::ledger::{Counted, Ledger, count_lateness, hot, increment};
use crate::mark::Mark;
use crate::place::{Heap, Items, Placed, Placer, kind};
use crate::reason;
use crate::spec::SideType;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use crate::timeline::{Sighting, Verdict};
use crate::window::Window;

/// Which of a stream's statistics count our reject reasons.
///
/// After them come those that count control heaps, heaps that are too old, and rejected heaps; the latter two are spead2's.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    /// Index of the first.
    pub base: usize,
    /// How many there are, from the first reason on.
    pub count: usize,
}

impl Stats {
    /// Statistics after our reasons.
    pub const MORE: usize = 3;
    const CONTROL: usize = 0;
    const TOO_OLD: usize = 1;
    const REJECTED: usize = 2;
}

/// By what a stream knows its own control heaps: the value of an item that stands behind those of the layout.
///
/// It is random, so that nobody on the network can guess it.
#[derive(Clone, Copy, Debug)]
pub struct Cookie {
    /// Of a heap that pushes all chunks out of the window.
    pub flush: i64,
    /// Of a heap that ends the stream: what comes after it is not received any more. When all streams of a group have had
    /// theirs, all chunks come out.
    pub end: i64,
    /// Of a heap that says that all before it is done with.
    pub done: i64,
}

/// Everything that the callback of one stream works with.
#[derive(Debug)]
pub struct Context {
    /// Its own, in the allocation of the ledger's counters.
    fast: NonNull<Fast>,
    ledger: Ledger,
    side: Box<[SideField]>,
    /// Position of the first side item.
    first_side: usize,
    n_axes: usize,
    n_required: usize,
    n_items: usize,
    extra_bytes: usize,
    group: Arc<Group>,
    /// Which of the group's members this is.
    member: usize,
    stats: Option<Stats>,
    cookie: Option<Cookie>,
    /// The first thread that has called, as [`here`] names it; 0 before that.
    thread: AtomicUsize,
    /// Test hook: the next cold call panics.
    panic_next: AtomicBool,
}

/// What the callback uses for every heap: it is called with a pointer to this. Behind it are the ledger's counters.
#[derive(Debug)]
struct Fast {
    /// Address of the struct that the stream passes, always the same one. Another stream has another one.
    owner: AtomicUsize,
    placer: Placer,
    /// Only the callback touches it, of which there is one call at a time.
    state: UnsafeCell<State>,
    /// Shift of the first side item.
    side_shift: u32,
    /// All else.
    context: AtomicPtr<Context>,
    #[cfg(loom)]
    counters: Counters,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Fast>() <= hot::FRONT_BYTES, "room is left for it");

impl Fast {
    /// Put it where the ledger leaves room. Loom has atomics of its own there.
    #[cfg_attr(loom, expect(unused_variables, reason = "it lies in a box"))]
    fn beside(self, ledger: &Ledger) -> NonNull<Self> {
        #[cfg(loom)]
        let place: *mut Self = Box::into_raw(Box::new(std::mem::MaybeUninit::<Self>::uninit())).cast();
        #[cfg(not(loom))]
        let place = ledger.front().cast_mut().cast::<Self>();
        // SAFETY: there is room, aligned for everything, which nobody else uses: each context has a ledger of its own.
        unsafe {
            place.write(self);
            NonNull::new_unchecked(place)
        }
    }

    /// The context.
    fn context(&self) -> &Context {
        // SAFETY: whoever calls the callback has the pointer from `Context::argument`, and the context is there, and there only.
        unsafe { &*self.context.load(Relaxed) }
    }
}

/// What changes from heap to heap, and is no one's business but the callback's.
#[derive(Debug)]
struct State {
    window: Window,
    filled: Filled,
    has_ended: bool,
}

// SAFETY: all fields are Sync but `fast`, which the context owns; of that, only `state` is not Sync, which only the callback
// uses, of which there is one call at a time.
unsafe impl Sync for Context {}
// SAFETY: likewise; in the state, only a pointer into memory of its own is not Send.
unsafe impl Send for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: `new` has put it there, the callback is not called any more, and nobody else uses it.
        unsafe { self.fast.drop_in_place() };
        #[cfg(loom)]
        // SAFETY: it has come from such a box.
        drop(unsafe { Box::from_raw(self.fast.as_ptr().cast::<std::mem::MaybeUninit<Fast>>()) });
    }
}

/// The counters of [`hot`], in the ledger that the context holds.
#[derive(Clone, Copy, Debug)]
struct Counters(*const AtomicU64);

impl Counters {
    /// Those behind what the callback is called with.
    ///
    /// # Safety
    ///
    /// As for [`common`].
    #[inline(always)]
    unsafe fn behind(fast: *const Fast) -> Self {
        #[cfg(not(loom))]
        // SAFETY: the caller vouches that the pointer is that of a context, which has it from its ledger.
        return Self(unsafe { fast.byte_add(hot::FRONT_BYTES) }.cast());
        #[cfg(loom)]
        // SAFETY: likewise.
        return unsafe { (*fast).counters };
    }

    /// One of them.
    ///
    /// # Safety
    ///
    /// There must be one of that index, and the ledger must live longer than the reference.
    #[inline(always)]
    unsafe fn get<'a>(self, index: usize) -> &'a AtomicU64 {
        // SAFETY: the caller vouches for it.
        unsafe { &*self.0.add(index) }
    }
}

/// The items array of a layout with so many item axes, side items and required items.
#[repr(C)]
struct Row<const AXES: usize, const SIDE: usize, const REQUIRED: usize> {
    time: i64,
    heap_length: i64,
    axes: [i64; AXES],
    side: [i64; SIDE],
    required: [i64; REQUIRED],
}

impl<const AXES: usize, const SIDE: usize, const REQUIRED: usize> Row<AXES, SIDE, REQUIRED> {
    #[inline(always)]
    fn items(&self) -> Items<'_> {
        Items { time: self.time, heap_length: self.heap_length, axes: &self.axes, required: &self.required }
    }
}

impl Context {
    /// Prepare the callback of one stream whose window has `window` chunks, and make it a member of a group.
    ///
    /// With a cookie, the stream must pass one item more than the layout has, the last.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] if so many chunks span too long a time or too many heaps.
    pub fn new(
        geometry: &Geometry,
        window: u64,
        stats: Option<Stats>,
        group: Arc<Group>,
        cookie: Option<Cookie>,
    ) -> Result<Self, LayoutError> {
        let layout = geometry.layout();
        let placer = Placer::new(geometry, window)?;
        let ledger = Ledger::new(layout, window, group.epochs());
        let member = group.join(ledger.clone(), window);
        let state =
            State { window: Window::new(layout, window), filled: Filled::new(layout, window), has_ended: false };
        let fast = Fast {
            owner: AtomicUsize::new(0),
            placer,
            state: UnsafeCell::new(state),
            side_shift: layout.side.first().map_or(0, |field| field.shift),
            context: AtomicPtr::default(),
            #[cfg(loom)]
            counters: Counters(ledger.front().cast()),
        };
        Ok(Self {
            fast: fast.beside(&ledger),
            ledger,
            side: layout.side.clone().into(),
            first_side: layout.axes.len().saturating_add(FIRST_AXIS),
            n_axes: layout.axes.len(),
            n_required: layout.spec().required_items.len(),
            n_items: layout.items.len(),
            extra_bytes: layout.extra_bytes(),
            group,
            member,
            stats,
            cookie,
            thread: AtomicUsize::new(0),
            panic_next: AtomicBool::new(false),
        })
    }

    /// The ledger; a clone of it outlives the stream.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Make the next heap that leaves the fast path panic inside the callback.
    pub fn panic_next(&self) {
        self.panic_next.store(true, Relaxed);
    }

    /// What the callback must be given as its last argument. The context must stay where it is for as long as that is used.
    #[must_use]
    pub fn argument(&self) -> *mut c_void {
        // SAFETY: it is a context.
        unsafe { Self::argument_of(self) }
    }

    /// [`Self::argument`] of a context, for which [`Self::with_argument`] gives back the same pointer.
    ///
    /// # Safety
    ///
    /// The pointer must be to a context.
    #[must_use]
    pub unsafe fn argument_of(context: *const Self) -> *mut c_void {
        // SAFETY: the caller vouches for it.
        let this = unsafe { &*context };
        this.fast().context.store(context.cast_mut(), Relaxed);
        this.fast.as_ptr().cast()
    }

    /// The context that has an argument.
    ///
    /// # Safety
    ///
    /// It must be the argument of a context that is still there.
    #[must_use]
    pub unsafe fn with_argument(argument: *mut c_void) -> *const Self {
        // SAFETY: the caller vouches for it.
        unsafe { &*argument.cast::<Fast>() }.context.load(Relaxed)
    }

    fn fast(&self) -> &Fast {
        // SAFETY: it is there as long as the context.
        unsafe { self.fast.as_ref() }
    }

    fn placer(&self) -> &Placer {
        &self.fast().placer
    }

    /// The callback for this context, which must be passed [`Self::argument`] as the last argument.
    #[must_use]
    pub fn function(&self) -> PlaceFn {
        match (self.n_axes, self.placer().kind()) {
            (_, kind::ANY) => any,
            (_, kind::UNCOMMON) => general,
            (0, _) => self.with_axes::<0, { kind::COMMON }>(),
            (1, kind::UNIT) => self.with_axes::<1, { kind::UNIT }>(),
            (1, kind::POWER) => self.with_axes::<1, { kind::POWER }>(),
            (1, kind::BITS) => self.with_axes::<1, { kind::BITS }>(),
            (1, _) => self.with_axes::<1, { kind::COMMON }>(),
            (2, _) => self.with_axes::<2, { kind::COMMON }>(),
            (3, _) => self.with_axes::<3, { kind::COMMON }>(),
            _ => general,
        }
    }

    fn with_axes<const N: usize, const KIND: u8>(&self) -> PlaceFn {
        match &*self.side {
            [] => self.with_side_item::<N, KIND, 0, 0>(),
            [field] => match field.dtype {
                SideType::U8 => self.with_side_item::<N, KIND, 1, 1>(),
                SideType::U16 => self.with_side_item::<N, KIND, 1, 2>(),
                SideType::U32 => self.with_side_item::<N, KIND, 1, 4>(),
                SideType::U64 => self.with_side_item::<N, KIND, 1, 8>(),
            },
            _ => general,
        }
    }

    fn with_side_item<const N: usize, const KIND: u8, const SIDE: usize, const BYTES: usize>(&self) -> PlaceFn {
        match (self.n_required, self.placer().is_dense()) {
            (0, true) => common::<N, KIND, SIDE, BYTES, 0, true>,
            (0, false) => common::<N, KIND, SIDE, BYTES, 0, false>,
            (1, true) => common::<N, KIND, SIDE, BYTES, 1, true>,
            (1, false) => common::<N, KIND, SIDE, BYTES, 1, false>,
            _ => general,
        }
    }

    fn first_required(&self) -> usize {
        self.first_side.wrapping_add(self.side.len())
    }

    /// Count a rejected heap, here and in spead2's own statistics.
    ///
    /// # Safety
    ///
    /// As for [`common`].
    unsafe fn reject(&self, data: &mut ChunkPlaceData, reason: usize, source: Option<u64>) {
        data.chunk_id = -1;
        self.ledger.rejected(reason, source);
        // SAFETY: the caller vouches for `items`; at `packet`, unless it is null, spead2 has the packet.
        unsafe {
            let items = slice::from_raw_parts(data.items, self.n_items);
            let size = if data.packet.is_null() { 0 } else { data.packet_size };
            let packet = if size == 0 { &[] } else { slice::from_raw_parts(data.packet, size) };
            self.ledger.examples().note(self.placer().layout(), reason, items, packet);
        }
        if let Some(stats) = self.stats.filter(|stats| reason < stats.count) {
            // SAFETY: the caller vouches for `batch_stats`, which nobody else touches during the call.
            unsafe {
                let counter = data.batch_stats.wrapping_add(stats.base.wrapping_add(reason));
                *counter = (*counter).wrapping_add(1);
            }
        }
    }

    fn internal_error(&self) -> usize {
        reason::internal_error(self.placer().layout().reasons().len())
    }

    /// Judge a heap that the fast path did not place: where it goes, and whether that has gone.
    fn place_slowly(&self, state: &mut State, items: &[i64], mark: Option<Mark>) -> Result<(Placed, bool), usize> {
        assert!(!self.panic_next.swap(false, Relaxed), "panic asked for by a test");
        let n_reasons = self.placer().layout().reasons().len();
        let heap = Heap::new(self.placer(), items)?;
        let source = match heap.source() {
            Ok(source) => source,
            Err(axis) => return Err(if self.group.is_aligned(heap.stamp) { axis } else { reason::BAD_TIMESTAMP }),
        };
        let seen = Sighting { source, stamp: heap.stamp, slot: heap.slot() };
        let (verdict, moved) = self.group.observe(seen, mark, (&self.ledger, self.member), &mut state.window);
        if let Some(moved) = moved {
            self.slide(state, moved);
        }
        let moment = match verdict {
            Verdict::Place(moment) => moment,
            Verdict::Misaligned => return Err(reason::BAD_TIMESTAMP),
            Verdict::Implausible => return Err(reason::implausible(n_reasons)),
            Verdict::Backward => return Err(reason::backward(n_reasons)),
        };
        let placed = heap.placed(self.placer(), moment.chunk, moment.batch)?;
        let told = self.placer().layout().epoch_item.and_then(|position| items.get(position));
        if let Some(seconds) = told.and_then(|&value| u64::try_from(value).ok()) {
            self.group.note_utc(seconds);
        }
        let Some(chunk) = placed.chunk.checked_sub(state.window.first_chunk) else {
            self.ledger.too_old(placed.source, placed.batch);
            return Ok((placed, true));
        };
        if chunk > state.window.newest() {
            // It would move spead2's window, and not that of the group.
            return Err(reason::implausible(n_reasons));
        }
        let Placed { source, batch, slot, .. } = placed;
        if self.ledger.count(&mut state.filled, source, batch, chunk, slot.index) == Counted::Again {
            self.count_again(&mut state.filled, items);
        }
        Ok((placed, false))
    }

    /// Count a heap that was placed where there was one already.
    fn count_again(&self, filled: &mut Filled, items: &[i64]) {
        let Ok(heap) = Heap::new(self.placer(), items) else { return };
        let Ok(source) = heap.source() else { return };
        if self.ledger.duplicate(filled, source, self.group.begins_again()) {
            let seen = Sighting { source, stamp: heap.stamp, slot: heap.slot() };
            self.group.repeat(seen, (&self.ledger, self.member));
        }
    }

    /// Have the slots follow the window, which has moved by so many chunks.
    fn slide(&self, state: &mut State, moved: u64) {
        let State { window, filled, .. } = state;
        let old = window.first_chunk.wrapping_sub(moved);
        let mut copies = self.group.copies();
        filled.slide(moved, window.newest(), |chunk, row| {
            let copy = |slot| self.ledger.copy(self.placer().layout().source_of(slot));
            copies.leave(old.wrapping_add(chunk), row, copy);
        });
        copies.follow(self.member, Some(window.first_chunk));
    }

    /// Find the duplicates among the heaps of several streams in chunks that have not left the window.
    ///
    /// # Safety
    ///
    /// The stream must have stopped: its callback is not called any more.
    pub unsafe fn settle(&self) {
        // SAFETY: nobody else uses the state any more.
        let state = unsafe { &mut *self.fast().state.get() };
        if let Some(moved) = state.window.clear(state.window.first_chunk.wrapping_add(state.window.newest())) {
            self.slide(state, moved);
        }
        self.group.copies().follow(self.member, None);
    }

    /// The item that no layout has: the cookie of a control heap, or the mark of a heap of a recording; -1 if it is absent.
    ///
    /// # Safety
    ///
    /// As for [`common`].
    unsafe fn told(&self, data: &ChunkPlaceData) -> i64 {
        // SAFETY: with a cookie, there is one item more than the layout has.
        self.cookie.map_or(-1, |_| unsafe { *data.items.add(self.n_items) })
    }

    /// Whether this is one of our control heaps. It is no data, no ledger counts it, and spead2 neither as rejected nor as
    /// too old.
    ///
    /// # Safety
    ///
    /// As for [`common`].
    unsafe fn is_control(&self, data: &mut ChunkPlaceData) -> bool {
        let Some(cookie) = self.cookie else { return false };
        // SAFETY: the caller vouches for everything.
        let value = unsafe { self.told(data) };
        // SAFETY: no two calls with one context overlap, and nothing else has a reference to the state now.
        let state = unsafe { &mut *self.fast().state.get() };
        let chunk = if value == cookie.flush {
            self.group.control()
        } else if value == cookie.end {
            (!std::mem::replace(&mut state.has_ended, true)).then(|| self.group.end(&self.ledger)).flatten()
        } else if value == cookie.done {
            self.group.note_done();
            None
        } else {
            return false;
        };
        // Its one byte goes where no data ever will: the chunk is not given to anybody. If data have overtaken it, they have
        // pushed out all that it should have.
        let placed = chunk.and_then(|chunk| Some((chunk, self.group.place_control(chunk, &mut state.window)?)));
        data.chunk_id = placed.map_or(-1, |(chunk, _)| chunk as i64);
        data.heap_index = 0;
        data.heap_offset = 0;
        // SAFETY: the caller vouches for `batch_stats`.
        unsafe { self.add_to_stat(data, Stats::CONTROL, 1) };
        if let Some((_, moved)) = placed {
            self.slide(state, moved);
        } else {
            // SAFETY: likewise.
            unsafe { self.add_to_stat(data, Stats::REJECTED, -1) }; // which spead2 will add
        }
        true
    }

    /// Add to one of the statistics that come after our reasons.
    ///
    /// # Safety
    ///
    /// As for [`common`].
    unsafe fn add_to_stat(&self, data: &mut ChunkPlaceData, which: usize, change: i64) {
        if let Some(stats) = self.stats {
            let index = stats.base.wrapping_add(stats.count).wrapping_add(which);
            // SAFETY: the caller vouches for `batch_stats`, which nobody else touches during the call.
            unsafe {
                let counter = data.batch_stats.wrapping_add(index);
                *counter = (*counter).wrapping_add_signed(change);
            }
        }
    }

    /// Whether a call comes from the stream that the callback serves; if so, the next one like it takes the fast path.
    ///
    /// Two streams that use one context at the same time would be undefined behaviour. So it serves the stream that calls
    /// first. Another struct may be passed by the same thread only, which cannot be in two calls at once.
    fn serves(&self, data: *mut ChunkPlaceData) -> bool {
        let here = here();
        let first = self.thread.compare_exchange(0, here, Relaxed, Relaxed).unwrap_or_else(|thread| thread);
        if first != 0 && first != here {
            return false;
        }
        self.fast().owner.store(data.addr(), Relaxed);
        true
    }
}

/// What tells this thread from all others that are alive: the address of a variable of its own.
fn here() -> usize {
    thread_local!(static HERE: Cell<u8> = const { Cell::new(0) });
    HERE.with(|here| std::ptr::from_ref(here).addr())
}

/// The callback of layouts with `N` item axes, of the [`kind`] `KIND`, `SIDE` (0 or 1) side items of `BYTES` bytes, and
/// `REQUIRED` required items.
///
/// Nearly all heaps belong to the newest chunk. So this knows no other, and all else is left to [`older`]. The accounting
/// comes last, so that what is rare in it, like leaving, is a jump and needs no stack. Nothing in here can panic (the lints
/// above hold it to that), so nothing catches a panic either.
///
/// # Safety
///
/// `context` must be the [`Context::argument`] of a context whose [`Context::function`] this is, and no two calls with the same
/// context may overlap. `data` must point to a `chunk_place_data` of `data_size` bytes, in which `items` are those of the
/// layout (and the one for the cookie, if the context has one), `batch_stats` has all that the context's [`Stats`] say and
/// [`Stats::MORE`], and `extra` is null or has room for the layout's side items.
unsafe extern "C" fn common<
    const N: usize,
    const KIND: u8,
    const SIDE: usize,
    const BYTES: usize,
    const REQUIRED: usize,
    const DENSE: bool,
>(
    data: *mut ChunkPlaceData,
    data_size: usize,
    context: *mut c_void,
) {
    let fast = context.cast::<Fast>().cast_const();
    // SAFETY: the caller vouches for the context.
    let (Fast { owner, placer, state, .. }, counters) = unsafe { (&*fast, Counters::behind(fast)) };
    if data.addr() != owner.load(Relaxed) {
        // SAFETY: the caller vouches for everything.
        return unsafe { meet(data, data_size, fast) };
    }
    // SAFETY: the caller vouches for the pointer, and `meet` has seen the size of what it points to. No two calls with one
    // context overlap, and nothing else touches the state.
    let (data, State { window, filled, .. }) = unsafe { (&mut *data, &mut *state.get()) };
    // SAFETY: `items` has all items of the layout, which these are.
    let row = unsafe { &*data.items.cast::<Row<N, SIDE, REQUIRED>>() };
    // SAFETY: there is such a counter.
    let limit = unsafe { counters.get(hot::LIMIT) }.load(Relaxed);
    let Some(placed) = placer.place_newest::<DENSE, KIND>(window, limit, &row.items()) else {
        // SAFETY: the caller vouches for everything.
        return unsafe { older::<N, KIND, SIDE, REQUIRED>(data, fast) };
    };
    data.chunk_id = window.newest_chunk as i64;
    data.heap_index = placed.slot.index as usize;
    data.heap_offset = placed.slot.offset as usize;
    if let Some(&item) = row.side.first() {
        // SAFETY: the caller vouches for everything.
        unsafe { store_side_item::<BYTES>(data, fast, item, placed.slot.index) };
    }
    let batch = window.newest_first_batch.wrapping_add(placed.batch);
    // SAFETY: the placer knows no other sources and slots than those of the layout, and there is a counter for any lateness.
    let slot = unsafe {
        count_of_source(counters, placed.source, batch);
        count_lateness(&mut filled.newest_batch, batch, |index| Some(counters.get(index)));
        &*filled.newest_row().add(placed.slot.index as usize)
    };
    if slot.replace(1) != 0 {
        // SAFETY: the caller vouches for everything.
        unsafe { count_again(data, fast) }
    }
}

/// Count a placed heap of a source.
///
/// # Safety
///
/// The source must be there in the layout of which the counters are.
#[inline(always)]
unsafe fn count_of_source(counters: Counters, source: u64, batch: u64) {
    let of_source = hot::SOURCES.wrapping_add((source as usize).wrapping_mul(2));
    // SAFETY: each source has two counters.
    let (placed, newest) = unsafe { (counters.get(of_source), counters.get(of_source.wrapping_add(1))) };
    increment(placed);
    newest.store((newest.load(Relaxed) as i64).max(batch as i64) as u64, Relaxed);
}

/// What [`common`] does not place: heaps of older chunks of the window, and those that are in none.
///
/// There is one for all kinds of strides and side items: they differ little in time, and each takes room in the package.
///
/// # Safety
///
/// As for [`common`].
#[inline(never)]
unsafe extern "C" fn older<const N: usize, const KIND: u8, const SIDE: usize, const REQUIRED: usize>(
    data: &mut ChunkPlaceData,
    fast: *const Fast,
) {
    // SAFETY: the caller vouches for the context; no two calls with it overlap, and nothing else touches the state.
    let (Fast { placer, state, .. }, counters) = unsafe { (&*fast, Counters::behind(fast)) };
    // SAFETY: likewise; there is such a counter; `items` has all items of the layout, which these are.
    let (State { window, filled, .. }, limit, row) = unsafe {
        (&mut *state.get(), counters.get(hot::LIMIT).load(Relaxed), &*data.items.cast::<Row<N, SIDE, REQUIRED>>())
    };
    let placed = placer.place::<false, KIND>(window, window.usable(limit), &row.items());
    let Some((placed, first_slot)) = placed.and_then(|placed| Some((placed, filled.older_row(placed.chunk)?))) else {
        // SAFETY: the caller vouches for everything.
        return unsafe { leave_fast_path(data, fast) };
    };
    data.chunk_id = window.first_chunk.wrapping_add(placed.chunk) as i64;
    data.heap_index = placed.slot.index as usize;
    data.heap_offset = placed.slot.offset as usize;
    // SAFETY: the placer knows no other sources and slots than those of the layout; the caller vouches for the rest.
    let (context, slot) = unsafe {
        count_of_source(counters, placed.source, window.first_batch.wrapping_add(placed.batch));
        ((*fast).context(), &*first_slot.add(placed.slot.index as usize))
    };
    if SIDE != 0 {
        // SAFETY: the caller vouches for everything.
        unsafe { store_side_items(data, context) };
    }
    context.ledger.late(filled.newest().wrapping_sub(placed.chunk));
    if slot.replace(1) != 0 {
        // SAFETY: the caller vouches for everything.
        unsafe { count_again(data, fast) }
    }
}

/// The callback of all other layouts.
///
/// # Safety
///
/// As for [`common`].
unsafe extern "C" fn general(data: *mut ChunkPlaceData, data_size: usize, context: *mut c_void) {
    let fast = context.cast::<Fast>().cast_const();
    // SAFETY: the caller vouches for the context.
    let Fast { owner, placer, state, .. } = unsafe { &*fast };
    if data.addr() != owner.load(Relaxed) {
        // SAFETY: the caller vouches for everything.
        return unsafe { meet(data, data_size, fast) };
    }
    // SAFETY: the caller vouches for the pointers, and `meet` has seen the size of what the first points to; no two calls with
    // one context overlap, and nothing else touches the state.
    let (data, context, State { window, .. }) = unsafe { (&mut *data, (*fast).context(), &*state.get()) };
    // SAFETY: `items` has all items of the layout: time and length, then the axes; behind the side items, the required ones.
    let (row, axes, required) = unsafe {
        (
            &*data.items.cast::<Row<0, 0, 0>>(),
            slice::from_raw_parts(data.items.add(FIRST_AXIS), context.n_axes),
            slice::from_raw_parts(data.items.add(context.first_required()), context.n_required),
        )
    };
    let items = Items { time: row.time, heap_length: row.heap_length, axes, required };
    let limit = window.usable(context.ledger.limit());
    let placed = placer.place::<false, { kind::UNCOMMON }>(window, limit, &items);
    // SAFETY: the caller vouches for everything.
    unsafe { finish(data, fast, placed) };
}

/// The callback of layouts of [`kind::ANY`].
///
/// # Safety
///
/// As for [`common`].
unsafe extern "C" fn any(data: *mut ChunkPlaceData, data_size: usize, context: *mut c_void) {
    let fast = context.cast::<Fast>().cast_const();
    // SAFETY: the caller vouches for the context.
    let Fast { owner, placer, state, .. } = unsafe { &*fast };
    if data.addr() != owner.load(Relaxed) {
        // SAFETY: the caller vouches for everything.
        return unsafe { meet(data, data_size, fast) };
    }
    // SAFETY: the caller vouches for the pointers, and `meet` has seen the size of what the first points to; no two calls with
    // one context overlap, and nothing else touches the state.
    let (data, context, State { window, .. }) = unsafe { (&mut *data, (*fast).context(), &*state.get()) };
    // SAFETY: `items` has all items of the layout.
    let items = unsafe { slice::from_raw_parts(data.items, context.n_items) };
    let placed = placer.place_any(window, window.usable(context.ledger.limit()), items);
    // SAFETY: the caller vouches for everything.
    unsafe { finish(data, fast, placed) };
}

/// Tell spead2 of the place of a heap, if one was found, and count it; or leave the fast path.
///
/// # Safety
///
/// As for [`common`].
#[inline(always)]
unsafe fn finish(data: &mut ChunkPlaceData, fast: *const Fast, placed: Option<Placed>) {
    let Some(placed) = placed else {
        // SAFETY: the caller vouches for everything.
        return unsafe { leave_fast_path(data, fast) };
    };
    // SAFETY: the caller vouches for the context.
    let (Fast { state, .. }, context) = unsafe { (&*fast, (*fast).context()) };
    // SAFETY: no two calls with one context overlap, and nothing else touches the state.
    let State { window, filled, .. } = unsafe { &mut *state.get() };
    data.chunk_id = window.first_chunk.wrapping_add(placed.chunk) as i64;
    data.heap_index = placed.slot.index as usize;
    data.heap_offset = placed.slot.offset as usize;
    // SAFETY: the caller vouches for everything.
    unsafe { store_side_items(data, context) };
    let batch = window.first_batch.wrapping_add(placed.batch);
    if context.ledger.count(filled, placed.source, batch, placed.chunk, placed.slot.index) == Counted::Again {
        // SAFETY: the caller vouches for everything.
        unsafe { count_again(data, fast) }
    }
}

/// Count a heap that was placed where there was one already. A panic in here costs that count, and no more.
///
/// # Safety
///
/// As for [`common`].
#[cold]
#[inline(never)]
unsafe extern "C" fn count_again(data: &mut ChunkPlaceData, fast: *const Fast) {
    // SAFETY: the caller vouches for the context.
    let (Fast { state, .. }, context) = unsafe { (&*fast, (*fast).context()) };
    // SAFETY: the caller's own reference to the state is not used any more; `items` has all items of the layout.
    let (state, items) = unsafe { (&mut *state.get(), slice::from_raw_parts(data.items, context.n_items)) };
    let _ = catch_unwind(AssertUnwindSafe(|| context.count_again(&mut state.filled, items)));
}

/// The first call for a stream, or one for a stream that the context does not serve, whose heaps stay rejected. So do those
/// of a stream that passes a struct that we do not know.
///
/// # Safety
///
/// As for [`common`].
#[cold]
#[inline(never)]
unsafe extern "C" fn meet(data: *mut ChunkPlaceData, data_size: usize, fast: *const Fast) {
    // SAFETY: the caller vouches for the context.
    let context = unsafe { (*fast).context() };
    if data_size >= ChunkPlaceData::SIZE && context.serves(data) {
        // SAFETY: the caller vouches for everything, and the context for the stream.
        unsafe { context.function()(data, data_size, fast.cast_mut().cast()) };
    } else {
        context.ledger.strange();
    }
}

/// Everything that is not a good heap in the window.
///
/// A panic in here becomes a counted rejection. (As a C function it is known not to unwind: a plain jump leads here.)
///
/// # Safety
///
/// As for [`common`].
#[cold]
#[inline(never)]
unsafe extern "C" fn leave_fast_path(data: &mut ChunkPlaceData, fast: *const Fast) {
    // SAFETY: the caller vouches for the context.
    let (Fast { state, .. }, context) = unsafe { (&*fast, (*fast).context()) };
    // SAFETY: the caller vouches for everything.
    if unsafe { context.is_control(data) } {
        return;
    }
    // SAFETY: the caller's own reference to the state is not used any more; `items` has all items of the layout.
    let (state, items) = unsafe { (&mut *state.get(), slice::from_raw_parts(data.items, context.n_items)) };
    if state.has_ended {
        context.ledger.after_end();
        // SAFETY: the caller vouches for everything.
        return unsafe { context.add_to_stat(data, Stats::REJECTED, -1) }; // which spead2 will add
    }
    // SAFETY: the caller vouches for everything.
    let mark = Mark::read(unsafe { context.told(data) });
    let judged = catch_unwind(AssertUnwindSafe(|| context.place_slowly(state, items, mark)));
    let judged = judged.unwrap_or(Err(context.internal_error()));
    // SAFETY: the caller vouches for everything.
    unsafe {
        match judged {
            // The streams of a group share a window, of which spead2 may still have another chunk.
            Ok((_, true)) if context.stats.is_some() => {
                data.chunk_id = -1;
                context.add_to_stat(data, Stats::TOO_OLD, 1);
                context.add_to_stat(data, Stats::REJECTED, -1); // which spead2 will add
            }
            Ok((placed, _)) => {
                data.chunk_id = placed.chunk as i64;
                data.heap_index = placed.slot.index as usize;
                data.heap_offset = placed.slot.offset as usize;
                store_side_items(data, context);
            }
            Err(reason) => context.reject(data, reason, context.placer().source(items)),
        }
    }
}

/// Write the record of the side items of a placed heap.
///
/// # Safety
///
/// As for [`common`].
#[inline]
unsafe fn store_side_items(data: &mut ChunkPlaceData, context: &Context) {
    // Without room the stream was configured not to have them.
    if context.extra_bytes == 0 || data.extra.is_null() {
        return;
    }
    // SAFETY: the side items stand in front of the required ones; the caller vouches that `extra` has room for them.
    let (items, record) = unsafe {
        (
            slice::from_raw_parts(data.items.add(context.first_side), context.side.len()),
            slice::from_raw_parts_mut(data.extra, context.extra_bytes),
        )
    };
    context.side.iter().zip(items).fold(record, |rest, (field, &item)| {
        let value = side_value(item, field.shift);
        match field.dtype {
            SideType::U8 => store_low::<1>(rest, value),
            SideType::U16 => store_low::<2>(rest, value),
            SideType::U32 => store_low::<4>(rest, value),
            SideType::U64 => store_low::<8>(rest, value),
        }
    });
    data.extra_offset = data.heap_index.wrapping_mul(context.extra_bytes);
    data.extra_size = context.extra_bytes;
}

/// [`store_side_items`] for a layout with one side item, of `BYTES` bytes, and a heap with this index in its chunk.
///
/// # Safety
///
/// As for [`common`].
#[inline(always)]
unsafe fn store_side_item<const BYTES: usize>(data: &mut ChunkPlaceData, fast: *const Fast, item: i64, index: u64) {
    if data.extra.is_null() {
        return;
    }
    // SAFETY: the caller vouches that `extra` has room for the record.
    let (record, shift) = unsafe { (slice::from_raw_parts_mut(data.extra, BYTES), (*fast).side_shift) };
    store_low::<BYTES>(record, side_value(item, shift));
    data.extra_offset = (index as usize).wrapping_mul(BYTES);
    data.extra_size = BYTES;
}

/// What of a side item is kept, in bytes. An absent item is stored as 0.
#[inline(always)]
fn side_value(item: i64, shift: u32) -> [u8; 8] {
    (item.max(0) as u64).wrapping_shr(shift).to_le_bytes()
}

/// Store the low `BYTES` bytes of a little-endian value, and return what lies behind.
#[inline(always)]
fn store_low<const BYTES: usize>(record: &mut [u8], value: [u8; 8]) -> &mut [u8] {
    match (record.split_first_chunk_mut::<BYTES>(), value.first_chunk::<BYTES>()) {
        (Some((here, rest)), Some(low)) => {
            *here = *low;
            rest
        }
        _ => &mut [],
    }
}
