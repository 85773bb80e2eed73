//! `Ledger` and `LedgerSum`: snapshots of streams' counters for Python.

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::group::Group;
use crate::examples::CAUSES;
use crate::group::Group as CoreGroup;
use crate::ledger::{Ledger as CoreLedger, Snapshot};
use crate::sync::Arc;

/// The ledger of one stream, which outlives it.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Ledger(pub CoreLedger);

#[pymethods]
impl Ledger {
    /// Read all counters, without blocking anybody.
    fn snapshot(&self) -> LedgerSnapshot {
        LedgerSnapshot(self.0.snapshot())
    }

    /// Rejected heaps by cause: its name if it is more exact than a reason, the index of the reason, how many heaps, and an
    /// example: bytes of its packet, and ID, value and whether it is immediate of each item.
    fn rejections<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let reasons = (0..).map(|reason| (None, reason));
        let causes = CAUSES.iter().map(|&(name, reason)| (Some(name), reason)).chain(reasons);
        let rejections = causes.zip(self.0.examples().read()).filter(|(_, (heaps, _))| *heaps != 0);
        rejections
            .map(|((name, reason), (heaps, example))| {
                let example = example.map(|example| {
                    let items = example.pointers.iter().map(|item| (item.id, item.value, item.immediate));
                    (example.packet_bytes, items.collect::<Vec<_>>())
                });
                (name, reason, heaps, example).into_bound_py_any(py)
            })
            .collect()
    }
}

/// The ledgers of streams that have the same layout and window, and the groups of these streams: read all in one call,
/// because there may be a thousand.
#[pyclass(frozen, module = "speadrx._core")]
pub struct LedgerSum {
    first: CoreLedger,
    others: Vec<CoreLedger>,
    groups: Vec<Arc<CoreGroup>>,
}

#[pymethods]
impl LedgerSum {
    #[new]
    fn new(ledgers: Vec<PyRef<'_, Ledger>>, groups: Vec<PyRef<'_, Group>>) -> PyResult<Self> {
        let mut ledgers = ledgers.into_iter().map(|ledger| ledger.0.clone());
        let Some(first) = ledgers.next() else {
            return Err(PyValueError::new_err("ledgers: is empty, but a sum needs at least one"));
        };
        let groups = groups.into_iter().map(|group| Arc::clone(&group.0)).collect();
        Ok(Self { first, others: ledgers.collect(), groups })
    }

    /// Read and add up all counters, without blocking anybody. Beside them, the indices of sources that disagree with the
    /// majority of a group about the time: once for each such group.
    fn snapshot(&self) -> (LedgerSnapshot, Vec<u64>) {
        let mut sum = self.first.snapshot();
        self.others.iter().for_each(|ledger| sum.add(ledger));
        (LedgerSnapshot(sum), self.groups.iter().flat_map(|group| group.estranged().sources()).collect())
    }
}

/// What a ledger held: arrays of native 64-bit integers as bytes.
#[pyclass(frozen, module = "speadrx._core")]
pub struct LedgerSnapshot(Snapshot);

/// An array as bytes.
pub(super) fn bytes<'py, T: Copy, const N: usize>(
    py: Python<'py>,
    values: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
) -> Bound<'py, PyBytes> {
    PyBytes::new(py, values.iter().map(|&value| to_bytes(value)).collect::<Vec<_>>().as_flattened())
}

#[pymethods]
impl LedgerSnapshot {
    #[getter]
    fn placed<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.placed, u64::to_ne_bytes)
    }

    #[getter]
    fn duplicates<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.duplicates, u64::to_ne_bytes)
    }

    #[getter]
    fn too_old<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.too_old, u64::to_ne_bytes)
    }

    #[getter]
    fn after_end(&self) -> u64 {
        self.0.after_end
    }

    #[getter]
    fn newest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.newest, i64::to_ne_bytes)
    }

    #[getter]
    fn newest_epoch<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.newest_epoch, u64::to_ne_bytes)
    }

    #[getter]
    fn rejected_by_source<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.rejected.concat(), u64::to_ne_bytes)
    }

    #[getter]
    fn late_batches<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.late_batches, u64::to_ne_bytes)
    }

    #[getter]
    fn late_chunks<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        bytes(py, &self.0.late_chunks, u64::to_ne_bytes)
    }
}
