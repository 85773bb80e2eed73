//! Chunk kernels on Python buffers.
#![expect(unsafe_code, reason = "a Python buffer becomes a slice here")]

use std::slice;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::chunk;
use crate::layout::Layout;

pub fn account_present(py: Python<'_>, layout: &Layout, present: &PyUntypedBuffer) -> PyResult<(Vec<u64>, usize)> {
    if !present.is_c_contiguous() {
        return Err(PyValueError::new_err("present: is not C-contiguous"));
    }
    if present.item_size() != 1 {
        return Err(PyValueError::new_err(format!("present: has items of {} bytes, not 1", present.item_size())));
    }
    let (given, wanted) = (present.len_bytes(), layout.chunk_heaps());
    let wrong_length =
        || PyValueError::new_err(format!("present: has {given} elements, but a chunk has {wanted} heaps"));
    if given as u64 != wanted {
        return Err(wrong_length());
    }
    // SAFETY: the buffer is contiguous, not empty (a chunk has at least one heap), and stays exported while `present`
    // lives. A chunk that Python holds is in no stream, so nobody writes to it meanwhile, unless a caller writes to it
    // from another thread, which would be as wrong with any numpy function that releases the GIL.
    let bytes = unsafe { slice::from_raw_parts(present.buf_ptr().cast::<u8>(), given) };
    let account = py.detach(|| chunk::account_present(layout, bytes)).ok_or_else(wrong_length)?;
    Ok((account.by_source, account.first_batch))
}
