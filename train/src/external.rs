//! How a job names a model that its users bring: `external`, and which layout it has.
//!
//! Only the name. The program that holds such a model is the node's (`backend/child.rs`).

use std::fmt;

use crate::layout::Layout;

/// A model that is not built in, as a job names it: `external:91c2a0d7e45b3f68`, or `external` alone before anybody has
/// said which.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ExternalModel {
    /// The first eight bytes of [`Layout::hash`], as a number.
    layout: Option<u64>,
}

impl ExternalModel {
    /// The one with this layout.
    pub fn of(layout: &Layout) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = layout.hash();
        Self {
            layout: Some(u64::from_be_bytes([a, b, c, d, e, f, g, h])),
        }
    }

    /// What a job's `model` says; `None` when that is not the name of such a model.
    pub fn named(model: &str) -> Option<Self> {
        let rest = model.strip_prefix("external")?;
        if rest.is_empty() {
            return Some(Self { layout: None });
        }
        let digits = rest.strip_prefix(':')?;
        let is_hash = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        is_hash
            .then(|| u64::from_str_radix(digits, 16).ok())
            .flatten()
            .map(|layout| Self { layout: Some(layout) })
    }

    /// Whether it says which layout.
    pub fn is_exact(self) -> bool {
        self.layout.is_some()
    }
}

impl fmt::Display for ExternalModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layout {
            Some(layout) => write!(f, "external:{layout:016x}"),
            None => f.write_str("external"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(name: &str, shape: &[usize]) -> Layout {
        Layout::new([(name.to_owned(), shape.to_vec())]).unwrap()
    }

    #[test]
    fn a_name_reads_back_as_it_was_written() {
        let model = ExternalModel::of(&layout("weight", &[10, 64]));
        assert!(model.is_exact());
        assert_eq!(ExternalModel::named(&model.to_string()), Some(model));
        let any = ExternalModel::named("external").unwrap();
        assert!(!any.is_exact());
        assert_eq!(any.to_string(), "external");
    }

    #[test]
    fn other_names_and_other_shapes_give_other_models() {
        let model = ExternalModel::of(&layout("weight", &[10, 64]));
        assert_ne!(model, ExternalModel::of(&layout("weight", &[64, 10])));
        assert_ne!(model, ExternalModel::of(&layout("w", &[10, 64])));
    }

    #[test]
    fn what_is_no_name_of_one_is_refused() {
        for name in [
            "mlp",
            "externals",
            "external:",
            "external:12",
            "external:91C2A0D7E45B3F68",
            "external:+1c2a0d7e45b3f68",
            "external:91c2a0d7e45b3f680",
        ] {
            assert_eq!(ExternalModel::named(name), None, "{name}");
        }
    }
}
