//! The one error of the core: a layout that cannot be.

use std::fmt::Display;

/// Why a layout was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A field has a value that cannot be.
    #[error("{field}: {value} {problem}")]
    Field {
        /// Path of the field, such as `axes[0].step`.
        field: String,
        /// The value that it has.
        value: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The declaration could not be read: a field is missing, unknown, or of the wrong type.
    #[error("{0}")]
    Malformed(String),
}

impl LayoutError {
    pub(crate) fn field(field: impl Into<String>, value: impl Display, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), value: value.to_string(), problem: problem.into() }
    }
}
