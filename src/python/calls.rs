//! Callbacks called as spead2 calls them, ours and foreign ones, on heaps that have come already: what each makes of them.
#![expect(unsafe_code, reason = "calls functions of which only the address is known, and reads what they have written")]

use std::ffi::c_void;
use std::ptr;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule};

use crate::abi::{CAPSULE_NAME, ChunkPlaceData, PlaceFn};

/// Name of a capsule whose function takes no context. To pass one all the same does no harm.
const PLAIN_CAPSULE_NAME: &std::ffi::CStr = c"void (void *, size_t)";

const WORD: usize = size_of::<u64>();
/// Bytes in front of each buffer and behind it that a callback must not write to, and their value.
const GUARD: usize = 64;
const UNTOUCHED: u8 = 0xA5;

/// A callback and its context.
#[derive(Clone, Copy)]
pub struct Callback {
    pub function: PlaceFn,
    pub context: *mut c_void,
}

// SAFETY: spead2 calls callbacks from threads of its own, so they cope with any.
unsafe impl Send for Callback {}

/// What each heap has: its items, and the packet that they came in.
#[derive(Clone, Copy)]
pub struct Heaps<'a> {
    /// Values of the items that the callback reads, heap after heap, as native `i64`; −1 for absent ones.
    pub items: &'a [u8],
    /// Bytes of one heap in there.
    pub row: usize,
    /// Packets, all of the same length; empty for none.
    pub packets: &'a [u8],
}

/// A buffer between guards.
struct Guarded {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Guarded {
    fn new(length: usize) -> Self {
        let bytes = vec![UNTOUCHED; length + 2 * GUARD + WORD];
        let start = GUARD + bytes[GUARD..].as_ptr().align_offset(WORD);
        let mut made = Self { bytes, start, length };
        made.inside().fill(0);
        made
    }

    fn inside(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }

    /// Where it begins, for one who may write to the guards too; null if it is empty.
    fn pointer(&mut self) -> *mut u8 {
        if self.length == 0 { ptr::null_mut() } else { self.bytes.as_mut_ptr().wrapping_add(self.start) }
    }

    /// Whether somebody has written to the guards, which are put right.
    fn was_overrun(&mut self) -> bool {
        let (before, rest) = self.bytes.split_at_mut(self.start);
        let guards = [before, &mut rest[self.length..]];
        let overrun = guards.iter().any(|guard| guard.iter().any(|&byte| byte != UNTOUCHED));
        if overrun {
            for guard in guards {
                guard.fill(UNTOUCHED);
            }
        }
        overrun
    }
}

/// All that a callback gets from spead2.
pub struct Stage {
    data: Guarded,
    items: Guarded,
    packet: Guarded,
    stats: Guarded,
    extra: Guarded,
}

impl Stage {
    pub fn new(heaps: &Heaps<'_>, n_stats: usize, extra_bytes: usize) -> Self {
        let count = heaps.items.len() / heaps.row;
        Self {
            data: Guarded::new(ChunkPlaceData::SIZE),
            items: Guarded::new(heaps.row),
            packet: Guarded::new(heaps.packets.len().checked_div(count).unwrap_or(0)),
            stats: Guarded::new(n_stats * WORD),
            extra: Guarded::new(extra_bytes),
        }
    }

    /// Call a callback for each heap, and each time hand what it did to `then`. Returns how long that took.
    ///
    /// # Safety
    ///
    /// The callback must be one that spead2 may call with these items, so many statistics and so much room for side items.
    pub unsafe fn call(
        &mut self,
        callback: Callback,
        heaps: &Heaps<'_>,
        mut then: impl FnMut(&ChunkPlaceData, &mut Self, &[u8]),
    ) -> Duration {
        let begin = Instant::now();
        let packet_bytes = self.packet.length;
        for (number, row) in heaps.items.chunks_exact(heaps.row).enumerate() {
            self.items.inside().copy_from_slice(row);
            if packet_bytes > 0 {
                self.packet.inside().copy_from_slice(&heaps.packets[number * packet_bytes..][..packet_bytes]);
            }
            #[expect(clippy::cast_ptr_alignment, reason = "the buffer begins at a whole word")]
            let data = self.data.pointer().cast::<ChunkPlaceData>();
            let made = ChunkPlaceData {
                packet: self.packet.pointer(),
                packet_size: packet_bytes,
                items: self.items.pointer().cast(),
                chunk_id: -1,
                heap_index: 0,
                heap_offset: 0,
                batch_stats: self.stats.pointer().cast(),
                extra: self.extra.pointer(),
                extra_offset: 0,
                extra_size: 0,
            };
            // SAFETY: the buffer has the size of the struct and is aligned; the caller vouches for the callback.
            let made = unsafe {
                data.write(made);
                (callback.function)(data, ChunkPlaceData::SIZE, callback.context);
                data.read()
            };
            then(&made, self, row);
        }
        begin.elapsed()
    }

