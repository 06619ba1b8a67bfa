//! Runs a kernel with the widest vectors that this processor has, whatever the program was compiled for.
//!
//! Only speed depends on it: kernels are plain loops that the compiler turns into vector code, and it neither
//! reorders sums nor fuses a product with a sum, so the bits are the same on every machine.

use pulp::{Arch, Simd, WithSimd};

/// A loop with its arguments. A type and not a closure, which would be compiled once, for any processor, and called.
pub(crate) trait Kernel {
    type Output;

    /// Runs it. This, and all that it calls in its loops, is `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// Runs a kernel as it was compiled for the vectors of this processor.
pub(crate) fn widest<K: Kernel>(kernel: K) -> K::Output {
    Arch::new().dispatch(Dispatched(kernel))
}

struct Dispatched<K>(K);

impl<K: Kernel> WithSimd for Dispatched<K> {
    type Output = K::Output;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> K::Output {
        self.0.run()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Doubled<'a>(&'a mut [f32]);

    impl Kernel for Doubled<'_> {
        type Output = usize;

        #[inline(always)]
        fn run(self) -> usize {
            self.0.iter_mut().for_each(|value| *value *= 2.0);
            self.0.len()
        }
    }

    #[test]
    fn a_kernel_runs_once_and_its_result_is_returned() {
        let mut values = [1.0, 2.0, 3.0];
        assert_eq!(widest(Doubled(&mut values)), 3);
        assert_eq!(values, [2.0, 4.0, 6.0]);
    }
}
