//! `Writer`: threads that write files from Python's buffers, without the interpreter's lock.
#![expect(unsafe_code, reason = "Python buffers are lent to threads")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::record::writer::{self, Cause, Lent, Piece};

/// Threads that write files.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Writer {
    // Its threads end before what they read goes.
    threads: writer::Writer,
    // A buffer that goes may run Python code, which may let another thread in: never while this is locked.
    lent: Mutex<HashMap<u64, Vec<PyUntypedBuffer>>>,
    tickets: AtomicU64,
}

#[pymethods]
impl Writer {
    /// Write in so many threads, with at most so many jobs at a time.
    #[new]
    fn new(threads: usize, most: usize) -> PyResult<Self> {
        if threads == 0 {
            return Err(PyValueError::new_err("threads: given 0, but wanted at least 1"));
        }
        Ok(Self { threads: writer::Writer::new(threads, most)?, lent: Mutex::default(), tickets: AtomicU64::new(0) })
    }

    /// Queue a job: for each piece a path, the bytes of the file or None for a folder, and whether it stays if a later
    /// piece fails. What has no bytes and does not stay is a file to remove. Returns its number, or None if the queue is
    /// full.
    fn submit(&self, pieces: Vec<(PathBuf, Option<Bound<'_, PyAny>>, bool)>) -> PyResult<Option<u64>> {
        let mut buffers = Vec::with_capacity(pieces.len());
        let mut work = Vec::with_capacity(pieces.len());
        for (path, buffer, stays) in pieces {
            let Some(buffer) = buffer else {
                work.push(if stays { Piece::Folder(path) } else { Piece::Removed(path) });
                continue;
            };
            let buffer = PyUntypedBuffer::get(&buffer)?;
            if !buffer.is_c_contiguous() {
                return Err(PyValueError::new_err(format!("{}: its data are not C-contiguous", path.display())));
            }
            let lent = Lent::new(buffer.buf_ptr().cast(), buffer.len_bytes());
            work.push(if stays { Piece::Kept(path, lent) } else { Piece::File(path, lent) });
            buffers.push(buffer);
        }
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mut all = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(ticket, buffers);
        // SAFETY: the buffers are contiguous, and stay exported until the job is over, or the writer is dropped. Nobody
        // writes to them: the caller gives a chunk back to its stream only when the job is over.
        if unsafe { self.threads.submit(ticket, work) } {
            return Ok(Some(ticket));
        }
        let back = all.remove(&ticket);
        drop(all);
        drop(back);
        Ok(None)
    }

    /// Wait for jobs to be over, and take them: their numbers, and why each was not done.
    fn wait(&self, py: Python<'_>, seconds: f64) -> Vec<(u64, Option<(&'static str, String)>)> {
        let most = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let over = py.detach(|| self.threads.wait(most));
        let mut all = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let back: Vec<_> = over.iter().map(|done| all.remove(&done.ticket)).collect();
        drop(all);
        drop(back);
        over.into_iter().map(|done| (done.ticket, done.failure.map(|(cause, words)| (cause.name(), words)))).collect()
    }

    /// Jobs that wait or run.
    #[getter]
    fn queued(&self) -> usize {
        self.threads.queued()
    }

    /// Take no more jobs; those in the queue are still done.
    fn end(&self) {
        self.threads.end();
    }

    /// Wait for no job any more, not even when this goes away: the disk hangs.
    fn abandon(&self) {
        self.threads.abandon();
    }

    /// Why jobs are not done.
    #[staticmethod]
    fn causes() -> Vec<&'static str> {
        Cause::ALL.into_iter().map(Cause::name).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.threads.is_abandoned() {
            // Threads may still read it.
            std::mem::forget(std::mem::take(self.lent.get_mut().unwrap_or_else(PoisonError::into_inner)));
        }
    }
}
