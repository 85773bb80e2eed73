//! The declaration of a layout as data: what TOML files and Python's dataclasses say.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_path_to_error::Path;

#[cfg(test)]
use crate::check::{LAST_CONTROL_ID, MAX_ITEM_ID, MAX_SHIFT, MAX_TIME_BITS, MIN_TIME_BITS, NAME};
use crate::error::LayoutError;
#[cfg(test)]
use crate::packet::declared::item_schema;
use crate::packet::declared::{PacketsSpec, item, optional_item, write_item, write_optional_item};
use crate::sending::SendSpec;

/// What to do with a timestamp that is not a multiple of the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Align {
    /// Reject its heap.
    #[default]
    Reject,
    /// Take it for the last multiple before it.
    Floor,
    /// Take it for the nearest multiple.
    Nearest,
    /// Like floor, by clearing its low bits; `step` must then be a power of two.
    Mask,
}

/// Stands for what heaps themselves show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Shown {
    /// What is seen first.
    First,
}

/// A time that the steps of time are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Origin {
    /// A timestamp.
    At(u64),
    /// That of the first heap.
    Shown(Shown),
}

/// By how many ticks the times of each source differ from the steps of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Phases {
    /// By index on the axis of the sources.
    Listed(Vec<u64>),
    /// What the first heap of each source shows.
    Shown(Shown),
}

/// The item that tells the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum TimeItem {
    /// Always the same.
    One(#[cfg_attr(test, schemars(schema_with = "item_or_counter"))] u64),
    /// One of these.
    OneOf(#[cfg_attr(test, schemars(length(min = 1)))] Vec<u64>),
}

impl TimeItem {
    /// All IDs that it can have.
    #[must_use]
    pub fn ids(&self) -> &[u64] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::OneOf(ids) => ids,
        }
    }
}

/// Unsigned integer that a side item is stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SideType {
    /// 8 bits.
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// 64 bits.
    #[default]
    U64,
}

impl SideType {
    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

/// Byte stride of an axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Stride {
    /// A number of bytes.
    Bytes(u64),
    /// The name of the field of the stream's `user_data` that holds it (dense if there is no such field).
    UserData(String),
}

/// What a field takes. Unlike what serde reads by itself, errors tell the value that was given; and nothing is bent that
/// comes from Python: `true` to the number 1, any value to a yes, a text to a list of its letters.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub text: &'static str,
    pub kinds: &'static [Kind],
}

/// A kind of value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Yes or no.
    Flag,
    /// A number from 0 to 2^63 - 1. More has no form in TOML, and no use: item values have 63 bits.
    Whole,
    Real,
    Word,
    Wholes,
    Names,
}

/// What was read.
pub(crate) enum Taken {
    Flag(bool),
    Whole(u64),
    Real(f64),
    Word(String),
    Wholes(Vec<u64>),
    Names(Vec<String>),
}

const WHOLE: Wanted = Wanted { text: "a whole number from 0 to 2^63 - 1", kinds: &[Kind::Whole] };
const WHOLES: Wanted = Wanted { text: "a list of whole numbers from 0 to 2^63 - 1", kinds: &[Kind::Wholes] };
const FLAG: Wanted = Wanted { text: "true or false", kinds: &[Kind::Flag] };
const REAL: Wanted = Wanted { text: "a number", kinds: &[Kind::Real] };
const NAMES: Wanted = Wanted { text: "a list of names", kinds: &[Kind::Names] };

impl Wanted {
    /// Read it.
    pub fn read<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<Taken, D::Error> {
        deserializer.deserialize_any(self)
    }

    /// That it is something else.
    pub fn refuse<E: Error>(self, given: Unexpected<'_>) -> E {
        E::invalid_value(given, &self)
    }

    fn takes(self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }
}

impl<'de> Visitor<'de> for Wanted {
    type Value = Taken;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Taken, E> {
        if self.takes(Kind::Flag) { Ok(Taken::Flag(value)) } else { Err(self.refuse(Unexpected::Bool(value))) }
    }

