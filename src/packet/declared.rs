//! What a layout says of packets that spead2 would drop or misjudge: the table `[packets]`, and items that no sender sends.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, Unexpected};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::check::{check, check_distinct, check_item};
use crate::error::LayoutError;
use crate::packet::plan::uses;
use crate::spec::{AxisSpec, Kind, LayoutSpec, Taken, Wanted, flag};

/// Bytes of a heap that its packets do not tell, or tell wrongly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum HeapLength {
    /// Each packet is a whole heap.
    Payload(PayloadWord),
    /// Each heap has so many bytes.
    Bytes(#[cfg_attr(test, schemars(range(min = 1)))] u64),
}

/// The word `payload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PayloadWord {
    /// The length of the packet's payload.
    Payload,
}

/// Where the payload of a packet belongs in its heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PayloadOffset {
    /// At its beginning, whatever the packet says.
    Zero,
}

/// How heaps are told apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum HeapCounter {
    /// Each packet is a heap of its own, or each sender has counters of its own.
    By(CounterWord),
    /// Heaps have the same sender, counter and values of these items.
    Items(Vec<u64>),
}

/// A word of [`HeapCounter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum CounterWord {
    /// Each packet is a heap of its own.
    Packet,
    /// Each sender has counters of its own.
    Sender,
}

/// How the value of an item is written: byte order, and number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Whether the first byte is the lowest.
    pub little: bool,
    /// Number of bytes.
    pub bytes: u32,
}

impl Encoding {
    fn parse(text: &str) -> Option<Self> {
        let little = text.starts_with('<');
        let rest = text.strip_prefix(['<', '>']);
        let bytes = rest.unwrap_or(text).strip_prefix('u')?.parse().ok().filter(|bytes| (1..=8).contains(bytes))?;
        // Elsewhere, numpy takes "u4" for the order of the machine: only a byte has none.
        (rest.is_some() || bytes == 1).then_some(Self { little, bytes })
    }

    /// The number that these bytes are, if there are so many of them.
    #[must_use]
    pub fn read(self, bytes: &[u8]) -> Option<u64> {
        let bytes = bytes.get(..self.bytes as usize)?;
        let add = |all: u64, &byte: &u8| all.wrapping_shl(8) | u64::from(byte);
        Some(if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    }

    /// The number that an immediate value stands for, whose lowest bytes are the bytes of the number.
    #[must_use]
    pub fn of_immediate(self, value: u64) -> u64 {
        let bytes = value.to_be_bytes();
        bytes.len().checked_sub(self.bytes as usize).and_then(|at| self.read(bytes.get(at..)?)).unwrap_or(value)
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}u{}", if self.little { '<' } else { '>' }, self.bytes)
    }
}

/// What to mend in packets before spead2 gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PacketsSpec {
    /// Bytes of every heap, whatever packets say of it; or `payload`: each packet is a whole heap.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "heap_length")]
    pub heap_length: Option<HeapLength>,
    /// `zero`: the payload of each packet is the beginning of its heap, whatever the packet says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_offset: Option<PayloadOffset>,
    /// How heaps are told apart: `packet` (each packet is a heap), `sender` (each sender counts by itself), or IDs of items
    /// whose values, with the sender and its counter, make a heap (default: by the counter alone).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "heap_counter")]
    pub heap_counter: Option<HeapCounter>,
    /// Whether the items of a heap are in its first packet only.
    #[cfg_attr(test, schemars(extend("default" = false)))]
    #[serde(default, skip_serializing_if = "std::ops::Not::not", deserialize_with = "flag")]
    pub repeat_items: bool,
    /// How the values of some items are written, by ID: `<u4` is 4 bytes with the lowest first, `>u8` 8 bytes with the
    /// highest first. Addressed values of these items are made immediate.
    #[cfg_attr(test, schemars(with = "BTreeMap<String, String>"))]
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "encodings",
        serialize_with = "write_encodings"
    )]
    pub items: BTreeMap<u64, Encoding>,
}

impl PacketsSpec {
    /// Check what the fields say by themselves.
    pub(crate) fn check(&self) -> Result<(), LayoutError> {
        if let Some(HeapLength::Bytes(bytes)) = self.heap_length {
            check(bytes > 0, || LayoutError::field("packets.heap_length", bytes, "must be at least 1"))?;
        }
        if let Some(HeapCounter::Items(ids)) = &self.heap_counter {
            check(!ids.is_empty(), || {
                LayoutError::field("packets.heap_counter", "[]", "must have at least one item; or say \"sender\"")
            })?;
            for (i, &id) in ids.iter().enumerate() {
                check_item(&format!("packets.heap_counter[{i}]"), id)?;
            }
            check_distinct("packets.heap_counter", ids)?;
        }
        self.items.keys().try_for_each(|&id| check_item("packets.items", id))
    }
}

