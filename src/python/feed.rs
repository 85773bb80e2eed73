//! `Feed`: a thread that takes packets to spead2, started and watched from Python.
#![expect(unsafe_code, reason = "descriptors come from Python as numbers, and std does not poll")]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::layout::Layout;
use crate::packet::capture::{Capture, CaptureError, Fault};
use crate::packet::feed::{self, Output};
use crate::packet::mend::Mender;
use crate::packet::sockets::Sockets;
use crate::packet::unused::Unused;

/// A descriptor of our own for what a descriptor of Python stands for.
fn duplicate(fd: RawFd) -> PyResult<OwnedFd> {
    // SAFETY: the caller has a Python socket open that this is the number of, and keeps it while it calls.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?)
}

/// Milliseconds between looks whether there is a signal.
const SIGNALS_MS: i32 = 50;

/// What ends the wait for the bytes of a pipe.
#[derive(Default)]
pub(super) struct Wait {
    is_over: AtomicBool,
    /// Whether whoever waits leaves signals alone: only a thread that Python has begun may hear them.
    is_deaf: AtomicBool,
    /// What a signal has raised.
    raised: Mutex<Option<PyErr>>,
}

impl Wait {
    /// Let the pipe end where it is.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// What a signal has raised meanwhile is an error.
    pub fn check(&self) -> PyResult<()> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    #[expect(clippy::redundant_closure_for_method_calls, reason = "the method alone is of one lifetime")]
    fn hear(&self) {
        if !self.is_deaf.load(Ordering::Relaxed) {
            if let Some(Err(error)) = Python::try_attach(|py| py.check_signals()) {
                *self.raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                self.end();
            }
        }
    }
}

/// A pipe, of which reading can be ended while nothing comes.
struct Pipe {
    file: File,
    wait: Arc<Wait>,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !is_written(&self.file) {
            self.wait.hear();
            if self.wait.is_over.load(Ordering::Relaxed) {
                return Ok(0);
            }
        }
        self.file.read(buffer)
    }
}

/// Open a capture. If it is a pipe, signals are heard while nothing comes.
pub(super) fn open_capture(py: Python<'_>, path: &Path, cut: bool) -> PyResult<(Capture, Arc<Wait>)> {
    let fail = |error| CaptureError { path: path.to_owned(), fault: Fault::Io(error) };
    // Without waiting for a writer, which nothing could interrupt.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fail)?;
    let is_pipe = file.metadata().map_err(fail)?.file_type().is_fifo();
    if is_pipe {
        while !py.detach(|| is_written(&file)) {
            py.check_signals()?;
        }
    }
    // SAFETY: the descriptor is open, and these calls have no pointers.
    let set = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_NONBLOCK)
    };
    if set < 0 {
        return Err(fail(io::Error::last_os_error()).into());
    }
    let wait = Arc::<Wait>::default();
    let capture = py.detach(|| {
        if is_pipe {
            Capture::new(path, Box::new(Pipe { file, wait: Arc::clone(&wait) }), cut)
        } else {
            Capture::of_file(path, file, cut)
        }
    });
    wait.check()?;
    Ok((capture?, wait))
}

/// Wait a moment for bytes in a pipe, or for its end. Returns whether there are any, or it has ended.
fn is_written(pipe: &File) -> bool {
    let mut look = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: it is one structure, which lives until the call returns.
    let ready = unsafe { libc::poll(&raw mut look, 1, SIGNALS_MS) };
    ready > 0
}

fn output(layout: Option<&Layout>, connection: RawFd, destinations: &[(IpAddr, u16)]) -> PyResult<Output> {
    Ok(Output {
        connection: TcpStream::from(duplicate(connection)?),
        mender: Mender::new(layout.map(|layout| &*layout.0)),
        destinations: destinations.iter().map(|&(host, port)| SocketAddr::new(host, port)).collect(),
    })
}

/// A capture that is open, to be fed to spead2 once.
#[pyclass(frozen, module = "speadrx._core")]
pub struct OpenCapture(Mutex<Option<(Capture, Arc<Wait>)>>);

#[pymethods]
impl OpenCapture {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "Python gives it away")]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self(Mutex::new(Some(open_capture(py, &path, false)?))))
    }
}

/// Hands over packets to a feed, which ends when nobody has this any more.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Handing(feed::Handing);

#[pymethods]
impl Handing {
    /// Hand over a packet, without waiting. Returns whether there was room for it.
    fn give(&self, packet: &[u8]) -> bool {
        self.0.give(packet)
    }

    /// Say why there are no more.
    fn fail(&self, error: String) {
        self.0.fail(error);
    }

