//! A call of the callback, as spead2 makes it.

use std::ptr;

use speadrx::abi::ChunkPlaceData;
use speadrx::callback::Context;

/// Call it for a heap with all items of the layout, and return what it has written. It is told that its struct has `size`
/// bytes.
pub fn call(context: &Context, row: &[i64], size: usize, extra: *mut u8) -> ChunkPlaceData {
    let mut data = ChunkPlaceData {
        packet: ptr::null(),
        packet_size: 0,
        items: row.as_ptr(),
        chunk_id: -1,
        heap_index: 0,
        heap_offset: 0,
        batch_stats: ptr::null_mut(),
        extra,
        extra_offset: 0,
        extra_size: 0,
    };
    // SAFETY: the function belongs to the context, and the row has what is read of it.
    unsafe { context.function()(&raw mut data, size, context.argument()) };
    data
}
