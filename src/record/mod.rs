//! Recordings: files written beside reception, without Python.

pub mod file;
pub mod writer;
