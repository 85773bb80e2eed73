//! Packets in front of spead2: read, understood, mended, and handed on.

pub mod addresses;
pub mod capture;
mod coalesced;
pub(crate) mod declared;
pub mod feed;
mod fragments;
mod frame;
mod heaps;
pub mod mend;
pub mod outgoing;
mod plan;
mod records;
pub mod sockets;
mod source;
pub mod spead;
pub mod survey;
mod unfinished;
pub mod unused;