    #[expect(clippy::cast_precision_loss, reason = "as of any number that is written without a point")]
    fn visit_i64<E: Error>(self, value: i64) -> Result<Taken, E> {
        match u64::try_from(value) {
            Ok(value) if self.takes(Kind::Whole) => Ok(Taken::Whole(value)),
            _ if self.takes(Kind::Real) => Ok(Taken::Real(value as f64)),
            _ => Err(self.refuse(Unexpected::Signed(value))),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "as of any number that is written without a point")]
    fn visit_u64<E: Error>(self, value: u64) -> Result<Taken, E> {
        match i64::try_from(value) {
            Ok(signed) => self.visit_i64(signed),
            Err(_) if self.takes(Kind::Real) => Ok(Taken::Real(value as f64)),
            Err(_) => Err(self.refuse(Unexpected::Unsigned(value))),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Taken, E> {
        if self.takes(Kind::Real) { Ok(Taken::Real(value)) } else { Err(self.refuse(Unexpected::Float(value))) }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Taken, E> {
        if self.takes(Kind::Word) {
            Ok(Taken::Word(value.to_owned()))
        } else {
            Err(self.refuse(Unexpected::Str(value)))
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Taken, A::Error> {
        if self.takes(Kind::Wholes) {
            let mut all = Vec::new();
            while let Some(Number(value)) = values.next_element()? {
                all.push(value);
            }
            return Ok(Taken::Wholes(all));
        }
        if self.takes(Kind::Names) {
            let mut all = Vec::new();
            while let Some(name) = values.next_element()? {
                all.push(name);
            }
            return Ok(Taken::Names(all));
        }
        Err(self.refuse(Unexpected::Seq))
    }
}

/// A number in a list.
pub(crate) struct Number(pub u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number(deserializer).map(Number)
    }
}

fn origin<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Origin>, D::Error> {
    const WANTED: Wanted =
        Wanted { text: "a whole number from 0 to 2^63 - 1, or \"first\"", kinds: &[Kind::Whole, Kind::Word] };
    match WANTED.read(deserializer)? {
        Taken::Whole(at) => Ok(Some(Origin::At(at))),
        taken => first(WANTED, &taken).map(|word| Some(Origin::Shown(word))),
    }
}

fn phases<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Phases>, D::Error> {
    const WANTED: Wanted = Wanted {
        text: "whole numbers from 0 to 2^63 - 1, one for each source, or \"first\"",
        kinds: &[Kind::Whole, Kind::Wholes, Kind::Word],
    };
    match WANTED.read(deserializer)? {
        Taken::Whole(only) => Ok(Some(Phases::Listed(vec![only]))),
        Taken::Wholes(all) => Ok(Some(Phases::Listed(all))),
        taken => first(WANTED, &taken).map(|word| Some(Phases::Shown(word))),
    }
}

/// The word `first`, which stands for what heaps show.
fn first<E: Error>(wanted: Wanted, taken: &Taken) -> Result<Shown, E> {
    match taken {
        Taken::Word(word) if word == "first" => Ok(Shown::First),
        Taken::Word(word) => Err(wanted.refuse(Unexpected::Str(word))),
        _ => Err(E::custom(wanted.text)),
    }
}

fn time_item<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TimeItem, D::Error> {
    let wanted = Wanted { text: "a whole number from 0 to 2^63 - 1, or several", kinds: &[Kind::Whole, Kind::Wholes] };
    match wanted.read(deserializer)? {
        Taken::Whole(id) => Ok(TimeItem::One(id)),
        Taken::Wholes(ids) => Ok(TimeItem::OneOf(ids)),
        _ => Err(D::Error::custom(wanted.text)),
    }
}

impl<'de> Deserialize<'de> for Stride {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wanted = Wanted {
            text: "a number of bytes from 0 to 2^63 - 1, or the name of a field of user_data",
            kinds: &[Kind::Whole, Kind::Word],
        };
        match wanted.read(deserializer)? {
            Taken::Whole(bytes) => Ok(Self::Bytes(bytes)),
            Taken::Word(name) => Ok(Self::UserData(name)),
            _ => Err(D::Error::custom(wanted.text)),
        }
    }
}

impl Stride {
    /// The name of the field of user data, if it is that.
    pub(crate) fn user_data(&self) -> Option<&String> {
        match self {
            Self::UserData(name) => Some(name),
            Self::Bytes(_) => None,
        }
    }
}

fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let Taken::Whole(value) = WHOLE.read(deserializer)? else { return Err(D::Error::custom(WHOLE.text)) };
    Ok(value)
}

pub(crate) fn optional_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    number(deserializer).map(Some)
}

pub(crate) fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let Taken::Wholes(all) = WHOLES.read(deserializer)? else { return Err(D::Error::custom(WHOLES.text)) };
    Ok(all)
}

