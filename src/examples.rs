//! Why heaps are rejected, more exactly than the reasons say, and the first packet of each kind as an example.

#![deny(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used)]

use std::sync::{Arc, OnceLock};

use crate::layout::{FIRST_AXIS, Layout};
use crate::packet::spead::{Packet, Pointer};
use crate::reason;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Most items of an example. Those of a heap are fewer in all known streams.
const MOST_POINTERS: usize = 64;

/// Names of the causes that are more exact than a reason, and the reasons that they are counted as.
pub const CAUSES: [(&str, usize); 4] = [
    ("wrong_length", reason::METADATA),
    ("addressed_item", reason::METADATA),
    ("items_not_repeated", reason::METADATA),
    ("wide_timestamp", reason::BAD_TIMESTAMP),
];
const WRONG_LENGTH: usize = 0;
const ADDRESSED: usize = 1;
const NOT_REPEATED: usize = 2;
const WIDE: usize = 3;

/// A packet of a rejected heap, without its payload.
#[derive(Clone, Debug)]
pub struct Example {
    /// Bytes of the packet.
    pub packet_bytes: usize,
    /// Its items, in their order.
    pub pointers: Vec<Pointer>,
}

#[derive(Debug, Default)]
struct Slot {
    heaps: AtomicU64,
    first: OnceLock<Example>,
}

/// Rejected heaps by cause: [`CAUSES`], and then the reasons, for heaps with none of those causes.
///
/// Only the thread that runs the stream's callback writes. Each example is set once, so who reads never waits.
#[derive(Clone, Debug)]
pub struct Examples(Arc<[Slot]>);

impl Examples {
    /// For a layout with so many reasons.
    #[must_use]
    pub fn new(n_reasons: usize) -> Self {
        Self((0..n_reasons.saturating_add(CAUSES.len())).map(|_| Slot::default()).collect())
    }

    /// Count a heap that was rejected for a reason, given the items that the layout asks for, and the heap's packet.
    ///
    /// The first packet of each cause is kept.
    pub fn note(&self, layout: &Layout, reason: usize, items: &[i64], packet: &[u8]) {
        let packet = Packet::read(packet, packet.len()).ok();
        let cause = cause(layout, reason, items, packet.as_ref());
        let Some(slot) = self.0.get(cause.unwrap_or(CAUSES.len().saturating_add(reason))) else { return };
        slot.heaps.store(slot.heaps.load(Relaxed).wrapping_add(1), Relaxed);
        if let Some(packet) = packet {
            slot.first.get_or_init(|| Example {
                packet_bytes: packet.packet_bytes,
                pointers: packet.pointers().take(MOST_POINTERS).collect(),
            });
        }
    }

    /// Heaps of each cause, and its example if it has one.
    pub fn read(&self) -> impl Iterator<Item = (u64, Option<&Example>)> {
        self.0.iter().map(|slot| (slot.heaps.load(Relaxed), slot.first.get()))
    }
}

/// What exactly is wrong, if that is one of [`CAUSES`].
fn cause(layout: &Layout, reason: usize, items: &[i64], packet: Option<&Packet<'_>>) -> Option<usize> {
    match reason {
        reason::METADATA => {
            let n_times = times(layout, items).filter(|(_, value)| *value >= 0).count();
            let mut absent = absent(layout, items).peekable();
            if absent.peek().is_none() {
                return (n_times == 1).then_some(WRONG_LENGTH);
            }
            let packet = packet?;
            if absent.any(|id| packet.pointers().any(|pointer| pointer.id == id && !pointer.immediate)) {
                return Some(ADDRESSED);
            }
            // In the first packet of its heap they may have been.
            packet.offset.is_some_and(|offset| offset > 0).then_some(NOT_REPEATED)
        }
        reason::BAD_TIMESTAMP => {
            let (_, value) = times(layout, items).find(|(_, value)| *value >= 0)?;
            layout.clock.stamp(value as u64).is_none().then_some(WIDE)
        }
        _ => None,
    }
}

/// IDs and values of the items that can tell the time.
fn times<'a>(layout: &'a Layout, items: &'a [i64]) -> impl Iterator<Item = (u64, i64)> + 'a {
    let all = layout.items().iter().copied().zip(items.iter().copied());
    let others = all.clone().skip(layout.other_times).take(layout.clock.ids.saturating_sub(1));
    all.take(1).chain(others)
}

/// IDs of the items that the layout needs and the heap lacks.
fn absent<'a>(layout: &'a Layout, items: &'a [i64]) -> impl Iterator<Item = u64> + 'a {
    let has_time = times(layout, items).any(|(_, value)| value >= 0);
    let all = layout.items().iter().copied().zip(items.iter().copied());
    let axes = all.clone().skip(FIRST_AXIS).zip(&layout.axes).filter(|(_, axis)| axis.needs_item());
    let first_required = FIRST_AXIS.saturating_add(layout.axes.len()).saturating_add(layout.side.len());
    let required = all.skip(first_required).take(layout.spec().required_items.len());
    let others = axes.map(|(item, _)| item).chain(required);
    times(layout, items).filter(move |_| !has_time).chain(others).filter(|(_, value)| *value < 0).map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::spead::PAYLOAD_OFFSET;
    use crate::spec::LayoutSpec;

    fn packet(pointers: &[(bool, u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0x53, 4, 2, 6, 0, 0, 0, u8::try_from(pointers.len()).expect("few")];
        for (immediate, id, value) in pointers {
            bytes.extend((u64::from(*immediate) << 63 | id << 48 | value).to_be_bytes());
        }
        bytes
    }

    #[test]
    fn causes_are_told_apart() {
        let text = "heap_bytes = 8\nrequired_items = [0x5000]\n[time]\nitem = 0x1600\nstep = 16\nbatches = 4\n
            [[axes]]\nname = 'antenna'\nitem = 0x4101\nsize = 3\n[[side_items]]\nname = 'status'\nitem = 0x3102";
        let layout = Layout::new(LayoutSpec::from_toml(text).expect("TOML")).expect("a layout");
        let examples = Examples::new(layout.reasons().len());
        // Time, length, antenna, side item, required item.
        let good = [16, 8, 0, -1, 0];
        let with = |position: usize, value: i64| {
            let mut items = good;
            *items.get_mut(position).expect("an item") = value;
            items
        };
        let first = packet(&[(true, 3, 0), (true, 0x1600, 16), (false, 0x5000, 0)]);
        let later = packet(&[(true, PAYLOAD_OFFSET, 4)]);
        for (reason, items, packet) in [
            (reason::METADATA, with(1, 4), &first),
            (reason::METADATA, with(1, -1), &later),
            (reason::METADATA, with(4, -1), &first),
            (reason::METADATA, with(0, -1), &later),
            (reason::METADATA, with(2, -1), &first),
            (reason::METADATA, with(2, -1), &vec![]),
            (reason::BAD_TIMESTAMP, with(0, 1 << 50), &first),
            (reason::BAD_TIMESTAMP, with(0, 17), &first),
            (2, with(2, 7), &later),
        ] {
            examples.note(&layout, reason, &items, packet);
        }
        let heaps: Vec<u64> = examples.read().map(|(heaps, _)| heaps).collect();
        assert_eq!(heaps, [2, 1, 1, 1, 2, 1, 1, 0, 0, 0]);
        let shown: Vec<usize> =
            examples.read().map(|(_, example)| example.map_or(0, |example| example.pointers.len())).collect();
        assert_eq!(shown, [3, 3, 1, 3, 3, 3, 1, 0, 0, 0]);
    }
}
