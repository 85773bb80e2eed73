//! Declarations from Python, for serde: mappings and sequences, as often as they are nested. `pythonize` has the rest.
//!
//! `pythonize` alone reads dataclasses and sets as well. With it, the core has all code that reads a declaration once
//! for each of these. For the same reason nothing here is inlined: there are many fields, and none is read often.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyMapping, PySequence, PyTuple};
use pythonize::{Depythonizer, PythonizeError};
use serde::Deserializer;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// A declaration, or a part of one.
#[derive(Clone, Copy)]
pub struct Declared<'a, 'py>(pub &'a Bound<'py, PyAny>);

/// Methods that differ from those of [`Depythonizer`] in nothing.
macro_rules! as_pythonize {
    ($($method:ident)*) => {
        $(
            #[inline(never)]
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PythonizeError> {
                Depythonizer::from_object(self.0).$method(visitor)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for Declared<'_, '_> {
    type Error = PythonizeError;

    as_pythonize!(deserialize_bool deserialize_f64 deserialize_str deserialize_string deserialize_identifier);

    #[inline(never)]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PythonizeError> {
        if self.0.is_instance_of::<PyDict>() {
            self.deserialize_map(visitor)
        } else if self.0.is_instance_of::<PyList>() || self.0.is_instance_of::<PyTuple>() {
            self.deserialize_seq(visitor)
        } else {
            Depythonizer::from_object(self.0).deserialize_any(visitor)
        }
    }

    #[inline(never)]
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PythonizeError> {
        if self.0.is_none() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, PythonizeError> {
        visitor.visit_newtype_struct(self)
    }

    #[inline(never)]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PythonizeError> {
        let sequence = self.0.cast::<PySequence>()?;
        visitor.visit_seq(Elements { sequence, next: 0, end: sequence.len()? })
    }

    #[inline(never)]
    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PythonizeError> {
        let map = self.0.cast::<PyMapping>()?;
        let (keys, values) = (map.keys()?, map.values()?);
        let keys = Elements { end: keys.len(), sequence: keys.as_sequence(), next: 0 };
        visitor.visit_map(Fields { keys, values: Elements { sequence: values.as_sequence(), ..keys } })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, PythonizeError> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, PythonizeError> {
        Depythonizer::from_object(self.0).deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, PythonizeError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 char bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

/// The elements of a sequence, one after the other.
#[derive(Clone, Copy)]
struct Elements<'a, 'py> {
    sequence: &'a Bound<'py, PySequence>,
    next: usize,
    end: usize,
}

impl<'py> Elements<'_, 'py> {
    #[inline(never)]
    fn take(&mut self) -> PyResult<Bound<'py, PyAny>> {
        self.next += 1;
        self.sequence.get_item(self.next - 1)
    }
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = PythonizeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, PythonizeError> {
        if self.next == self.end {
            return Ok(None);
        }
        seed.deserialize(Declared(&self.take()?)).map(Some)
    }
}

/// The keys of a mapping, and their values in the same order.
struct Fields<'a, 'py> {
    keys: Elements<'a, 'py>,
    values: Elements<'a, 'py>,
}

impl<'de> MapAccess<'de> for Fields<'_, '_> {
    type Error = PythonizeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, PythonizeError> {
        self.keys.next_element_seed(seed)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, PythonizeError> {
        seed.deserialize(Declared(&self.values.take()?))
    }
}
