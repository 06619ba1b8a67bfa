//! The passes over many blocks, compiled for the vectors of the processor. They know neither lengths nor errors.

use super::block::{self, BLOCK};
use crate::lanes::Kernel;
use crate::mask::Mask;
use lapwing_base::Values;

/// Writes the masked values of `x`.
pub(super) struct Encoding<'a> {
    pub(super) x: &'a [f32],
    pub(super) mask: &'a Mask,
    pub(super) kind: Values,
    pub(super) out: &'a mut [u8],
}

impl Kernel for Encoding<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, mask, kind, out } = self;
        let mut gathered = [0.0; BLOCK];
        let (count, stride) = (mask.len(), block::stride(kind));
        let is_dense = matches!(mask, Mask::All(_));
        for (first, out) in (0..count).step_by(BLOCK).zip(out.chunks_mut(stride)) {
            let length = BLOCK.min(count - first);
            // A dense block need not be copied first.
            let values = if is_dense {
                &x[first..first + length]
            } else {
                mask.gather_part(x, first, &mut gathered[..length]);
                &gathered[..length]
            };
            block::encode(values, kind, out);
        }
    }
}

/// Writes the masked values of `x` with what was lost so far, and leaves what is lost now.
pub(super) struct Feedback<'a> {
    pub(super) x: &'a [f32],
    pub(super) mask: &'a Mask,
    pub(super) kind: Values,
    pub(super) residual: &'a mut [f32],
    pub(super) out: &'a mut [u8],
}

impl Kernel for Feedback<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            x,
            mask,
            kind,
            residual,
            out,
        } = self;
        let (mut gathered, mut other) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (count, stride) = (mask.len(), block::stride(kind));
        let is_dense = matches!(mask, Mask::All(_));
        for (first, out) in (0..count).step_by(BLOCK).zip(out.chunks_mut(stride)) {
            let length = BLOCK.min(count - first);
            if is_dense {
                // A dense block need not be copied first.
                let part = first..first + length;
                feed_back(&x[part.clone()], kind, &mut residual[part], out);
                continue;
            }
            let (gathered, other) = (&mut gathered[..length], &mut other[..length]);
            mask.gather_part(x, first, other);
            mask.gather_part(residual, first, gathered);
            feed_back(other, kind, gathered, out);
            mask.scatter_part(residual, first, gathered);
        }
    }
}

#[inline(always)]
fn feed_back(x: &[f32], kind: Values, residual: &mut [f32], out: &mut [u8]) {
    for (residual, x) in residual.iter_mut().zip(x) {
        *residual += x;
    }
    block::encode(residual, kind, out);
    if !block::is_finite(out, kind) {
        residual.fill(0.0);
        return;
    }
    let mut sent = [0.0; BLOCK];
    let sent = &mut sent[..x.len()];
    block::decode(out, kind, sent);
    for (residual, sent) in residual.iter_mut().zip(sent) {
        *residual -= *sent;
    }
}

/// Reads values that were found to be finite.
pub(super) struct Decoding<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) kind: Values,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Decoding<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.bytes.chunks(block::stride(self.kind));
        for (bytes, out) in blocks.zip(self.out.chunks_mut(BLOCK)) {
            block::decode(bytes, self.kind, out);
        }
    }
}

/// The sum of the squares of finite values.
pub(super) struct Squares<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) kind: Values,
}

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sum = 0.0;
        for bytes in self.bytes.chunks(block::stride(self.kind)) {
            sum += block::squares(bytes, self.kind);
        }
        sum
    }
}

/// The first value that is infinite or not a number.
pub(super) struct FirstNotFinite<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) kind: Values,
}

impl Kernel for FirstNotFinite<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn run(self) -> Option<usize> {
        for (index, bytes) in self.bytes.chunks(block::stride(self.kind)).enumerate() {
            if !block::is_finite(bytes, self.kind) {
                let inside = block::first_not_finite(bytes, self.kind);
                return Some(index * BLOCK + inside.unwrap_or(0));
            }
        }
        None
    }
}