/// An item that no sender sends: it is added to each packet on its way into spead2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synthetic {
    /// The ID of the item whose bytes are the heap's data.
    PayloadItem,
    /// The sender: its IPv4 address, then 16 bits of port.
    Sender,
    /// When the packet came or was captured, in seconds since 1970.
    PacketSeconds,
    /// The nanoseconds of that.
    PacketNanoseconds,
}

impl Synthetic {
    /// All there are, in the order of their IDs.
    pub const ALL: [Self; 4] = [Self::PayloadItem, Self::Sender, Self::PacketSeconds, Self::PacketNanoseconds];

    /// What stands for the first of them in a declaration, where others have an item ID: no number there is so large.
    const FIRST: u64 = 1 << 63;
    /// ID of the first of them in the packets that spead2 gets. No sender's item of this ID is used beside them.
    pub(crate) const FIRST_ID: u64 = 0x7ff8;

    /// The name in a declaration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PayloadItem => "payload_item",
            Self::Sender => "sender",
            Self::PacketSeconds => "packet_seconds",
            Self::PacketNanoseconds => "packet_nanoseconds",
        }
    }

    /// What stands for it in a declaration.
    #[must_use]
    pub fn item(self) -> u64 {
        Self::FIRST | self as u64
    }

    /// The ID in the packets that spead2 gets.
    #[must_use]
    pub fn id(self) -> u64 {
        Self::FIRST_ID | self as u64
    }

    /// The one that an item of a declaration stands for.
    #[must_use]
    pub fn of(item: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|synthetic| synthetic.item() == item)
    }
}

/// The ID by which spead2 knows an item of a declaration.
pub(crate) fn wire_id(item: u64) -> u64 {
    Synthetic::of(item).map_or(item, Synthetic::id)
}

/// An axis with the names of another, and nothing else.
fn named(other: &AxisSpec) -> AxisSpec {
    AxisSpec {
        name: other.name.clone(),
        item: None,
        present_items: None,
        payload_items: None,
        shift: 0,
        mask: None,
        step: 1,
        size: None,
        values: None,
        from_user_data: None,
        reject_name: other.reject_name.clone(),
    }
}

/// The axis that takes its index from an item, if this one takes it from which payload item a heap has.
pub(crate) fn of_payload_items<'a>(field: &str, axis: &'a AxisSpec) -> Result<Cow<'a, AxisSpec>, LayoutError> {
    let Some(ids) = &axis.payload_items else { return Ok(Cow::Borrowed(axis)) };
    let field = format!("{field}.payload_items");
    let alone = AxisSpec { payload_items: Some(ids.clone()), ..named(axis) };
    check(*axis == alone, || {
        LayoutError::field(&field, format!("{ids:?}"), "can be given together with name and reject_name only")
    })?;
    for (i, &id) in ids.iter().enumerate() {
        check_item(&format!("{field}[{i}]"), id)?;
    }
    let item = Some(Synthetic::PayloadItem.item());
    Ok(Cow::Owned(AxisSpec { item, values: Some(ids.clone()), ..named(axis) }))
}

/// Whether packets from sockets must be mended for spead2 to receive by a layout.
pub(crate) fn mends_packets(spec: &LayoutSpec) -> bool {
    spec.packets.is_some() || Synthetic::ALL.into_iter().any(|item| uses(spec, item))
}

/// Check what a layout asks of packets; `items` are all that spead2 is asked for.
pub(crate) fn check_packets(spec: &LayoutSpec, items: &[u64]) -> Result<(), LayoutError> {
    let added = Synthetic::ALL.into_iter().any(|item| uses(spec, item));
    if spec.packets.is_none() && spec.payload_item.is_none() && !added {
        return Ok(());
    }
    let of_senders = items.iter().filter(|id| !added || !Synthetic::ALL.iter().any(|item| item.id() == **id));
    let largest = of_senders.max().copied().unwrap_or(0);
    check(largest < Synthetic::FIRST_ID, || {
        LayoutError::field(
            "item",
            format!("{largest:#x}"),
            format!(
                "is too large for packets that are mended; together with packets, payload items or items that are added, IDs \
             must be below {:#x}",
                Synthetic::FIRST_ID
            ),
        )
    })?;
    let Some(packets) = &spec.packets else { return Ok(()) };
    packets.check()?;
    check(packets.heap_counter.is_none() || !items.contains(&1), || {
        LayoutError::field("packets.heap_counter", "is given", "but changes the heap counter, which the layout uses")
    })
}

/// Which of some words it is.
fn position<E: Error>(wanted: Wanted, taken: &Taken, words: &[&str]) -> Result<usize, E> {
    let Taken::Word(text) = taken else { return Err(E::custom(wanted.text)) };
    words.iter().position(|word| word == text).ok_or_else(|| wanted.refuse(Unexpected::Str(text)))
}

