//! Surveys for Python: packets gathered without the GIL, and what was gathered as plain values.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyTuple};

use super::capture::Capture;
use crate::packet::addresses::{Address, Host, Traffic};
use crate::packet::survey;

type Located = (String, u16);
/// Packets, heaps, bytes, and packets that do not decode.
type Counted = (u64, u64, u64, u64);
/// Destination, address bits, keys, whether whole; then of each heap values, bytes, number and sender, as 64-bit integers.
type Row<'py> = (
    u32,
    u32,
    Bound<'py, PyTuple>,
    bool,
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
    Bound<'py, PyBytes>,
);

fn located(address: &Address) -> Located {
    let host = match &address.host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.to_string(),
    };
    (host, address.port)
}

fn with_counts<'a>(traffic: impl Iterator<Item = (&'a Address, Traffic)>) -> Vec<(Located, Counted)> {
    let counted = |traffic: Traffic| (traffic.packets, traffic.heaps, traffic.bytes, traffic.undecodable);
    traffic.map(|(address, traffic)| (located(address), counted(traffic))).collect()
}

/// What packets carry, without a layout.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Survey(Mutex<survey::Survey>);

#[pymethods]
impl Survey {
    #[new]
    fn new(most_values: usize) -> Self {
        Self(Mutex::new(survey::Survey::new(most_values)))
    }

    /// Add a packet.
    fn add(
        &self,
        py: Python<'_>,
        time: f64,
        sender: (&str, u16),
        destination: (&str, u16),
        data: &[u8],
        length: usize,
    ) {
        let [sender, destination] = [sender, destination].map(|(host, port)| Address::new(host, port));
        self.lock(py).add_packet(time, &sender, &destination, data, length);
    }

    /// Add the next datagrams of a capture, at most so many. Returns how many there were.
    fn read(&self, py: Python<'_>, capture: &Capture, most: u64) -> PyResult<u64> {
        py.detach(|| {
            let mut survey = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            capture.for_each(most, |datagram| survey.add_datagram(datagram))
        })
    }

    /// All plain counts, by their names.
    #[getter]
    fn counts(&self, py: Python<'_>) -> HashMap<&'static str, u64> {
        let counts = self.lock(py).counts();
        HashMap::from([
            ("packets", counts.packets),
            ("bytes", counts.bytes),
            ("heaps", counts.heaps),
            ("unsized", counts.unsized_heaps),
            ("empty", counts.empty),
            ("stops", counts.stops),
            ("descriptors", counts.descriptors),
            ("duplicate_packets", counts.duplicate_packets),
            ("not_repeated", counts.not_repeated),
            ("late_items", counts.late_items),
            ("trailing", counts.trailing),
            ("unkept", counts.unkept),
            ("incomplete", counts.incomplete),
        ])
    }

    /// When the first and the last packet came, in seconds.
    #[getter]
    fn times(&self, py: Python<'_>) -> Option<(f64, f64)> {
        self.lock(py).times()
    }

    #[getter]
    fn undecodable(&self, py: Python<'_>) -> HashMap<String, u64> {
        self.lock(py).undecodable().iter().map(|(fault, &n)| (fault.to_string(), n)).collect()
    }

    #[getter]
    fn lacking(&self, py: Python<'_>) -> HashMap<u64, u64> {
        self.lock(py).lacking()
    }

    #[getter]
    fn packets_per_heap(&self, py: Python<'_>) -> HashMap<u64, u64> {
        self.lock(py).packets_per_heap().iter().map(|(&packets, &heaps)| (packets, heaps)).collect()
    }

    #[getter]
    fn senders(&self, py: Python<'_>) -> Vec<(Located, Counted)> {
        with_counts(self.lock(py).addresses().senders())
    }

    #[getter]
    fn destinations(&self, py: Python<'_>) -> Vec<(Located, Counted)> {
        with_counts(self.lock(py).addresses().destinations())
    }

    /// All addresses, by their numbers.
    #[getter]
    fn addresses(&self, py: Python<'_>) -> Vec<Located> {
        self.lock(py).addresses().list().iter().map(located).collect()
    }

    #[getter]
    fn kinds<'py>(&self, py: Python<'py>) -> PyResult<Vec<Row<'py>>> {
        let survey = self.lock(py);
        let row = |kind: &survey::Kind| {
            let keys = PyTuple::new(py, kind.keys.iter())?;
            let [values, bytes, numbers, senders] =
                [&kind.values, &kind.bytes, &kind.numbers, &kind.senders].map(|numbers| integers(py, numbers));
            let row = (kind.destination, kind.address_bits, keys, kind.whole, values?, bytes?, numbers?, senders?);
            Ok(row)
        };
        survey.kinds().iter().map(row).collect()
    }

    #[getter]
    fn descriptor_packets<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.lock(py).descriptor_packets().iter().map(|packet| PyBytes::new(py, packet)).collect()
    }
}

impl Survey {
    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, survey::Survey> {
        self.0.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Integers in the order of bytes of this machine.
fn integers<'py>(py: Python<'py>, numbers: &[u64]) -> PyResult<Bound<'py, PyBytes>> {
    PyBytes::new_with(py, size_of_val(numbers), |bytes| {
        for (bytes, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            bytes.copy_from_slice(&number.to_ne_bytes());
        }
        Ok(())
    })
}