    /// What became of a heap, besides its place: the first of the statistics that changed and by how much, how many
    /// changed, and which buffers the callback must not have written to. All is made ready for the next heap.
    fn rest(&mut self, row: &[u8]) -> [i64; 4] {
        let (mut first, mut by, mut changed) = (-1, 0, 0);
        for (index, word) in self.stats.inside().chunks_exact_mut(WORD).enumerate() {
            let value = i64::from_ne_bytes((&*word).try_into().unwrap_or_default());
            if value != 0 {
                if changed == 0 {
                    (first, by) = (index as i64, value);
                }
                changed += 1;
                word.fill(0);
            }
        }
        let altered = self.items.inside() != row;
        let buffers = [&mut self.data, &mut self.items, &mut self.packet, &mut self.stats, &mut self.extra];
        let mut overrun = i64::from(altered) << 1;
        for (bit, buffer) in buffers.into_iter().enumerate() {
            overrun |= i64::from(buffer.was_overrun()) << bit;
        }
        [first, by, changed, overrun]
    }
}

/// The callback in a capsule. The caller keeps the capsule alive.
fn callback_in(capsule: &Bound<'_, PyCapsule>) -> PyResult<Callback> {
    // SAFETY: `capsule` is a live capsule, and its name lives as long.
    let (name, context) = unsafe {
        let name = ffi::PyCapsule_GetName(capsule.as_ptr());
        let name = if name.is_null() { c"" } else { std::ffi::CStr::from_ptr(name) };
        (name, ffi::PyCapsule_GetContext(capsule.as_ptr()))
    };
    if name != CAPSULE_NAME && name != PLAIN_CAPSULE_NAME {
        let text = format!("capsule: is named {name:?}, but spead2 takes {CAPSULE_NAME:?} or {PLAIN_CAPSULE_NAME:?}");
        return Err(PyValueError::new_err(text));
    }
    // SAFETY: likewise; its name says what it holds.
    let function = unsafe {
        let pointer = ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr());
        if pointer.is_null() {
            return Err(PyErr::fetch(capsule.py()));
        }
        std::mem::transmute::<*mut c_void, PlaceFn>(pointer)
    };
    Ok(Callback { function, context })
}

fn heaps_of<'a>(items: &'a [u8], n_items: usize, packets: &'a [u8]) -> PyResult<Heaps<'a>> {
    let row = n_items * WORD;
    if row == 0 || items.len() % row != 0 {
        let text = format!("items: {} bytes are not a multiple of the {row} of a heap", items.len());
        return Err(PyValueError::new_err(text));
    }
    Ok(Heaps { items, row, packets })
}

/// Call the callback in a capsule for each heap.
///
/// `items` has the values of `n_items` items for each, as native `i64`; `packets` has packets of equal length. Returns nine
/// `i64` for each: what the callback said (chunk, index and offset of the heap, offset and size of its side items), the
/// first statistic that changed (−1: none), by how much, how many changed, and a bit for each buffer that it must not have
/// written to (its struct, items, packet, statistics, side items). And then `extra_bytes` of each.
#[pyfunction]
pub fn place_heaps<'py>(
    py: Python<'py>,
    capsule: &Bound<'py, PyCapsule>,
    items: &[u8],
    n_items: usize,
    packets: &[u8],
    n_stats: usize,
    extra_bytes: usize,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let heaps = heaps_of(items, n_items, packets)?;
    let callback = callback_in(capsule)?;
    let (told, extra) = py.detach(move || {
        let (callback, mut stage) = (callback, Stage::new(&heaps, n_stats, extra_bytes));
        let (mut told, mut extra) = (Vec::new(), Vec::new());
        let note = |data: &ChunkPlaceData, stage: &mut Stage, row: &[u8]| {
            let places = [data.heap_index, data.heap_offset, data.extra_offset, data.extra_size];
            told.push(data.chunk_id);
            told.extend(places.map(|place| place as i64));
            told.extend(stage.rest(row));
            extra.extend_from_slice(stage.extra.inside());
            stage.extra.inside().fill(0);
        };
        // SAFETY: as with spead2, who gives a callback vouches for it.
        unsafe { stage.call(callback, &heaps, note) };
        (told.into_iter().flat_map(i64::to_ne_bytes).collect::<Vec<u8>>(), extra)
    });
    Ok((PyBytes::new(py, &told), PyBytes::new(py, &extra)))
}

/// Call the callback in a capsule for each heap, as `place_heaps` does, and return how many nanoseconds all calls took.
///
/// Without a capsule, a function is called that does nothing: what the loop takes.
#[pyfunction]
#[pyo3(signature = (capsule, items, n_items, packets, n_stats, extra_bytes))]
pub fn time_heaps(
    py: Python<'_>,
    capsule: Option<&Bound<'_, PyCapsule>>,
    items: &[u8],
    n_items: usize,
    packets: &[u8],
    n_stats: usize,
    extra_bytes: usize,
) -> PyResult<u64> {
    let heaps = heaps_of(items, n_items, packets)?;
    let callback = match capsule {
        Some(capsule) => callback_in(capsule)?,
        None => Callback { function: nothing, context: ptr::null_mut() },
    };
    let taken = py.detach(move || {
        let (callback, mut stage) = (callback, Stage::new(&heaps, n_stats, extra_bytes));
        // SAFETY: as with spead2, who gives a callback vouches for it.
        unsafe { stage.call(callback, &heaps, |_, _, _| ()) }
    });
    Ok(u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX))
}

unsafe extern "C" fn nothing(_: *mut ChunkPlaceData, _: usize, _: *mut c_void) {}
