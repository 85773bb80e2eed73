//! `Layout` and `Geometry`: declarations from Python, and what follows from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyString, PyTuple};
use pythonize::{Depythonizer, depythonize, pythonize};
use serde_path_to_error::{Path, Segment};

use super::chunk::{account_present, fill_missing, unpack};
use super::group::Group;
use super::placement::Placement;
use crate::layout as core;
use crate::spec::LayoutSpec;
use crate::unpack::Packing;

fn read_spec(spec: &Bound<'_, PyAny>) -> PyResult<LayoutSpec> {
    let read = LayoutSpec::read_telling(&mut Depythonizer::from_object(spec), |path, problem| {
        told(spec, path, &problem).unwrap_or(problem)
    });
    Ok(read?)
}

/// How errors of conversions from Python begin and end, which tell no value, and what was wanted.
const WANTED: [(&str, &str, &str); 5] = [
    ("unexpected type", "'Mapping'", "a table"),
    ("unexpected type", "'Sequence'", "a list"),
    ("unexpected type", "'str'", "text"),
    ("unsupported type", "", "another kind of value"),
    ("expected either a str or dict", "", "a word"),
];

/// What is wrong with a value, with the value, if its type or itself is.
fn told(spec: &Bound<'_, PyAny>, path: &Path, problem: &str) -> Option<String> {
    let known = WANTED.iter().find(|(begin, end, _)| problem.starts_with(begin) && problem.ends_with(end));
    let mut wanted = match known {
        Some((_, _, wanted)) => wanted,
        None if problem.starts_with("unknown field") => return None,
        None => problem.split_once(", expected ")?.1,
    };
    let mut value = spec.clone();
    for segment in path {
        value = match segment {
            Segment::Map { key } => value.get_item(key).ok()?,
            // Python takes a text for a list of its letters.
            Segment::Seq { .. } if value.is_instance_of::<PyString>() => {
                wanted = "a list";
                break;
            }
            Segment::Seq { index } => value.get_item(index).ok()?,
            _ => return None,
        };
    }
    Some(format!("given {}, but wanted {wanted}", value.repr().ok()?))
}

/// Check that a dict has the fields of a declaration, of the right types, and return those that are set.
#[pyfunction]
pub fn spec_fields(spec: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    Ok(pythonize(spec.py(), &read_spec(spec)?)?.unbind())
}

/// Write a declaration as TOML.
#[pyfunction]
pub fn spec_to_toml(spec: &Bound<'_, PyAny>) -> PyResult<String> {
    Ok(read_spec(spec)?.write_toml()?)
}

/// A proven layout.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Layout(pub(super) Arc<core::Layout>);

#[pymethods]
impl Layout {
    #[new]
    fn new(spec: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self(Arc::new(core::Layout::new(read_spec(spec)?)?)))
    }

    #[getter]
    fn items(&self) -> &[u64] {
        self.0.items()
    }

    /// Whether packets from sockets are mended on their way into spead2.
    #[getter]
    fn mends_packets(&self) -> bool {
        self.0.mends_packets()
    }

    #[getter]
    fn reject_names(&self) -> &[String] {
        self.0.reasons()
    }

    #[getter]
    fn user_data_fields(&self) -> Vec<&str> {
        self.0.required_user_data().collect()
    }

    #[getter]
    fn optional_user_data_fields(&self) -> Vec<&str> {
        self.0.optional_user_data().collect()
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.dimensions.iter().map(|dimension| dimension.size))
    }

    #[getter]
    fn batch_heaps(&self) -> u64 {
        self.0.chunk_heaps() / self.0.spec().time.batches
    }

    #[getter]
    fn chunk_heaps(&self) -> u64 {
        self.0.chunk_heaps()
    }

    #[getter]
    fn chunk_bytes(&self) -> Option<u64> {
        self.0.chunk_bytes()
    }

    #[getter]
    fn chunk_timestamp_step(&self) -> u64 {
        self.0.chunk_step()
    }

    #[getter]
    fn extra_bytes(&self) -> usize {
        self.0.extra_bytes()
    }

    #[getter]
    fn n_sources(&self) -> u64 {
        self.0.n_sources()
    }

    /// Fix what depends on a stream's user data.
    fn geometry(&self, user_data: &Bound<'_, PyDict>) -> PyResult<Geometry> {
        let user_data: BTreeMap<String, u64> = depythonize(user_data)?;
        Ok(Geometry(self.0.geometry(&user_data)?))
    }

    /// What streams share whose windows have `window` chunks each, and `reach` chunks all together.
    #[pyo3(signature = (*, window, reach, max_jump=None, resync=false))]
    fn group(&self, window: u64, reach: u64, max_jump: Option<u64>, resync: bool) -> PyResult<Group> {
        Group::new(&self.0, window, reach, max_jump, resync)
    }

    /// Count the present heaps of each source (native 64-bit integers as bytes), and find the batches that have any: the
    /// first, and the one after the last.
    fn account_present<'py>(
        &self,
        py: Python<'py>,
        present: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyBytes>, usize, usize)> {
        account_present(py, &self.0, &PyUntypedBuffer::get(present)?)
    }
}

/// A layout with the strides and constant indices of one stream.
#[pyclass(frozen, module = "speadrx._core")]
pub struct Geometry(core::Geometry);

#[pymethods]
impl Geometry {
    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.0.strides())
    }

    #[getter]
    fn span_bytes(&self) -> u64 {
        self.0.span_bytes()
    }

    /// Overwrite missing heaps with a repeated pattern, and their side items with 0, with the GIL released.
    #[pyo3(signature = (data, present, fill, extra=None))]
    fn fill_missing(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        present: &Bound<'_, PyAny>,
        fill: &[u8],
        extra: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<u64> {
        let (data, present) = (PyUntypedBuffer::get(data)?, PyUntypedBuffer::get(present)?);
        let extra = extra.map(PyUntypedBuffer::get).transpose()?;
        fill_missing(py, &self.0, &data, &present, fill, extra.as_ref())
    }

    /// Turn packed samples into integers, without gaps in the order of the axes, with the GIL released.
    ///
    /// `packing` is the bits of a sample, whether it is signed, and whether the first one has the lowest bits.
    #[pyo3(signature = (data, out, *, packing, samples))]
    fn unpack(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        out: &Bound<'_, PyAny>,
        packing: (u32, bool, bool),
        samples: usize,
    ) -> PyResult<()> {
        let (bits, signed, little) = packing;
        let packing = Packing::new(bits, signed, little)
            .ok_or_else(|| PyValueError::new_err(format!("packing: {bits} bits, but wanted 1 to 16")))?;
        unpack(py, &self.0, &PyUntypedBuffer::get(data)?, &PyUntypedBuffer::get(out)?, packing, samples)
    }

    /// Prepare the callback of one stream; without a group it is on its own.
    #[pyo3(signature = (*, window, stats=None, group=None, cookie=None))]
    fn placement(
        &self,
        window: u64,
        stats: Option<(usize, usize)>,
        group: Option<&Bound<'_, Group>>,
        cookie: Option<(i64, i64, i64)>,
    ) -> PyResult<Placement> {
        if let Some(group) = group {
            return Placement::new(&self.0, window, stats, group.get(), cookie);
        }
        let own = Group::new(self.0.layout(), window, window, None, false)?;
        Placement::new(&self.0, window, stats, &own, cookie)
    }
}
