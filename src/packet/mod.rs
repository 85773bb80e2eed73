//! Packets in front of spead2: read, understood, mended, and handed on.

pub mod addresses;
pub mod capture;
mod coalesced;
mod fragments;
mod frame;
mod records;
mod source;
pub mod spead;
pub mod survey;
mod unfinished;
