//! The values of one exchange as they are on the wire, known to be whole and finite.
//!
//! Neither side of an exchange keeps them in any other form: what a node sent is what its partner decodes, and both
//! are read block by block where they are merged. As bytes they take a quarter (`int8`) of what they would as `f32`s.

use super::block;
use super::kernels::{Encoding, Feedback, Squares};
use super::{DecodeError, check_bytes, encoded_len};
use crate::lanes::widest;
use crate::mask::Mask;
use bytes::Bytes;
use lapwing_base::Values;

/// So many finite values, in the order of their mask.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Encoded {
    kind: Values,
    count: usize,
    bytes: Bytes,
}

impl Encoded {
    /// The values of `x` on the coordinates of `mask`, written into the memory of `buffer`.
    ///
    /// # Errors
    ///
    /// When a value is not finite, or a half cannot hold it: the model has diverged.
    ///
    /// # Panics
    ///
    /// When the mask does not fit `x`.
    pub fn of(x: &[f32], mask: &Mask, kind: Values, mut buffer: Vec<u8>) -> Result<Self, DecodeError> {
        assert!(mask.fits(x.len()), "the mask is of another model");
        // What the buffer already has is overwritten, not cleared first.
        buffer.resize(encoded_len(mask.len(), kind), 0);
        let out = &mut buffer;
        widest(Encoding { x, mask, kind, out });
        Self::parse(Bytes::from(buffer), kind, mask.len())
    }

    /// As [`Self::of`], with what rounding has lost so far added first, and what is lost now left in its place:
    /// `sent = quantise(x + residual)`, `residual = x + residual - sent` (error feedback, arXiv 1901.09847).
    ///
    /// `residual` is as long as `x`; coordinates outside the mask keep theirs. It is for values that are *differences*,
    /// which nobody sends again; on values themselves it does harm (see the module's documentation).
    ///
    /// # Errors
    ///
    /// As [`Self::of`]; residuals of the block with that value are zero then.
    ///
    /// # Panics
    ///
    /// When the mask or the residuals do not fit `x`.
    pub fn with_feedback(
        x: &[f32],
        mask: &Mask,
        kind: Values,
        residual: &mut [f32],
        mut buffer: Vec<u8>,
    ) -> Result<Self, DecodeError> {
        assert!(mask.fits(x.len()), "the mask is of another model");
        assert_eq!(x.len(), residual.len(), "a residual for each coordinate");
        buffer.resize(encoded_len(mask.len(), kind), 0);
        let out = &mut buffer;
        widest(Feedback {
            x,
            mask,
            kind,
            residual,
            out,
        });
        Self::parse(Bytes::from(buffer), kind, mask.len())
    }

    /// These values as they are.
    ///
    /// # Errors
    ///
    /// When one is not finite.
    pub fn exact(values: &[f32]) -> Result<Self, DecodeError> {
        Self::of(values, &Mask::All(values.len()), Values::F32, Vec::new())
    }

    /// Takes what a partner sent as `count` values. Both the number and the kind are what this node knows.
    ///
    /// # Errors
    ///
    /// When the bytes are not exactly as many as `count` values take, or a value is not finite.
    pub fn parse(bytes: Bytes, kind: Values, count: usize) -> Result<Self, DecodeError> {
        check_bytes(&bytes, kind, count)?;
        Ok(Self { kind, count, bytes })
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How they are written.
    pub fn kind(&self) -> Values {
        self.kind
    }

    /// What goes over the wire; a handle to the same memory.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The memory, for the next exchange; fresh, if somebody still reads this one's.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes.try_into_mut().map(Vec::from).unwrap_or_default()
    }

    /// Replaces the contents of `out` by the values.
    pub fn decode(&self, out: &mut Vec<f32>) {
        super::decode_checked(&self.bytes, self.kind, self.count, out);
    }

    /// The root of the mean square; 0 of no values.
    pub fn root_mean_square(&self) -> f64 {
        let (bytes, kind) = (&*self.bytes, self.kind);
        (widest(Squares { bytes, kind }) / self.count.max(1) as f64).sqrt()
    }

    /// Reads block number `index`, which has as many values as `out`.
    #[inline(always)]
    pub(crate) fn decode_block(&self, index: usize, out: &mut [f32]) {
        let stride = block::stride(self.kind);
        let bytes = &self.bytes[index * stride..];
        block::decode(&bytes[..stride.min(bytes.len())], self.kind, out);
    }
}
