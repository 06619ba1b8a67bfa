//! An argument of a command that may hold the results of other commands. Knows nothing of order or levels.

use crate::{CallError, ErrorCode};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The deepest nesting of arrays and objects in what a command is called with. JSON is read down to 128 by who is
/// called, and there it lies inside of an envelope.
pub(super) const DEPTH_MAX: usize = 64;

/// A value with holes, each of which is filled from the result of another command.
#[derive(Debug)]
pub(super) enum Argument {
    Literal(Value),
    Reference(Reference),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

/// `name`, or `name.field.sub`.
#[derive(Debug)]
pub(super) struct Reference {
    /// Which command, as given in the request.
    command: usize,
    /// As written: not split, so that a text of nothing but dots stays as small as it came.
    text: String,
}

/// Which names an argument may refer to, and whose argument it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'a> {
    pub(super) names: &'a BTreeMap<String, usize>,
    pub(super) me: usize,
}

impl Argument {
    /// Finds the references in `value`; what is wrong with it is said in words.
    pub(super) fn parse(value: Value, scope: Scope<'_>) -> Result<Self, String> {
        Self::parse_within(value, scope, DEPTH_MAX)
    }

    fn parse_within(value: Value, scope: Scope<'_>, depth_left: usize) -> Result<Self, String> {
        let deeper = || depth_left.checked_sub(1).ok_or_else(too_deep);
        match value {
            Value::String(text) => Ok(match Reference::implied(&text, scope) {
                Some(reference) => Self::Reference(reference),
                None => Self::Literal(Value::String(text)),
            }),
            Value::Array(items) => {
                let depth_left = deeper()?;
                let parsed = items
                    .into_iter()
                    .map(|item| Self::parse_within(item, scope, depth_left));
                Ok(Self::Array(parsed.collect::<Result<_, _>>()?))
            }
            Value::Object(mut fields) => {
                // Beside other fields these are names like any others: then they belong to whoever is called.
                let is_alone = fields.len() == 1;
                if is_alone && let Some(content) = fields.remove("$lit") {
                    if measure(&content).depth > depth_left {
                        return Err(too_deep());
                    }
                    return Ok(Self::Literal(content));
                }
                if is_alone && let Some(content) = fields.remove("$ref") {
                    return Reference::explicit(&content, scope).map(Self::Reference);
                }
                let depth_left = deeper()?;
                let parsed = fields.into_iter().map(|(key, field)| {
                    let field = Self::parse_within(field, scope, depth_left)?;
                    Ok((key, field))
                });
                Ok(Self::Object(parsed.collect::<Result<_, String>>()?))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(Self::Literal(value)),
        }
    }

    /// Adds the commands whose results it needs.
    pub(super) fn collect_needs(&self, needs: &mut BTreeSet<usize>) {
        match self {
            Self::Literal(_) => {}
            Self::Reference(reference) => {
                needs.insert(reference.command);
            }
            Self::Array(items) => items.iter().for_each(|item| item.collect_needs(needs)),
            Self::Object(fields) => fields.iter().for_each(|(_, field)| field.collect_needs(needs)),
        }
    }

    /// The value with `results` in its holes, which `room` has to have room for.
    pub(super) fn resolve(&self, results: &[Option<Value>], room: &mut Room) -> Result<Value, CallError> {
        self.resolve_within(results, room, DEPTH_MAX)
    }

    fn resolve_within(
        &self,
        results: &[Option<Value>],
        room: &mut Room,
        depth_left: usize,
    ) -> Result<Value, CallError> {
        let value = match self {
            Self::Literal(value) => value,
            Self::Reference(reference) => reference.find(results)?,
            Self::Array(items) => {
                room.take(VALUE_BYTES)?;
                let depth_left = depth_left.saturating_sub(1);
                let resolved = items
                    .iter()
                    .map(|item| item.resolve_within(results, room, depth_left));
                return Ok(Value::Array(resolved.collect::<Result<_, _>>()?));
            }
            Self::Object(fields) => {
                room.take(VALUE_BYTES)?;
                let depth_left = depth_left.saturating_sub(1);
                let mut resolved = Map::new();
                for (key, field) in fields {
                    room.take(key_bytes(key))?;
                    resolved.insert(key.clone(), field.resolve_within(results, room, depth_left)?);
                }
                return Ok(Value::Object(resolved));
            }
        };
        // Measured before it is copied: commands that each name the one before ten times would grow tenfold each.
        let Measure { bytes, depth } = measure(value);
        if depth > depth_left {
            return Err(CallError::new(ErrorCode::PayloadTooLarge, too_deep()));
        }
        room.take(bytes)?;
        Ok(value.clone())
    }
}

impl Reference {
    /// A text that happens to name another command means its result: older clients know no other way to say it.
    fn implied(text: &str, scope: Scope<'_>) -> Option<Self> {
        Self::parse(text, scope.names).filter(|reference| reference.command != scope.me)
    }

