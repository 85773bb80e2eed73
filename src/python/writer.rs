//! `Writer`: threads that write files from Python's buffers, without the interpreter's lock.
#![expect(unsafe_code, reason = "Python buffers are lent to threads")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::chunk::count;
use crate::record::writer::{self, Cause, Extent, Lent, Piece, Work};

/// How often a wait looks for signals.
const LOOK: Duration = Duration::from_millis(100);

fn contiguous(name: impl FnOnce() -> String, buffer: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(buffer)?;
    if buffer.is_c_contiguous() {
        return Ok(buffer);
    }
    Err(PyValueError::new_err(format!("{}: its data are not C-contiguous", name())))
}

fn lent(buffer: &PyUntypedBuffer) -> Lent {
    Lent::new(buffer.buf_ptr().cast(), buffer.len_bytes())
}

/// The files of the chunks of a part: of each, what is before and after the number of its chunk in the path; and how far
/// the part goes.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Files {
    names: Vec<(OsString, OsString)>,
    extent: Arc<Extent>,
}

#[pymethods]
impl Files {
    /// The files of a part whose first chunk has a timestamp; so many ticks later comes the next.
    #[new]
    fn new(names: Vec<(OsString, OsString)>, first: i64, step: i64) -> Self {
        Self { names, extent: Arc::new(Extent::new(first, step)) }
    }

    /// The number of the chunk with a timestamp.
    fn number(&self, timestamp: i64) -> PyResult<i64> {
        self.extent.number(timestamp).ok_or_else(|| PyValueError::new_err(format!("timestamp: {timestamp} is too far")))
    }