fn heap_length<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HeapLength>, D::Error> {
    let wanted = Wanted { text: "a number of bytes, or \"payload\"", kinds: &[Kind::Whole, Kind::Word] };
    Ok(Some(match wanted.read(deserializer)? {
        Taken::Whole(bytes) => HeapLength::Bytes(bytes),
        taken => position(wanted, &taken, &["payload"]).map(|_| HeapLength::Payload(PayloadWord::Payload))?,
    }))
}

fn heap_counter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HeapCounter>, D::Error> {
    let wanted = Wanted { text: "\"packet\", \"sender\", or a list of item IDs", kinds: &[Kind::Wholes, Kind::Word] };
    Ok(Some(match wanted.read(deserializer)? {
        Taken::Wholes(ids) => HeapCounter::Items(ids),
        taken if position(wanted, &taken, &["packet", "sender"])? == 0 => HeapCounter::By(CounterWord::Packet),
        _ => HeapCounter::By(CounterWord::Sender),
    }))
}

/// Read an item ID, or the name of an item that is added.
pub(crate) fn item<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = "an item ID, \"payload_item\", \"sender\", \"packet_seconds\" or \"packet_nanoseconds\"";
    let words = ["payload_item", "sender", "packet_seconds", "packet_nanoseconds"];
    let wanted = Wanted { text, kinds: &[Kind::Whole, Kind::Word] };
    match wanted.read(deserializer)? {
        Taken::Whole(id) => Ok(id),
        taken => position(wanted, &taken, &words).map(|word| Synthetic::FIRST | word as u64),
    }
}

/// Read one that may be absent.
pub(crate) fn optional_item<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    item(deserializer).map(Some)
}

/// Write an item ID, or the name of an item that is added.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) fn write_item<S: Serializer>(item: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    match Synthetic::of(*item) {
        Some(synthetic) => serializer.serialize_str(synthetic.name()),
        None => serializer.serialize_u64(*item),
    }
}

/// Write one that may be absent.
#[expect(clippy::ref_option, reason = "serde passes a reference")]
pub(crate) fn write_optional_item<S: Serializer>(item: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match item {
        Some(item) => write_item(item, serializer),
        None => serializer.serialize_none(),
    }
}

fn encodings<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<u64, Encoding>, D::Error> {
    let text = BTreeMap::<String, String>::deserialize(deserializer)?;
    text.iter()
        .map(|(id, encoding)| {
            let number = match id.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None => id.parse(),
            };
            let id = number.map_err(|_| D::Error::custom(format!("{id:?} is not an item ID, such as 0x1600")))?;
            let wanted = "which must be like \"<u4\" or \">u8\": byte order, u, and 1 to 8 bytes";
            let encoding = Encoding::parse(encoding)
                .ok_or_else(|| D::Error::custom(format!("item {id:#x} is {encoding:?}, {wanted}")))?;
            Ok((id, encoding))
        })
        .collect()
}

fn write_encodings<S: Serializer>(encodings: &BTreeMap<u64, Encoding>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(encodings.iter().map(|(id, encoding)| (format!("{id:#x}"), encoding.to_string())))
}

/// The schema of an item ID or a name.
#[cfg(test)]
pub(crate) fn item_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let _ = generator;
    schemars::json_schema!({
        "anyOf": [
            { "const": 1 },
            { "type": "integer", "minimum": crate::check::LAST_CONTROL_ID + 1, "maximum": crate::check::MAX_ITEM_ID },
            { "enum": Synthetic::ALL.map(Synthetic::name) },
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_read_bytes_in_both_orders() {
        let little = Encoding::parse("<u4").unwrap();
        assert_eq!(little.read(&[0x78, 0x56, 0x34, 0x12, 9]), Some(0x1234_5678));
        assert_eq!(little.of_immediate(0x7856_3412), 0x1234_5678);
        assert_eq!(little.of_immediate(0xffff_7856_3412), 0x1234_5678);
        let big = Encoding::parse(">u3").unwrap();
        assert_eq!(big.read(&[1, 2, 3]), Some(0x1_0203));
        assert_eq!(big.read(&[1, 2]), None);
        assert_eq!(Encoding::parse("u1").unwrap().read(&[7, 8]), Some(7));
        for wrong in ["u0", "<u9", "<f8", "<i4", "4", "", "=u4", "u4"] {
            assert_eq!(Encoding::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_stand_for_items_that_no_number_stands_for() {
        for synthetic in Synthetic::ALL {
            assert_eq!(Synthetic::of(synthetic.item()), Some(synthetic));
            assert!(i64::try_from(synthetic.item()).is_err());
            assert!(synthetic.id() <= 0x7fff);
        }
        assert_eq!(wire_id(0x1600), 0x1600);
    }
}
