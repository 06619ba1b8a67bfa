//! Dense values as a method tells them: written in the job's encoding, and read back by the one who wrote them too.
//!
//! Methods move models by differences of what both ends decode, so that what one gains the other loses, however coarse
//! the encoding.

use super::MethodError;
use crate::mask::Mask;
use crate::merge::{self, MergeError};
use crate::quantise;
use lapwing_base::Values;

/// Replaces the contents of `message` by the encoded values, and those of `decoded` by what a receiver makes of it.
///
/// # Errors
///
/// When a value is not finite, or too large for the encoding: a diverged model is not told.
pub(super) fn tell(
    values: &[f32],
    kind: Values,
    message: &mut Vec<u8>,
    decoded: &mut Vec<f32>,
) -> Result<(), MethodError> {
    quantise::encode(values, kind, message);
    quantise::decode(message, kind, values.len(), decoded)?;
    Ok(())
}

/// Reads as many values as were `sent` to the one who told them.
///
/// # Errors
///
/// When there are not exactly as many, one is not finite, or they are of another magnitude.
pub(super) fn hear(bytes: &[u8], kind: Values, sent: &[f32]) -> Result<Vec<f32>, MethodError> {
    let mut heard = Vec::new();
    quantise::decode(bytes, kind, sent.len(), &mut heard)?;
    merge::check(&Mask::All(sent.len()), sent, &heard)?;
    Ok(heard)
}

/// Bytes of so many values.
pub(super) const fn told_len(count: usize, kind: Values) -> usize {
    quantise::encoded_len(count, kind)
}

/// Whether a mean is one of as many values, all finite.
pub(super) fn check_mean(mean: &[f32], expected: usize) -> Result<(), MethodError> {
    check_length(mean, expected)?;
    match quantise::first_not_finite(mean) {
        None => Ok(()),
        Some(index) => Err(MethodError::Merge(MergeError::NotFinite { index })),
    }
}

/// Whether a vector is of this model.
pub(super) fn check_length(given: &[f32], expected: usize) -> Result<(), MethodError> {
    if given.len() == expected {
        return Ok(());
    }
    Err(MethodError::Length {
        given: given.len(),
        expected,
    })
}

/// Takes the vector of this name and length out of what a checkpoint has.
///
/// # Errors
///
/// When there is none, or it is of another length.
pub(super) fn restored(
    state: &mut Vec<(String, Vec<f32>)>,
    name: &'static str,
    length: usize,
) -> Result<Vec<f32>, MethodError> {
    let place = state.iter().position(|(given, _)| given == name);
    let place = place.ok_or(MethodError::NoState { name })?;
    check_length(&state[place].1, length)?;
    Ok(state.swap_remove(place).1)
}