    /// Whether no more are taken.
    #[getter]
    fn closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A thread that feeds spead2.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Feed {
    feed: feed::Feed,
    /// Of a capture.
    wait: Option<Arc<Wait>>,
}

impl From<feed::Feed> for Feed {
    fn from(feed: feed::Feed) -> Self {
        Self { feed, wait: None }
    }
}

impl Feed {
    fn end_wait(&self) {
        if let Some(wait) = &self.wait {
            wait.end();
        }
    }
}

#[pymethods]
impl Feed {
    /// Feed what is in a capture into connections, each with the destinations whose packets it takes.
    #[staticmethod]
    #[pyo3(signature = (layout, capture, outputs, pace=None))]
    #[expect(clippy::needless_pass_by_value, reason = "Python gives it away")]
    fn capture(
        layout: Option<&Bound<'_, Layout>>,
        capture: &Bound<'_, OpenCapture>,
        outputs: Vec<(RawFd, Vec<(IpAddr, u16)>)>,
        pace: Option<f64>,
    ) -> PyResult<Self> {
        let capture = capture.get().0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (capture, wait) = capture.ok_or_else(|| PyValueError::new_err("capture: is fed already"))?;
        wait.is_deaf.store(true, Ordering::Relaxed);
        let layout = layout.map(Bound::get);
        let outputs = outputs.iter().map(|(fd, all)| output(layout, *fd, all)).collect::<PyResult<Vec<_>>>()?;
        Ok(Self { feed: feed::Feed::capture(capture, outputs, pace)?, wait: Some(wait) })
    }

    /// Feed what comes to sockets into a connection.
    #[staticmethod]
    #[expect(clippy::needless_pass_by_value, reason = "Python gives it away")]
    fn sockets(layout: &Bound<'_, Layout>, connection: RawFd, sockets: Vec<RawFd>) -> PyResult<Self> {
        let output = output(Some(layout.get()), connection, &[])?;
        let sockets = sockets.iter().map(|&fd| duplicate(fd)).collect::<PyResult<Vec<_>>>()?;
        Ok(feed::Feed::sockets(Sockets::new(sockets), output)?.into())
    }

    /// Feed packets that are handed over into a connection.
    #[staticmethod]
    fn handed(layout: Option<&Bound<'_, Layout>>, connection: RawFd) -> PyResult<(Self, Handing)> {
        let (feed, handing) = feed::Feed::handed(output(layout.map(Bound::get), connection, &[])?)?;
        Ok((feed.into(), Handing(handing)))
    }

    fn end(&self) {
        self.feed.end();
        self.end_wait();
    }

    fn stop(&self, py: Python<'_>) {
        self.end_wait();
        py.detach(|| self.feed.stop());
    }

    /// Packets written, all together.
    #[getter]
    fn written(&self) -> u64 {
        self.feed.counts().iter().map(|counts| counts.written()).sum()
    }

    /// Packets that are not used, by reason.
    #[getter]
    fn unused(&self) -> HashMap<&'static str, u64> {
        let mut all = HashMap::new();
        for (why, packets) in self.feed.counts().iter().flat_map(|counts| counts.unused()).filter(|(_, n)| *n > 0) {
            *all.entry(why.name()).or_default() += packets;
        }
        all
    }

    /// Packets of heaps whose counter a heap of another sender has that lacks packets.
    #[getter]
    fn shared(&self) -> u64 {
        self.feed.counts().iter().map(|counts| counts.shared()).sum()
    }

    #[getter]
    fn taken(&self) -> u64 {
        self.feed.progress().taken.load(Ordering::Relaxed)
    }

    #[getter]
    fn elsewhere(&self) -> u64 {
        self.feed.progress().elsewhere.load(Ordering::Relaxed)
    }

    #[getter]
    fn position(&self) -> u64 {
        self.feed.progress().position.load(Ordering::Relaxed)
    }

    #[getter]
    fn size(&self) -> Option<u64> {
        self.feed.size()
    }

    /// Time of the first datagram, in seconds since 1970.
    #[getter]
    #[expect(clippy::cast_precision_loss, reason = "Python has times as floats")]
    fn began(&self) -> Option<f64> {
        let began = self.feed.progress().began.load(Ordering::Relaxed);
        (began > 0).then_some(began as f64 / 1e9)
    }

    #[getter]
    #[expect(clippy::cast_precision_loss, reason = "2^53 ns are 104 days")]
    fn seconds_behind(&self) -> f64 {
        self.feed.progress().behind.load(Ordering::Relaxed) as f64 / 1e9
    }

    #[getter]
    fn ended(&self) -> bool {
        self.feed.progress().ended.load(Ordering::Acquire)
    }

    /// Why the rest cannot be read.
    #[getter]
    fn error(&self) -> Option<String> {
        self.feed.progress().error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is in the capture and no datagram, by reason.
    #[getter]
    fn skipped(&self) -> HashMap<String, u64> {
        self.feed.progress().skipped.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    #[getter]
    fn truncated(&self) -> bool {
        self.feed.progress().truncated.load(Ordering::Relaxed)
    }
}

/// The reasons why packets are not used, in words.
#[pyfunction]
pub fn unused_reasons() -> HashMap<&'static str, &'static str> {
    Unused::ALL.into_iter().map(|why| (why.name(), why.words())).collect()
}
