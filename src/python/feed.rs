//! `Feed`: a thread that takes packets to spead2, started and watched from Python.
#![expect(unsafe_code, reason = "descriptors come from Python as numbers")]

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::layout::Layout;
use crate::packet::capture::Capture;
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

fn output(layout: Option<&Layout>, connection: RawFd, destinations: &[(IpAddr, u16)]) -> PyResult<Output> {
    Ok(Output {
        connection: TcpStream::from(duplicate(connection)?),
        mender: Mender::new(layout.map(|layout| &*layout.0)),
        destinations: destinations.iter().map(|&(host, port)| SocketAddr::new(host, port)).collect(),
    })
}

/// A capture that is open, to be fed to spead2 once.
#[pyclass(frozen, module = "speadrx._core")]
pub struct OpenCapture(Mutex<Option<Capture>>);

#[pymethods]
impl OpenCapture {
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "Python gives it away")]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        Ok(Self(Mutex::new(Some(py.detach(|| Capture::open(&path, false))?))))
    }
}

/// A thread that feeds spead2.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Feed(feed::Feed);

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
        let capture = capture.ok_or_else(|| PyValueError::new_err("capture: is fed already"))?;
        let layout = layout.map(Bound::get);
        let outputs = outputs.iter().map(|(fd, all)| output(layout, *fd, all)).collect::<PyResult<Vec<_>>>()?;
        Ok(Self(feed::Feed::capture(capture, outputs, pace)?))
    }

    /// Feed what comes to sockets into a connection.
    #[staticmethod]
    #[expect(clippy::needless_pass_by_value, reason = "Python gives it away")]
    fn sockets(layout: &Bound<'_, Layout>, connection: RawFd, sockets: Vec<RawFd>) -> PyResult<Self> {
        let output = output(Some(layout.get()), connection, &[])?;
        let sockets = sockets.iter().map(|&fd| duplicate(fd)).collect::<PyResult<Vec<_>>>()?;
        Ok(Self(feed::Feed::sockets(Sockets::new(sockets), output)?))
    }

    fn end(&self) {
        self.0.end();
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }

    /// Packets written, all together.
    #[getter]
    fn written(&self) -> u64 {
        self.0.counts().iter().map(|counts| counts.written()).sum()
    }

    /// Packets that are not used, by reason.
    #[getter]
    fn unused(&self) -> HashMap<&'static str, u64> {
        let mut all = HashMap::new();
        for (why, packets) in self.0.counts().iter().flat_map(|counts| counts.unused()).filter(|(_, n)| *n > 0) {
            *all.entry(why.name()).or_default() += packets;
        }
        all
    }

    #[getter]
    fn taken(&self) -> u64 {
        self.0.progress().taken.load(Ordering::Relaxed)
    }

    #[getter]
    fn elsewhere(&self) -> u64 {
        self.0.progress().elsewhere.load(Ordering::Relaxed)
    }

    #[getter]
    fn position(&self) -> u64 {
        self.0.progress().position.load(Ordering::Relaxed)
    }

    #[getter]
    fn size(&self) -> Option<u64> {
        self.0.size()
    }

    /// Time of the first datagram, in seconds since 1970.
    #[getter]
    #[expect(clippy::cast_precision_loss, reason = "Python has times as floats")]
    fn began(&self) -> Option<f64> {
        let began = self.0.progress().began.load(Ordering::Relaxed);
        (began > 0).then_some(began as f64 / 1e9)
    }

    #[getter]
    #[expect(clippy::cast_precision_loss, reason = "2^53 ns are 104 days")]
    fn seconds_behind(&self) -> f64 {
        self.0.progress().behind.load(Ordering::Relaxed) as f64 / 1e9
    }

    #[getter]
    fn ended(&self) -> bool {
        self.0.progress().ended.load(Ordering::Acquire)
    }

    /// Why the rest cannot be read.
    #[getter]
    fn error(&self) -> Option<String> {
        self.0.progress().error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is in the capture and no datagram, by reason.
    #[getter]
    fn skipped(&self) -> HashMap<String, u64> {
        self.0.progress().skipped.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    #[getter]
    fn truncated(&self) -> bool {
        self.0.progress().truncated.load(Ordering::Relaxed)
    }
}

/// The reasons why packets are not used, in words.
#[pyfunction]
pub fn unused_reasons() -> HashMap<&'static str, &'static str> {
    Unused::ALL.into_iter().map(|why| (why.name(), why.words())).collect()
}
