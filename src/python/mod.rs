//! The Python module `speadrx._core`: glue between the core and the package, nothing else.

mod calls;
mod capture;
mod chunk;
mod feed;
mod group;
mod layout;
mod ledger;
mod outgoing;
mod placement;
mod survey;
mod writer;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::error::LayoutError as CoreError;

pyo3::create_exception!(speadrx, LayoutError, PyValueError, "A layout, or what a stream makes of it, that cannot be.");

impl From<CoreError> for PyErr {
    fn from(error: CoreError) -> Self {
        LayoutError::new_err(error.to_string())
    }
}

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::LayoutError;
    #[pymodule_export]
    use super::calls::{place_heaps, time_heaps};
    #[pymodule_export]
    use super::capture::Capture;
    #[pymodule_export]
    use super::feed::{Feed, Handing, OpenCapture, unused_reasons};
    #[pymodule_export]
    use super::group::Group;
    #[pymodule_export]
    use super::layout::{Geometry, Layout, spec_fields, spec_to_toml};
    #[pymodule_export]
    use super::ledger::{Ledger, LedgerSnapshot, LedgerSum};
    #[pymodule_export]
    use super::outgoing::{frame_packets, send_packets};
    #[pymodule_export]
    use super::placement::{Placement, foreign_capsule};
    #[pymodule_export]
    use super::survey::Survey;
    #[pymodule_export]
    use super::writer::{Files, Memory, Writer, WriterCounts};

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name that Python expects")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
