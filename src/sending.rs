//! How an instrument sends its heaps, as far as receivers need not know: for simulated senders. Placement uses none of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::{check, check_distinct, check_item};
use crate::error::LayoutError;
use crate::spec::{flag, is_default, is_true, numbers, numbers_by_name, optional_number, yes};

/// Items of SPEAD itself that a packet may lack: the heap's length, and the place of its payload in the heap.
const OMITTED: std::ops::RangeInclusive<u64> = 2..=3;

/// What simulated senders do as the instrument does it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SendSpec {
    /// Bits of an address and of an immediate value in the SPEAD flavour (default: 48).
    #[cfg_attr(test, schemars(range(min = 8, max = 56)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub flavour: Option<u64>,
    /// Largest packet in bytes, with SPEAD header and items (default: 1472).
    #[cfg_attr(test, schemars(range(min = 1, max = 65507)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub packet_bytes: Option<u64>,
    /// IDs of items in the order in which packets have them; others come after them, the payload last.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "numbers")]
    pub order: Vec<u64>,
    /// Items of SPEAD itself that packets lack: 2 is the heap's length, 3 the payload's place in it.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "numbers")]
    pub omit: Vec<u64>,
    /// ID of the payload item for each index of the axis of the sources, instead of the layout's `payload_item`.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "numbers")]
    pub payload_items: Vec<u64>,
    /// Whether each packet of a heap has all items (the default), or only the first.
    #[cfg_attr(test, schemars(extend("default" = true)))]
    #[serde(default = "yes", skip_serializing_if = "is_true", deserialize_with = "flag")]
    pub repeat_items: bool,
    /// Whether a heap that describes the items comes before the others.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "flag")]
    pub descriptors: bool,
    /// Items that every heap has with the same value, by ID.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "numbers_by_name")]
    pub constants: BTreeMap<String, u64>,
}

impl SendSpec {
    /// Check each field.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Field`] with the first field that cannot be.
    pub(crate) fn check(&self) -> Result<(), LayoutError> {
        if let Some(bits) = self.flavour {
            check((8..=56).contains(&bits) && bits % 8 == 0, || {
                LayoutError::field("send.flavour", bits, "must be a multiple of 8 from 8 to 56: the bits of an address")
            })?;
        }
        if let Some(bytes) = self.packet_bytes {
            check((1..=65507).contains(&bytes), || {
                LayoutError::field("send.packet_bytes", bytes, "must be from 1 to 65507, the most that UDP can carry")
            })?;
        }
        for (i, &id) in self.order.iter().enumerate() {
            check_item(&format!("send.order[{i}]"), id)?;
        }
        check_distinct("send.order", self.order.iter().copied())?;
        for (i, &id) in self.payload_items.iter().enumerate() {
            check_item(&format!("send.payload_items[{i}]"), id)?;
        }
        for (i, &id) in self.omit.iter().enumerate() {
            check(OMITTED.contains(&id), || {
                LayoutError::field(format!("send.omit[{i}]"), id, "must be 2 (heap length) or 3 (payload offset)")
            })?;
        }
        check_distinct("send.omit", self.omit.iter().copied())?;
        let mut constants = Vec::new();
        for (text, &value) in &self.constants {
            let field = || format!("send.constants[{text:?}]");
            let id = item_id(text).ok_or_else(|| LayoutError::field(field(), text, "is no item ID, such as 0x4103"))?;
            check_item(&field(), id)?;
            check(value < 1 << 56, || LayoutError::field(field(), value, "has more bits than an item can have"))?;
            constants.push(id);
        }
        check_distinct("send.constants", constants)
    }
}

/// An item ID as text, as keys in TOML are.
pub(crate) fn item_id(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16).ok(),
        None => text.replace('_', "").parse().ok(),
    }
}
