//! Captures for Python: datagrams one by one, without the GIL while the file is read.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyTuple};

use super::feed::{Wait, open_capture};
use crate::packet::capture::{self, CaptureError, Datagram, Fault};

/// Addresses that are kept as Python has them: there are few, and writing them takes long.
const MOST_ADDRESSES: usize = 65_536;

impl From<CaptureError> for PyErr {
    fn from(error: CaptureError) -> Self {
        let text = error.to_string();
        match error.fault {
            Fault::Io(error) => PyOSError::new_err((error.raw_os_error(), text)),
            _ => PyValueError::new_err(text),
        }
    }
}

struct Reader {
    capture: capture::Capture,
    addresses: HashMap<SocketAddr, Py<PyTuple>>,
}

/// The datagrams of a capture, in order.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Capture {
    reader: Mutex<Reader>,
    /// Bytes that were read: for other threads, which must not wait for a pipe.
    position: AtomicU64,
    wait: Arc<Wait>,
    /// Whether it is to be closed once nobody reads any more.
    is_closing: AtomicBool,
}

type Address = Py<PyTuple>;
/// Time in seconds, sender, destination, payload, and its length.
type Row = (f64, Address, Address, Py<PyBytes>, usize);

#[pymethods]
impl Capture {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "Python gives it away")]
    fn new(py: Python<'_>, path: PathBuf, cut: bool) -> PyResult<Self> {
        let (capture, wait) = open_capture(py, &path, cut)?;
        let reader = Mutex::new(Reader { capture, addresses: HashMap::new() });
        Ok(Self { reader, position: AtomicU64::new(0), wait, is_closing: AtomicBool::new(false) })
    }

    /// The next datagram; None at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Row>> {
        let row = self.row(py);
        self.close_if_asked();
        row
    }

    /// Let a pipe end where it is, also while it is waited for.
    fn end(&self) {
        self.wait.end();
    }

    /// Close the file; if it is being read, once that is over: a signal handler may ask for it, in the thread that reads.
    fn close(&self) {
        self.is_closing.store(true, Ordering::SeqCst);
        self.wait.end();
        self.close_if_asked();
    }

    #[getter]
    fn size(&self, py: Python<'_>) -> Option<u64> {
        self.lock(py).capture.size()
    }

    #[getter]
    fn position(&self) -> u64 {
        self.position.load(Ordering::Relaxed)
    }

    #[getter]
    fn frames(&self, py: Python<'_>) -> u64 {
        self.lock(py).capture.counts().frames
    }

    #[getter]
    fn cut_short(&self, py: Python<'_>) -> u64 {
        self.lock(py).capture.counts().cut_short
    }

    #[getter]
    fn joined(&self, py: Python<'_>) -> u64 {
        self.lock(py).capture.counts().joined
    }

    #[getter]
    fn split(&self, py: Python<'_>) -> u64 {
        self.lock(py).capture.counts().split
    }

    #[getter]
    fn skipped(&self, py: Python<'_>) -> HashMap<String, u64> {
        self.lock(py).capture.counts().skipped().collect()
    }

    #[getter]
    fn truncated(&self, py: Python<'_>) -> bool {
        self.lock(py).capture.is_truncated()
    }
}

impl Capture {
    fn row(&self, py: Python<'_>) -> PyResult<Option<Row>> {
        let mut reader = self.lock(py);
        let Reader { capture, addresses } = &mut *reader;
        let Some(datagram) = py.detach(|| capture.next_datagram())? else {
            self.wait.check()?;
            return Ok(None);
        };
        let source = address(py, addresses, datagram.source)?;
        let destination = address(py, addresses, datagram.destination)?;
        let payload = PyBytes::new(py, datagram.payload).unbind();
        let row = (seconds(datagram.time), source, destination, payload, datagram.length);
        self.position.store(capture.position(), Ordering::Relaxed);
        Ok(Some(row))
    }

    fn close_if_asked(&self) {
        if self.is_closing.load(Ordering::SeqCst) {
            match self.reader.try_lock() {
                Ok(mut reader) => reader.capture.close(),
                Err(TryLockError::Poisoned(reader)) => reader.into_inner().capture.close(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    /// Do something with each of the next datagrams, at most so many. The GIL must not be held. Returns how many.
    pub fn for_each(&self, most: u64, each: impl FnMut(&Datagram<'_>)) -> PyResult<u64> {
        let n = self.read_some(most, each);
        self.close_if_asked();
        n
    }

    fn read_some(&self, most: u64, mut each: impl FnMut(&Datagram<'_>)) -> PyResult<u64> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let mut n = 0;
        while n < most {
            let Some(datagram) = reader.capture.next_datagram()? else {
                self.wait.check()?;
                break;
            };
            each(&datagram);
            n += 1;
        }
        self.position.store(reader.capture.position(), Ordering::Relaxed);
        Ok(n)
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Reader> {
        // Without the GIL, for who has the lock may wait for the GIL.
        self.reader.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::cast_precision_loss, reason = "Python has times as floats")]
fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn address(py: Python<'_>, known: &mut HashMap<SocketAddr, Address>, address: SocketAddr) -> PyResult<Address> {
    if let Some(known) = known.get(&address) {
        return Ok(known.clone_ref(py));
    }
    if known.len() >= MOST_ADDRESSES {
        known.clear();
    }
    let new = (address.ip().to_string(), address.port()).into_pyobject(py)?.unbind();
    known.insert(address, new.clone_ref(py));
    Ok(new)
}