fn optional_numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u64>>, D::Error> {
    numbers(deserializer).map(Some)
}

pub(crate) fn numbers_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let all = BTreeMap::<String, Number>::deserialize(deserializer)?;
    Ok(all.into_iter().map(|(name, number)| (name, number.0)).collect())
}

pub(crate) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    FLAG.read(deserializer).map(|taken| matches!(taken, Taken::Flag(true)))
}

fn real<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    let Taken::Real(value) = REAL.read(deserializer)? else { return Err(D::Error::custom(REAL.text)) };
    Ok(Some(value))
}

fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let Taken::Names(all) = NAMES.read(deserializer)? else { return Err(D::Error::custom(NAMES.text)) };
    Ok(all)
}

fn optional_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    names(deserializer).map(Some)
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

pub(crate) fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) fn is_true(value: &bool) -> bool {
    *value
}

fn one() -> u64 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(value: &u64) -> bool {
    *value == 1
}

fn time() -> String {
    "time".into()
}

fn is_time(value: &str) -> bool {
    value == "time"
}

/// The schema of the ID of an item that may be the heap counter.
#[cfg(test)]
fn item_or_counter(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let ids = serde_json::json!([
        { "const": crate::check::HEAP_COUNTER_ID },
        { "minimum": LAST_CONTROL_ID + 1, "maximum": MAX_ITEM_ID },
    ]);
    schemars::json_schema!({ "type": "integer", "anyOf": ids })
}

/// The time axis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TimeSpec {
    /// Name of the axis.
    #[cfg_attr(test, schemars(regex(pattern = NAME), extend("default" = "time")))]
    #[serde(default = "time", skip_serializing_if = "is_time")]
    pub name: String,
    /// SPEAD item ID of the timestamp, or several IDs, of which each heap has exactly one. 1 is the heap counter.
    #[serde(deserialize_with = "time_item")]
    pub item: TimeItem,
    /// Increase in timestamp between successive heaps of a source, in ticks.
    #[cfg_attr(test, schemars(range(min = 1)))]
    #[serde(deserialize_with = "number")]
    pub step: u64,
    /// Heaps per source per chunk.
    #[cfg_attr(test, schemars(range(min = 1)))]
    #[serde(deserialize_with = "number")]
    pub batches: u64,
    /// Ticks per second, in Hz. Needed to convert timestamps to seconds.
    #[cfg_attr(test, schemars(extend("exclusiveMinimum" = 0)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "real")]
    pub tick_rate: Option<f64>,
    /// What to do with a timestamp that is not a multiple of `step`, counted from `origin`.
    #[cfg_attr(test, schemars(extend("default" = "reject")))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub align: Align,
    /// A timestamp that steps are counted from: any that a sender has (default: 0), or `first`, the first that is seen.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "origin")]
    pub origin: Option<Origin>,
    /// Bits of a timestamp, after which it wraps (default: 48, or 40 if a stream shows that it wraps there).
    #[cfg_attr(test, schemars(range(min = MIN_TIME_BITS, max = MAX_TIME_BITS)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub bits: Option<u64>,
    /// Bits to shift the item's value right by.
    #[cfg_attr(test, schemars(range(max = MAX_SHIFT), extend("default" = 0)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "number")]
    pub shift: u64,
    /// Bits to keep after shifting (default: all).
    #[cfg_attr(test, schemars(range(min = 1)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub mask: Option<u64>,
    /// Ticks by which the timestamps of each source are late, by index on the axis of the sources; or `first`: what the
    /// first heap of each shows.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "phases")]
    pub phases: Option<Phases>,
    /// UTC at tick 0, in seconds since 1970.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "real")]
    pub epoch: Option<f64>,
    /// ID of the item that tells this, instead of `epoch`.
    #[cfg_attr(test, schemars(range(min = LAST_CONTROL_ID + 1, max = MAX_ITEM_ID)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub epoch_item: Option<u64>,
}

