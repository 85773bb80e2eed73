//! `Placement`: the callback of one stream as a capsule that spead2 takes; and capsules for foreign callbacks.
#![expect(unsafe_code, reason = "capsules carry raw pointers")]

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCapsule};

use super::calls::{Callback, Heaps, Stage};
use super::group::Group;
use super::ledger::Ledger;
use crate::abi::{CAPSULE_NAME, ChunkPlaceData};
use crate::callback::{Context, Cookie, Stats};
use crate::layout::Geometry;
use crate::sync::Arc;

/// The callback of one stream.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Placement {
    context: Arc<Context>,
    /// Items that the callback reads of each heap.
    n_items: usize,
    /// A context serves one stream: two would use its state at once.
    given_out: AtomicBool,
}

impl Placement {
    pub fn new(
        geometry: &Geometry,
        window: u64,
        stats: Option<(usize, usize)>,
        group: &Group,
        cookie: Option<(i64, i64, i64)>,
    ) -> PyResult<Self> {
        let stats = stats.map(|(base, count)| Stats { base, count });
        let cookie = cookie.map(|(flush, end, done)| Cookie { flush, end, done });
        let context = Arc::new(Context::new(geometry, window, stats, Arc::clone(&group.0), cookie)?);
        let n_items = geometry.layout().items().len() + usize::from(cookie.is_some());
        Ok(Self { context, n_items, given_out: AtomicBool::new(false) })
    }

    /// Claim the context for one user.
    fn claim(&self) -> PyResult<()> {
        if self.given_out.swap(true, Relaxed) {
            return Err(PyValueError::new_err("placement: serves a stream already; make another for another stream"));
        }
        Ok(())
    }
}

/// Drops the context's reference that the capsule holds.
unsafe extern "C" fn drop_context(capsule: *mut ffi::PyObject) {
    // SAFETY: called by Python as the destructor of a capsule from `Placement::capsule`. Its context is the argument of an
    // `Arc::into_raw` that nobody else gives back, or still null if setting it failed.
    unsafe {
        let argument = ffi::PyCapsule_GetContext(capsule);
        if !argument.is_null() {
            drop(Arc::from_raw(Context::with_argument(argument)));
        }
    }
}

fn set_context(capsule: &Bound<'_, PyCapsule>, context: *mut c_void) -> PyResult<()> {
    // SAFETY: `capsule` is a live capsule.
    if unsafe { ffi::PyCapsule_SetContext(capsule.as_ptr(), context) } != 0 {
        return Err(PyErr::fetch(capsule.py()));
    }
    Ok(())
}

#[pymethods]
impl Placement {
    #[getter]
    fn ledger(&self) -> Ledger {
        Ledger(self.context.ledger().clone())
    }

    /// The callback as a capsule, which keeps its context alive; it serves one stream, and can be had once.
    fn capsule<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        self.claim()?;
        let function = NonNull::new(self.context.function() as *mut c_void)
            .ok_or_else(|| PyValueError::new_err("the callback has no address"))?;
        // SAFETY: the function has static lifetime, and the destructor copes with a capsule that has no context yet.
        let capsule =
            unsafe { PyCapsule::new_with_pointer_and_destructor(py, function, CAPSULE_NAME, Some(drop_context)) }?;
        // SAFETY: the pointer is to a context.
        let argument = unsafe { Context::argument_of(Arc::into_raw(Arc::clone(&self.context))) };
        set_context(&capsule, argument)?;
        Ok(capsule)
    }

    /// Place heaps that have come already, by the items of each, in place of a stream; it can be done once.
    ///
    /// `items` has the values that the callback reads, heap after heap, as native `i64` (-1 for absent ones). Returns two
    /// `i64` for each: its chunk (-1: it was rejected) and its index there.
    fn try_heaps<'py>(&self, py: Python<'py>, items: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
        let row = self.n_items * size_of::<i64>();
        if items.len() % row != 0 {
            let text = format!("items: {} bytes are not a multiple of the {row} of a heap", items.len());
            return Err(PyValueError::new_err(text));
        }
        self.claim()?;
        let heaps = Heaps { items, row, packets: &[] };
        let callback = Callback { function: self.context.function(), context: self.context.argument() };
        let mut places = Vec::with_capacity(2 * items.len() / row);
        let note = |data: &ChunkPlaceData, _: &mut Stage, _: &[u8]| {
            places.extend([data.chunk_id, data.heap_index as i64]);
        };
        // SAFETY: the context is ours alone since `claim`, has all its items, and no place for side items.
        unsafe { Stage::new(&heaps, 0, 0).call(callback, &heaps, note) };
        let bytes: Vec<u8> = places.into_iter().flat_map(i64::to_ne_bytes).collect();
        Ok(PyBytes::new(py, &bytes))
    }

    /// Count what is only known once the stream has stopped, and its callback is not called any more.
    fn settle(&self) {
        // SAFETY: only `stop` calls this, after spead2 has joined all readers of the stream.
        unsafe { self.context.settle() };
    }

    /// Test hook: the next heap that is not simply a good one in the window panics inside the callback.
    fn _panic_next(&self) {
        self.context.panic_next();
    }
}

/// A capsule for a callback that is not ours, such as one compiled by numba.
///
/// The caller keeps alive what both addresses point to.
#[pyfunction]
pub fn foreign_capsule(py: Python<'_>, address: usize, user_data_address: usize) -> PyResult<Bound<'_, PyCapsule>> {
    let function = NonNull::new(address as *mut c_void).ok_or_else(|| {
        PyValueError::new_err("address: 0 is not the address of a function; expected that of a callback")
    })?;
    // SAFETY: the pointer is only handed on; what it points to is the caller's to vouch for, as with any C callback.
    let capsule = unsafe { PyCapsule::new_with_pointer(py, function, CAPSULE_NAME) }?;
    set_context(&capsule, user_data_address as *mut c_void)?;
    Ok(capsule)
}
