//! `Group`: what streams that belong together agree on about time, for Python.

use std::sync::Arc as StdArc;

use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

use crate::epochs::Cause;
use crate::group::Group as CoreGroup;
use crate::layout::Layout;
use crate::sync::Arc;
use crate::timeline::TimeRules;

/// What the streams of a group share.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Group(pub Arc<CoreGroup>);

impl Group {
    pub fn new(
        layout: &StdArc<Layout>,
        window: u64,
        reach: u64,
        max_jump: Option<u64>,
        resync: bool,
    ) -> PyResult<Self> {
        Ok(Self(CoreGroup::new(TimeRules::new(layout, window, reach, max_jump, resync)?)))
    }
}

#[pymethods]
impl Group {
    /// Where a chunk is in time: the number of chunks from time 0 to it, the index of its epoch, whether it is a control
    /// heap's, the timestamp of its first batch; and UTC at tick 0, in seconds since 1970, if heaps have told it.
    fn locate(&self, chunk_id: u64) -> PyResult<(u64, u64, bool, u64, Option<u64>)> {
        let (epochs, step) = (self.0.epochs(), self.0.chunk_step());
        let Some((index, epoch)) = epochs.of_chunk(chunk_id) else {
            if epochs.is_empty() {
                return Ok((chunk_id, 0, false, chunk_id.wrapping_mul(step), None)); // it was not received
            }
            return Err(PyValueError::new_err(format!("chunk_id: {chunk_id} is older than the first heap")));
        };
        let next = epochs.get(index + 1).filter(|next| next.cause == Cause::Flush);
        let is_control = next.is_some_and(|next| next.first == chunk_id + 1);
        let number = epoch.true_chunk(chunk_id);
        let timestamp = number.wrapping_mul(step).wrapping_add(epoch.origin);
        Ok((number, index, is_control, timestamp, epochs.utc(index)))
    }

    /// How many epochs there are.
    fn __len__(&self) -> usize {
        self.0.epochs().len() as usize
    }

    /// ID of the first chunk of an epoch, its timestamp, and why the epoch began.
    fn __getitem__(&self, index: u64) -> PyResult<(u64, u64, &'static str)> {
        let epoch = self.0.epochs().get(index).ok_or_else(|| PyIndexError::new_err("epoch index out of range"))?;
        let cause = match epoch.cause {
            Cause::Start => "start",
            Cause::Restart => "restart",
            Cause::Flush => "flush",
        };
        let ticks = epoch.true_chunk(epoch.first).wrapping_mul(self.0.chunk_step());
        Ok((epoch.first, ticks.wrapping_add(epoch.origin), cause))
    }

    /// How often time would have begun again at an earlier time, but must not.
    #[getter]
    fn refusals(&self) -> u64 {
        self.0.refusals()
    }

    /// Ticks by which the timestamps of each source differ from the steps of time: those that are known.
    fn phases(&self) -> Vec<Option<i64>> {
        self.0.phases()
    }

    /// Ticks in a second by the clock, once that is known.
    #[getter]
    fn measured_rate(&self) -> Option<f64> {
        self.0.measured_rate()
    }

    /// Heaps come from a network, as time passes.
    fn set_live(&self) {
        self.0.set_live();
    }

    /// Begin an epoch after all chunks in windows; False if there are none.
    fn flush(&self) -> bool {
        self.0.flush()
    }

    /// How many control heaps streams have done with.
    #[getter]
    fn done(&self) -> u64 {
        self.0.done()
    }
}