/// An axis other than time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct AxisSpec {
    /// Name of the axis.
    #[cfg_attr(test, schemars(regex(pattern = NAME)))]
    pub name: String,
    /// SPEAD item ID that the index comes from; 1 is the heap counter. Or the name of an item that is added to packets.
    #[cfg_attr(test, schemars(schema_with = "item_schema"))]
    #[serde(
        default,
        skip_serializing_if = "is_default",
        deserialize_with = "optional_item",
        serialize_with = "write_optional_item"
    )]
    pub item: Option<u64>,
    /// IDs of payload items, instead of `item`: the index is the position of the one whose bytes are the heap's data.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_numbers")]
    pub payload_items: Option<Vec<u64>>,
    /// IDs of items, instead of `item`: the index is the position of the only one that a heap has.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_numbers")]
    pub present_items: Option<Vec<u64>>,
    /// Bits to shift the item's value right by.
    #[cfg_attr(test, schemars(range(max = MAX_SHIFT), extend("default" = 0)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "number")]
    pub shift: u64,
    /// Bits to keep after shifting (default: all).
    #[cfg_attr(test, schemars(range(min = 1)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub mask: Option<u64>,
    /// Difference between the values of neighbouring indices.
    #[cfg_attr(test, schemars(range(min = 1), extend("default" = 1)))]
    #[serde(default = "one", skip_serializing_if = "is_one", deserialize_with = "number")]
    pub step: u64,
    /// Number of indices.
    #[cfg_attr(test, schemars(range(min = 1)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub size: Option<u64>,
    /// The value of each index, instead of `step` and `size`.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_numbers")]
    pub values: Option<Vec<u64>>,
    /// Field of the stream's `user_data` that holds the index, instead of `item`; needs `size`.
    #[cfg_attr(test, schemars(regex(pattern = NAME)))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub from_user_data: Option<String>,
    /// Name of the counter of heaps whose value is not on the axis (default: `bad_<name>_heaps`).
    #[serde(default, skip_serializing_if = "is_default")]
    pub reject_name: Option<String>,
}

/// An item stored beside each heap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SideSpec {
    /// Field name in the record.
    #[cfg_attr(test, schemars(regex(pattern = NAME)))]
    pub name: String,
    /// SPEAD item ID, or the name of an item that is added to packets. A heap without this item is still placed, and 0 is
    /// stored.
    #[cfg_attr(test, schemars(schema_with = "item_schema"))]
    #[serde(deserialize_with = "item", serialize_with = "write_item")]
    pub item: u64,
    /// Bits to shift the value right by.
    #[cfg_attr(test, schemars(range(max = MAX_SHIFT), extend("default" = 0)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "number")]
    pub shift: u64,
    /// Unsigned integer type; the number is in bits. Higher bits of the shifted value are cut off.
    #[cfg_attr(test, schemars(extend("default" = "u64")))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub dtype: SideType,
}

/// A field of the records that heaps hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FieldSpec {
    /// Name of the field.
    #[cfg_attr(test, schemars(regex(pattern = NAME)))]
    pub name: String,
    /// Type of its elements: numpy's name, or one of complex integers ("cint8").
    pub dtype: String,
    /// Its shape (default: a single element).
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "numbers")]
    pub shape: Vec<u64>,
}

