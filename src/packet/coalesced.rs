//! Several SPEAD packets in one datagram of a capture.
//!
//! A capture on a machine that sends with segmentation offload, or receives with receive offload, has datagrams that
//! never were on the wire: with the payloads of several, one after another. Only the packets themselves tell where one
//! ends.

use super::spead::Packet;

/// Bytes of the SPEAD packet with which `data` begins, as its payload length says. `data` may be cut short.
pub(super) fn packet_bytes(data: &[u8]) -> Option<usize> {
    let packet = Packet::read(data, data.len()).ok()?;
    packet.start().checked_add(usize::try_from(packet.payload_bytes?).ok()?)
}

/// Whether a payload of `length` bytes, of which `data` was captured, is several SPEAD packets and nothing else.
pub(super) fn is_several(data: &[u8], length: usize) -> bool {
    let (mut at, mut packets) = (0_usize, 0);
    while at < length {
        let rest = data.get(at..).unwrap_or_default();
        match packet_bytes(rest) {
            Some(bytes) => at = at.saturating_add(bytes),
            // What the capture has cut off says nothing against it.
            None if data.len() < length && [0x53, 4].starts_with(&rest[..rest.len().min(2)]) => return packets > 0,
            None => return false,
        }
        packets += 1;
    }
    packets > 1 && at == length
}
