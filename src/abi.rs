//! The C interface of spead2's chunk placement callback.

use std::mem::{offset_of, size_of};

/// Mirror of spead2's `chunk_place_data` (`spead2/recv_chunk_stream.h`), as of spead2 4.5.
///
/// spead2 promises that fields are only ever appended. A newer spead2 therefore passes a larger size than ours,
/// and a smaller one means a spead2 too old to have all the fields: [`ChunkPlaceData::SIZE`] is checked at each
/// call. Fields of this struct must never be reordered or removed.
#[repr(C)]
#[derive(Debug)]
pub struct ChunkPlaceData {
    /// The packet that started the heap.
    pub packet: *const u8,
    /// Bytes at `packet`.
    pub packet_size: usize,
    /// Values of the requested items, in the order requested; −1 where the packet lacks one.
    pub items: *const i64,
    /// Out: the chunk; −1 (as it comes) rejects the heap.
    pub chunk_id: i64,
    /// Out: index of the heap in the chunk's `present`.
    pub heap_index: usize,
    /// Out: byte offset of the heap in the chunk's data.
    pub heap_offset: usize,
    /// Statistics of the current batch of packets; valid inside the call only.
    pub batch_stats: *mut u64,
    /// Out: bytes to copy to the chunk's `extra`; null if the stream has none.
    pub extra: *mut u8,
    /// Out: where in the chunk's `extra` to copy to.
    pub extra_offset: usize,
    /// Out: how many bytes to copy.
    pub extra_size: usize,
}

impl ChunkPlaceData {
    /// Size of the fields that we use.
    pub const SIZE: usize = size_of::<Self>();
}

/// The callback, with the context pointer that spead2 takes from the capsule.
pub type PlaceFn = unsafe extern "C" fn(*mut ChunkPlaceData, usize, *mut std::ffi::c_void);

/// Name that spead2 requires of a capsule whose function takes a context pointer.
pub const CAPSULE_NAME: &std::ffi::CStr = c"void (void *, size_t, void *)";

const _: () = {
    assert!(size_of::<usize>() == 8, "only 64-bit platforms are supported");
    assert!(ChunkPlaceData::SIZE == 80);
    assert!(offset_of!(ChunkPlaceData, packet) == 0);
    assert!(offset_of!(ChunkPlaceData, packet_size) == 8);
    assert!(offset_of!(ChunkPlaceData, items) == 16);
    assert!(offset_of!(ChunkPlaceData, chunk_id) == 24);
    assert!(offset_of!(ChunkPlaceData, heap_index) == 32);
    assert!(offset_of!(ChunkPlaceData, heap_offset) == 40);
    assert!(offset_of!(ChunkPlaceData, batch_stats) == 48);
    assert!(offset_of!(ChunkPlaceData, extra) == 56);
    assert!(offset_of!(ChunkPlaceData, extra_offset) == 64);
    assert!(offset_of!(ChunkPlaceData, extra_size) == 72);
};