/// A declared layout: one time axis and any number of others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(title = "speadrx layout"))]
#[serde(deny_unknown_fields)]
pub struct LayoutSpec {
    /// A name for messages and files.
    #[cfg_attr(test, schemars(extend("default" = "")))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub name: String,
    /// Payload bytes of a heap; heaps of another length are rejected.
    #[cfg_attr(test, schemars(range(min = 1)))]
    #[serde(deserialize_with = "number")]
    pub heap_bytes: u64,
    /// SPEAD item ID of the item, addressed, that a heap's data are. What else a heap in a file has is cut out.
    #[cfg_attr(test, schemars(range(min = LAST_CONTROL_ID + 1, max = MAX_ITEM_ID)))]
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub payload_item: Option<u64>,
    /// Names of all axes, slowest to fastest (default: time, then `axes`).
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_names")]
    pub order: Option<Vec<String>>,
    /// Name of the axis whose index is the source: the accounts count heaps by source.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sources: Option<String>,
    /// Name of each source in the accounts (default: what senders send for it; or the ID of its item, or its index).
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_names")]
    pub source_labels: Option<Vec<String>>,
    /// IDs of other items that a heap must have. Heaps without them are rejected.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "numbers")]
    pub required_items: Vec<u64>,
    // The next six are for Python: placement does not use them.
    /// Type of a heap's elements in the numpy view of a chunk: numpy's name, or one of packed samples ("int10", "<uint12")
    /// or of complex integers ("cint8").
    #[cfg_attr(test, schemars(extend("default" = "uint8")))]
    #[serde(default, skip_serializing_if = "is_default")]
    pub dtype: Option<String>,
    /// Shape of a heap in the numpy view of a chunk (default: as many elements as there are).
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_numbers")]
    pub heap_shape: Option<Vec<u64>>,
    /// Names of the dimensions of `heap_shape`.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "names")]
    pub heap_axes: Vec<String>,
    /// Order of all axes in `Chunk.samples()`, those of `heap_axes` among them (default: the axes, then those of a heap).
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_names")]
    pub samples_order: Option<Vec<String>>,
    /// Samples in a heap, if this is not the product of `heap_shape`.
    #[serde(default, skip_serializing_if = "is_default", deserialize_with = "optional_number")]
    pub samples_per_heap: Option<u64>,
    /// What a heap holds, if its elements are records: the fields of a record, which follow one another without gaps.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fields: Vec<FieldSpec>,
    /// Byte strides that override the dense ones, by axis name.
    #[serde(default, skip_serializing_if = "is_default")]
    pub strides: BTreeMap<String, Stride>,
    /// What to mend in packets that spead2 would drop or misjudge.
    #[serde(default, skip_serializing_if = "is_default")]
    pub packets: Option<PacketsSpec>,
    /// The time axis.
    pub time: TimeSpec,
    /// The other axes, in the order in which they are checked.
    #[serde(default, skip_serializing_if = "is_default")]
    pub axes: Vec<AxisSpec>,
    /// Items stored beside each heap, in the chunk's `extra`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub side_items: Vec<SideSpec>,
    /// How the instrument sends its heaps, for simulated senders. Receivers use none of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub send: Option<SendSpec>,
}

impl LayoutSpec {
    /// Read a declaration through any serde deserializer; an error names the path of the field.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Malformed`] if a field is missing, unknown or of the wrong type.
    pub fn read<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, LayoutError> {
        Self::read_telling(deserializer, |_, problem| problem)
    }

