//! Packets in front of spead2: read, understood, mended, and handed on.

pub mod spead;
