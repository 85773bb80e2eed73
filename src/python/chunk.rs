//! Chunk kernels on Python buffers.
#![expect(unsafe_code, reason = "a Python buffer becomes a slice here")]

use std::slice;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::ledger::bytes;
use crate::chunk;
use crate::layout::{Geometry, Layout};
use crate::unpack::{Packing, unpack_chunk};

/// Check a buffer that is read or written as bytes.
fn check_contiguous(name: &str, buffer: &PyUntypedBuffer) -> PyResult<()> {
    if buffer.is_c_contiguous() {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{name}: is not C-contiguous")))
}

fn check_present(layout: &Layout, present: &PyUntypedBuffer) -> PyResult<()> {
    check_contiguous("present", present)?;
    if present.item_size() != 1 {
        return Err(PyValueError::new_err(format!("present: has items of {} bytes, not 1", present.item_size())));
    }
    let (given, wanted) = (present.len_bytes(), layout.chunk_heaps());
    if given as u64 != wanted {
        return Err(PyValueError::new_err(format!("present: has {given} elements, but a chunk has {wanted} heaps")));
    }
    Ok(())
}

fn check_writable(name: &str, buffer: &PyUntypedBuffer, wanted: u64) -> PyResult<()> {
    check_contiguous(name, buffer)?;
    if buffer.readonly() {
        return Err(PyValueError::new_err(format!("{name}: is read-only")));
    }
    let given = buffer.len_bytes();
    if (given as u64) < wanted {
        return Err(PyValueError::new_err(format!("{name}: has {given} bytes, but a chunk needs {wanted}")));
    }
    Ok(())
}

/// Check that no two buffers share memory, for one of them is written to.
fn check_apart(buffers: &[(&str, &PyUntypedBuffer)]) -> PyResult<()> {
    let end = |buffer: &PyUntypedBuffer| buffer.buf_ptr().addr() + buffer.len_bytes();
    for (i, (name, buffer)) in buffers.iter().enumerate() {
        for (other_name, other) in buffers.iter().skip(i + 1) {
            if buffer.buf_ptr().addr() < end(other) && other.buf_ptr().addr() < end(buffer) {
                return Err(PyValueError::new_err(format!("{other_name}: shares memory with {name}")));
            }
        }
    }
    Ok(())
}

pub fn account_present<'py>(
    py: Python<'py>,
    layout: &Layout,
    present: &PyUntypedBuffer,
) -> PyResult<(Bound<'py, PyBytes>, usize, usize)> {
    check_present(layout, present)?;
    // SAFETY: the buffer is contiguous, not empty (a chunk has at least one heap), and stays exported while `present`
    // lives. A chunk that Python holds is in no stream, so nobody writes to it meanwhile, unless a caller writes to it
    // from another thread, which would be as wrong with any numpy function that releases the GIL.
    let heaps = unsafe { slice::from_raw_parts(present.buf_ptr().cast::<u8>(), present.len_bytes()) };
    let account = py.detach(|| chunk::account_present(layout, heaps)).ok_or_else(unchecked)?;
    Ok((bytes(py, &account.by_source, u64::to_ne_bytes), account.first_batch, account.end_batch))
}

pub fn fill_missing(
    py: Python<'_>,
    geometry: &Geometry,
    data: &PyUntypedBuffer,
    present: &PyUntypedBuffer,
    pattern: &[u8],
    extra: Option<&PyUntypedBuffer>,
) -> PyResult<u64> {
    let layout = geometry.layout();
    check_present(layout, present)?;
    check_writable("data", data, geometry.span_bytes())?;
    let heap_bytes = layout.spec().heap_bytes;
    if pattern.is_empty() || heap_bytes % pattern.len() as u64 != 0 {
        let given = pattern.len();
        return Err(PyValueError::new_err(format!(
            "fill: has {given} bytes, which do not divide a heap of {heap_bytes}"
        )));
    }
    // A chunk without side items may have an extra all the same, even an empty one: it is left alone.
    let extra = extra.filter(|_| layout.extra_bytes() != 0);
    if let Some(extra) = extra {
        check_writable("extra", extra, layout.chunk_heaps() * layout.extra_bytes() as u64)?;
        check_apart(&[("data", data), ("present", present), ("extra", extra)])?;
    } else {
        check_apart(&[("data", data), ("present", present)])?;
    }
    // SAFETY: the buffers are contiguous, not empty (a chunk has at least one heap, and that a byte), stay exported
    // while these live, and share no memory; those that are written to are writable. As for other threads: see above.
    let (heaps, bytes, records) = unsafe {
        (
            slice::from_raw_parts(present.buf_ptr().cast::<u8>(), present.len_bytes()),
            slice::from_raw_parts_mut(data.buf_ptr().cast::<u8>(), data.len_bytes()),
            extra.map(|extra| slice::from_raw_parts_mut(extra.buf_ptr().cast::<u8>(), extra.len_bytes())),
        )
    };
    py.detach(|| {
        if let Some(records) = records {
            chunk::zero_missing_extra(layout, heaps, records)?;
        }
        chunk::fill_missing(geometry, heaps, bytes, pattern)
    })
    .ok_or_else(unchecked)
}

pub fn unpack(
    py: Python<'_>,
    geometry: &Geometry,
    data: &PyUntypedBuffer,
    out: &PyUntypedBuffer,
    packing: Packing,
    samples: usize,
) -> PyResult<()> {
    check_contiguous("data", data)?;
    let (given, wanted) = (data.len_bytes(), geometry.span_bytes());
    if (given as u64) < wanted {
        return Err(PyValueError::new_err(format!("data: has {given} bytes, but a chunk needs {wanted}")));
    }
    let bytes = (samples * packing.sample_bytes()) as u64 * geometry.layout().chunk_heaps();
    check_writable("out", out, bytes)?;
    check_apart(&[("data", data), ("out", out)])?;
    // SAFETY: the buffers are contiguous, not empty (a chunk has at least one heap, and that a byte), stay exported
    // while these live, and share no memory; that which is written to is writable. As for other threads: see above.
    let (packed, integers) = unsafe {
        (
            slice::from_raw_parts(data.buf_ptr().cast::<u8>(), data.len_bytes()),
            slice::from_raw_parts_mut(out.buf_ptr().cast::<u8>(), out.len_bytes()),
        )
    };
    py.detach(|| unpack_chunk(geometry, packing, samples, packed, integers)).ok_or_else(unchecked)
}

/// The kernel has found wrong what is checked here before.
fn unchecked() -> PyErr {
    PyValueError::new_err("a buffer does not fit the layout")
}
