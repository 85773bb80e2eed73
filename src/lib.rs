//! Placement of SPEAD heaps into chunks, and the accounting of every heap, for receivers built on
//! [spead2](https://spead2.readthedocs.io).
//!
//! The way of a heap: spead2 extracts the layout's items and calls [`callback`]; [`place`] computes the slot;
//! a heap outside the current [`window`] goes through the cold path into the [`timeline`] of its [`group`]; [`ledger`]
//! counts it.

#![deny(unsafe_code)]

pub mod abi;
pub mod axis;
pub mod callback;
mod check;
pub mod chunk;
mod clock;
pub mod copies;
pub mod divisor;
pub mod epochs;
pub mod error;
pub mod estranged;
pub mod examples;
pub mod filled;
pub mod group;
pub mod layout;
pub mod ledger;
pub mod mark;
mod members;
mod pace;
pub mod packet;
pub mod place;
#[cfg(feature = "python")]
mod python;
pub mod reason;
pub mod record;
pub mod segment;
pub mod sending;
pub mod spec;
mod stamps;
pub mod sync;
pub mod timeline;
pub mod unpack;
mod voices;
pub mod window;