    /// The same, with better words for what is wrong with the field at a path.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn read_telling<'de, D: serde::Deserializer<'de>>(
        deserializer: D,
        tell: impl Fn(&Path, String) -> String,
    ) -> Result<Self, LayoutError> {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            let problem = tell(error.path(), error.inner().to_string());
            LayoutError::Malformed(if path == "." { problem } else { format!("{path}: {problem}") })
        })
    }

    /// Read a declaration from TOML.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Malformed`] if it is not TOML, or not a layout.
    pub fn from_toml(text: &str) -> Result<Self, LayoutError> {
        let deserializer =
            toml::Deserializer::parse(text).map_err(|error| LayoutError::Malformed(error.to_string()))?;
        Self::read(deserializer)
    }

    /// Write the declaration as TOML that [`Self::from_toml`] reads back.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Malformed`] if a number does not fit TOML's 64-bit signed integers.
    pub fn to_toml(&self) -> Result<String, LayoutError> {
        let text = self.write_toml()?;
        // Larger numbers are written all the same; reading them finds the first, and names its field.
        Self::from_toml(&text)?;
        Ok(text)
    }

    /// Write the declaration of a proven layout, whose numbers all fit. Python has a reader of its own.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Malformed`] if it cannot be TOML.
    pub fn write_toml(&self) -> Result<String, LayoutError> {
        toml::to_string(self).map_err(|error| LayoutError::Malformed(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use schemars::generate::SchemaSettings;
    use schemars::transform::transform_subschemas;

    use super::*;

    const SMALL: &str = "heap_bytes = 8\n[time]\nitem = 5632\nstep = 1\nbatches = 4\n[strides]\ntime = 8\n";

    #[test]
    fn what_toml_has_no_form_for_is_not_written() {
        let spec = LayoutSpec::from_toml(SMALL).unwrap();
        let mut large = spec.clone();
        large.time.step = 1 << 63;
        let message = large.to_toml().unwrap_err().to_string();
        assert!(message.contains("time.step") && message.contains("9223372036854775808"), "{message}");
        let mut large = spec;
        large.strides.insert("time".to_owned(), Stride::Bytes(u64::MAX));
        let message = large.to_toml().unwrap_err().to_string();
        assert!(message.contains("strides.time") && message.contains("18446744073709551615"), "{message}");
    }

    #[test]
    fn strides_are_numbers_like_all_others() {
        let read = |stride: u64| LayoutSpec::from_toml(&SMALL.replace("time = 8", &format!("time = {stride}")));
        assert!(read(i64::MAX as u64).is_ok());
        let message = read(1 << 63).unwrap_err().to_string();
        assert!(message.contains("from 0 to 2^63 - 1"), "{message}");
    }

    /// Say what TOML can: it has no null, and no number beyond 2^63 - 1.
    fn for_toml(schema: &mut schemars::Schema) {
        transform_subschemas(&mut for_toml, schema);
        let Some(fields) = schema.as_object_mut() else { return };
        fields.remove("format");
        fields.retain(|key, value| key != "default" || !value.is_null());
        if let Some(types) = fields.get("type").and_then(|types| types.as_array()) {
            let kind = types[0].clone();
            fields.insert("type".to_owned(), kind);
        }
        if fields.get("type").is_some_and(|kind| kind == "integer") {
            fields.entry("maximum").or_insert(i64::MAX.into());
        }
        if let Some(text) = fields.get("description").and_then(|text| text.as_str()) {
            let text = text.replace('\n', " ");
            fields.insert("description".to_owned(), text.into());
        }
    }

    #[test]
    fn schema_file_is_current() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/speadrx/layout/presets/layout.schema.json");
        let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let schema = settings.with_transform(for_toml).into_generator().into_root_schema_for::<LayoutSpec>();
        // A line for each value, as programs read it, and people its changes.
        let mut text = Vec::new();
        let lines = serde_json::ser::PrettyFormatter::with_indent(b"");
        schema.serialize(&mut serde_json::Serializer::with_formatter(&mut text, lines)).unwrap();
        let text = String::from_utf8(text).unwrap() + "\n";
        if env::var_os("WRITE_SCHEMA").is_some() {
            fs::write(&file, &text).unwrap();
        }
        let hint = "WRITE_SCHEMA=1 cargo test schema_file writes it";
        assert!(fs::read_to_string(&file).unwrap() == text, "{} is not current: {hint}", file.display());
    }
}