    /// How many chunks it spans, with those that never came.
    #[getter]
    fn get_chunks(&self) -> i64 {
        self.extent.chunks.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_chunks(&self, chunks: i64) {
        self.extent.chunks.store(chunks, Ordering::Relaxed);
    }

    /// For how many chunks its metadata are written, or will be; 0 if that failed.
    #[getter]
    fn get_declared(&self) -> i64 {
        self.extent.declared.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_declared(&self, declared: i64) {
        self.extent.declared.store(declared, Ordering::Relaxed);
    }
}

impl Files {
    fn of(&self, number: i64, memory: &Memory) -> Vec<Piece> {
        let number = number.to_string();
        let paths = self.names.iter().map(|(before, after)| {
            let mut path = before.clone();
            path.push(&number);
            path.push(after);
            path.into()
        });
        paths.zip(&memory.0).map(|(path, buffer)| Piece::File(path, lent(buffer))).collect()
    }
}

/// What the files of a chunk are to hold: memory that may be lent again and again.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Memory(Vec<PyUntypedBuffer>);

#[pymethods]
impl Memory {
    #[new]
    fn new(arrays: Vec<Bound<'_, PyAny>>) -> PyResult<Self> {
        let buffers = arrays.into_iter().enumerate().map(|(i, array)| contiguous(|| format!("array {i}"), &array));
        buffers.collect::<PyResult<_>>().map(Self)
    }

    /// Bytes that are not 0 in the last array: heaps, if it says which are present.
    fn heaps(&self) -> u64 {
        self.0.last().filter(|present| present.len_bytes() > 0).map_or(0, |present| {
            // SAFETY: the buffer is contiguous, not empty, so not null, and stays exported while `self` lives. The chunk
            // is in no stream now, so nobody writes to it.
            count(unsafe { slice::from_raw_parts(present.buf_ptr().cast(), present.len_bytes()) })
        })
    }

    /// All bytes.
    #[getter]
    fn n_bytes(&self) -> usize {
        self.0.iter().map(PyUntypedBuffer::len_bytes).sum()
    }
}

/// What stays exported until a job is over, and who gets its memory back.
struct Held {
    buffers: (Vec<PyUntypedBuffer>, Option<Py<Memory>>),
    chunk: Option<Py<PyAny>>,
}

/// What was written so far, and what not.
#[pyclass(frozen, get_all, module = "speadrx._core")]
pub struct WriterCounts {
    /// Chunks that were written, their bytes and heaps.
    chunks: u64,
    bytes: u64,
    heaps: u64,
    /// Chunks that were not, by cause, and their heaps.
    lost: Vec<(&'static str, u64)>,
    heaps_lost: u64,
    /// What the system said of the first piece that was not written; and of the last metadata.
    first_error: Option<String>,
    last_error: Option<String>,
    /// Chunks that are not written yet; and those that are, but are not back yet.
    open: u64,
    returning: u64,
}

/// Threads that write files.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Writer {
    // Its threads end before what they read goes.
    threads: writer::Writer,
    // A buffer that goes may run Python code, which may let another thread in: never while this is locked.
    held: Mutex<HashMap<u64, Held>>,
    tickets: AtomicU64,
}

impl Writer {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit_pieces(&self, pieces: Vec<Piece>, work: Work, part: Option<Arc<Extent>>, held: Held) -> bool {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mut all = self.lock();
        all.insert(ticket, held);
        // SAFETY: the buffers are contiguous, and stay exported until the job is over, or the writer is dropped. Nobody
        // writes to them: the caller gives a chunk back to its stream only when the job is over.
        if unsafe { self.threads.submit(ticket, pieces, work, part) } {
            return true;
        }
        let back = all.remove(&ticket);
        drop(all);
        drop(back);
        false
    }
}

#[pymethods]
impl Writer {
    /// Write in so many threads, with at most so many chunks at a time.
    #[new]
    fn new(threads: usize, capacity: u64) -> PyResult<Self> {
        if threads == 0 {
            return Err(PyValueError::new_err("threads: given 0, but wanted at least 1"));
        }
        Ok(Self {
            threads: writer::Writer::new(threads, capacity)?,
            held: Mutex::default(),
            tickets: AtomicU64::new(0),
        })
    }

    /// Queue a chunk that goes on with a part, and needs no metadata. Returns whether that is so, and there is room.
    fn put(
        &self,
        files: &Files,
        timestamp: i64,
        most_gap: i64,
        memory: Py<Memory>,
        heaps: u64,
        chunk: Option<Py<PyAny>>,
    ) -> bool {
        let Some(number) = files.extent.next(timestamp, most_gap) else {
            return false;
        };
        let pieces = files.of(number, memory.get());
        let work = Work::Chunk { heaps, bytes: memory.get().n_bytes() as u64, reserved: false };
        let is_queued = self.submit_pieces(pieces, work, None, Held { buffers: (Vec::new(), Some(memory)), chunk });
        if is_queued {
            files.extent.chunks.store(number + 1, Ordering::Relaxed);
        }
        is_queued
    }

    /// Queue metadata of a part, and a chunk behind them, if any: its number, what its files are to hold, its heaps,
    /// the chunk that has the memory, and whether there is room kept for it. Metadata are, for each piece, a path, the
    /// bytes of the file or None for a folder, and whether it stays if a later piece fails. What has no bytes and does not
    /// stay is a file to remove. Without a part they are the last. Returns whether it is queued.
    #[pyo3(signature = (pieces, files=None, chunk=None))]
    #[expect(clippy::type_complexity, reason = "it is a call from Python")]
    fn submit(
        &self,
        pieces: Vec<(PathBuf, Option<Bound<'_, PyAny>>, bool)>,
        files: Option<&Files>,
        chunk: Option<(i64, Py<Memory>, u64, Option<Py<PyAny>>, bool)>,
    ) -> PyResult<bool> {
        let mut buffers = Vec::with_capacity(pieces.len());
        let mut work = Vec::with_capacity(pieces.len());
        for (path, buffer, stays) in pieces {
            let Some(buffer) = buffer else {
                work.push(if stays { Piece::Folder(path) } else { Piece::Removed(path) });
                continue;
            };
            let buffer = contiguous(|| path.display().to_string(), &buffer)?;
            let lent = lent(&buffer);
            work.push(if stays { Piece::Kept(path, lent) } else { Piece::File(path, lent) });
            buffers.push(buffer);
        }
        let part = files.filter(|_| !work.is_empty()).map(|files| Arc::clone(&files.extent));
        let mut held = Held { buffers: (buffers, None), chunk: None };
        let mut kind = if files.is_some() { Work::Metadata } else { Work::Last };
        if let (Some(files), Some((number, memory, heaps, chunk, reserved))) = (files, chunk) {
            work.extend(files.of(number, memory.get()));
            kind = Work::Chunk { heaps, bytes: memory.get().n_bytes() as u64, reserved };
            held.buffers.1 = Some(memory);
            held.chunk = chunk;
        }
        Ok(self.submit_pieces(work, kind, part, held))
    }

    /// Keep room for a chunk that comes later. Returns whether there is any.
    fn reserve(&self, heaps: u64) -> bool {
        self.threads.reserve(heaps)
    }

    /// Count a chunk that is not written, and say why; whether or not room was reserved for it.
    #[pyo3(signature = (heaps, cause, reserved=false, words=None))]
    fn lose(&self, heaps: u64, cause: &str, reserved: bool, words: Option<String>) -> PyResult<()> {
        let known = Cause::ALL.into_iter().find(|one| one.name() == cause);
        let known = known.ok_or_else(|| PyValueError::new_err(format!("cause: there is no {cause:?}")))?;
        self.threads.lose(heaps, known, reserved, words);
        Ok(())
    }

    /// Wait for jobs to be over, and take their chunks, which are back when this is called again.
    fn wait(&self, py: Python<'_>, seconds: f64) -> Vec<Py<PyAny>> {
        let most = duration(seconds);
        let over = py.detach(|| self.threads.wait(most));
        let mut all = self.lock();
        let held: Vec<_> = over.iter().filter_map(|ticket| all.remove(ticket)).collect();
        drop(all);
        held.into_iter().filter_map(|held| held.chunk).collect()
    }

    /// Wait until there is room for a chunk. Returns whether there is: not if nothing is written for so long.
    fn wait_for_room(&self, py: Python<'_>, patience: f64) -> PyResult<bool> {
        self.wait_until(py, patience, |most| self.threads.wait_for_room(most))
    }

    /// Wait until all is written, and back. Returns whether it is: not if nothing is written for so long.
    fn wait_until_settled(&self, py: Python<'_>, patience: f64) -> PyResult<bool> {
        self.wait_until(py, patience, |most| self.threads.wait_until_settled(most))
    }

    /// Seconds in which nothing was done, though there is something to do.
    #[getter]
    fn stuck(&self) -> f64 {
        self.threads.stuck().as_secs_f64()
    }

    /// What was written so far, and what not.
    #[getter]
    fn counts(&self) -> WriterCounts {
        let (counts, open, returning) = self.threads.counts();
        let lost = counts.lost.into_iter().map(|(cause, n)| (cause.name(), n)).collect();
        WriterCounts {
            chunks: counts.chunks,
            bytes: counts.bytes,
            heaps: counts.heaps,
            lost,
            heaps_lost: counts.heaps_lost,
            first_error: counts.first_error,
            last_error: counts.last_error,
            open,
            returning,
        }
    }

    /// Take no more jobs; those in the queue are still done.
    fn end(&self) {
        self.threads.end();
    }

    /// Wait for no job any more, not even when this goes away: the disk hangs, as these words say.
    fn abandon(&self, words: String) {
        self.threads.abandon(words);
    }
}

impl Writer {
    /// Wait in short turns, so that signals are heard; not if nothing is done for so long.
    fn wait_until(&self, py: Python<'_>, patience: f64, wait: impl Fn(Duration) -> bool + Sync) -> PyResult<bool> {
        if wait(Duration::ZERO) {
            return Ok(true); // as a rule, and then it is not worth to let go of the lock
        }
        let patience = duration(patience);
        loop {
            let rest = patience.saturating_sub(self.threads.stuck());
            if py.detach(|| wait(rest.min(LOOK))) {
                return Ok(true);
            }
            py.check_signals()?;
            if self.threads.stuck() >= patience {
                return Ok(false);
            }
        }
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(if seconds > 0.0 { Duration::MAX } else { Duration::ZERO })
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.threads.is_abandoned() {
            // Threads may still read it.
            std::mem::forget(std::mem::take(self.held.get_mut().unwrap_or_else(PoisonError::into_inner)));
        }
    }
}
