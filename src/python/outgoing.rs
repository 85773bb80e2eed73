//! Packets on their way out, in buffers of Python.
#![expect(unsafe_code, reason = "a Python buffer becomes a slice here")]
#![expect(clippy::needless_pass_by_value, reason = "what Python gives is taken out of its objects")]

use std::os::fd::{BorrowedFd, RawFd};
use std::slice;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::packet::outgoing::{self, Packets, Place, Prefix};

/// A buffer as a slice.
///
/// # Safety
///
/// The buffer stays exported while the slice is used, nobody writes to it meanwhile, and `T` has no invalid values.
unsafe fn elements<'a, T>(name: &str, buffer: &'a PyUntypedBuffer) -> PyResult<&'a [T]> {
    let start = buffer.buf_ptr().cast::<T>();
    if !buffer.is_c_contiguous() || buffer.len_bytes() % size_of::<T>() != 0 || !start.is_aligned() {
        return Err(PyValueError::new_err(format!("{name}: is not a contiguous array of its type")));
    }
    if buffer.len_bytes() == 0 {
        return Ok(&[]);
    }
    // SAFETY: the buffer is contiguous and aligned, and has so many elements; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(start, buffer.len_bytes() / size_of::<T>()) })
}

/// Headers, payload and places, as Python has them.
type Given<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The buffers of packets.
struct Buffers([PyUntypedBuffer; 3]);

impl Buffers {
    fn get((headers, payload, places): &Given<'_>) -> PyResult<Self> {
        Ok(Self([PyUntypedBuffer::get(headers)?, PyUntypedBuffer::get(payload)?, PyUntypedBuffer::get(places)?]))
    }

    fn packets(&self) -> PyResult<Packets<'_>> {
        let [headers, payload, places] = &self.0;
        // SAFETY: numbers have no invalid values. The buffers stay exported while `self` lives, and the simulator, whose
        // they are, does not write to them meanwhile.
        unsafe {
            Ok(Packets {
                headers: elements("headers", headers)?,
                payload: elements("payload", payload)?,
                places: elements::<Place>("places", places)?,
            })
        }
    }
}

/// Send packets; return the number of the error (0 if all were sent), and whether they may go on to be sent in segments.
#[pyfunction]
pub fn send_packets(
    py: Python<'_>,
    socket: RawFd,
    addresses: Vec<Vec<u8>>,
    packets: Given<'_>,
    mut segment: bool,
) -> PyResult<(i32, bool)> {
    let buffers = Buffers::get(&packets)?;
    let packets = buffers.packets()?;
    if socket < 0 || addresses.is_empty() {
        return Err(PyValueError::new_err("socket: is closed, or has no addresses"));
    }
    // SAFETY: it is not -1, and the caller's socket is open during the call.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    let addresses: Vec<&[u8]> = addresses.iter().map(Vec::as_slice).collect();
    let sent = py.detach(|| outgoing::send(socket, &addresses, packets, &mut segment));
    Ok((sent.err().and_then(|error| error.raw_os_error()).unwrap_or(0), segment))
}

/// Make records of a capture file of packets.
#[pyfunction]
pub fn frame_packets<'py>(
    py: Python<'py>,
    prefixes: Vec<Prefix>,
    packets: Given<'py>,
    stamps: &Bound<'py, PyAny>,
    number: u16,
) -> PyResult<Bound<'py, PyBytes>> {
    let buffers = Buffers::get(&packets)?;
    let packets = buffers.packets()?;
    let stamps = PyUntypedBuffer::get(stamps)?;
    // SAFETY: as above.
    let stamps = unsafe { elements::<u64>("stamps", &stamps)? };
    let framed = py.detach(|| outgoing::frames(packets, &prefixes, stamps, number));
    let framed = framed
        .map_err(|bytes| PyValueError::new_err(format!("packet: its {bytes} bytes do not fit in a UDP datagram")))?;
    Ok(PyBytes::new(py, &framed))
}