    fn explicit(content: &Value, scope: Scope<'_>) -> Result<Self, String> {
        let text = content
            .as_str()
            .ok_or("`$ref` takes a text: the name of a command, and fields after dots")?;
        Self::parse(text, scope.names).ok_or_else(|| format!("there is no command for `$ref` to `{text}`"))
    }

    fn parse(text: &str, names: &BTreeMap<String, usize>) -> Option<Self> {
        let command = *names.get(text.split('.').next()?)?;
        let text = text.to_owned();
        Some(Self { command, text })
    }

    fn find<'a>(&self, results: &'a [Option<Value>]) -> Result<&'a Value, CallError> {
        let lacking = |what: String| {
            CallError::new(
                ErrorCode::DependencyFailed,
                format!("`{}` refers to nothing: {what}", self.text),
            )
        };
        let result = results.get(self.command).and_then(Option::as_ref);
        let mut value = result.ok_or_else(|| lacking("there is no result".to_owned()))?;
        for field in self.text.split('.').skip(1) {
            value = value
                .as_object()
                .and_then(|fields| fields.get(field))
                .ok_or_else(|| lacking(format!("the result has no field `{field}` there")))?;
        }
        Ok(value)
    }
}

fn too_deep() -> String {
    format!("arguments are nested more than {DEPTH_MAX} deep")
}

/// How many bytes may still be taken up.
#[derive(Debug)]
pub(super) struct Room {
    /// For whom it is.
    what: &'static str,
    left: usize,
}

impl Room {
    /// Once for the arguments of a level, and once for the results of a request: four frames of a link (16 MiB) full
    /// of text, or one full of small numbers, which take four times as much in memory.
    pub(super) const MAX: usize = 64 << 20;

    pub(super) fn new(what: &'static str) -> Self {
        Self {
            what,
            left: Self::MAX,
        }
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<(), CallError> {
        self.left = self.left.checked_sub(bytes).ok_or_else(|| {
            let message = format!("{} take more than {} MiB", self.what, Self::MAX >> 20);
            CallError::new(ErrorCode::PayloadTooLarge, message)
        })?;
        Ok(())
    }
}

/// How much there is of a value.
#[derive(Debug)]
pub(super) struct Measure {
    /// Roughly, in memory.
    pub(super) bytes: usize,
    /// Arrays and objects around the innermost value.
    depth: usize,
}

/// Keeps a list of what is left instead of calling itself: a result may be nested deeper than our stack.
pub(super) fn measure(value: &Value) -> Measure {
    let mut measure = Measure { bytes: 0, depth: 0 };
    let mut left = vec![(value, 0)];
    while let Some((value, depth)) = left.pop() {
        measure.bytes += VALUE_BYTES;
        measure.depth = measure.depth.max(depth);
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => measure.bytes += text.len(),
            Value::Array(items) => {
                measure.depth = measure.depth.max(depth + 1);
                left.extend(items.iter().map(|item| (item, depth + 1)));
            }
            Value::Object(fields) => {
                measure.depth = measure.depth.max(depth + 1);
                measure.bytes += fields.keys().map(|key| key_bytes(key)).sum::<usize>();
                left.extend(fields.values().map(|field| (field, depth + 1)));
            }
        }
    }
    measure
}

const VALUE_BYTES: usize = size_of::<Value>();

fn key_bytes(key: &str) -> usize {
    size_of::<String>() + key.len()
}
