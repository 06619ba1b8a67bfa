//! Vectors that are used again and again: a step asks the system for no memory that an earlier step has had.

use std::cell::RefCell;

/// The vectors that nobody uses just now.
///
/// They are as many and as large as one pass over a slice needed at once.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: RefCell<Vec<Vec<f32>>>,
}

impl Buffers {
    /// So many zeros, in the smallest free vector that holds them.
    pub(super) fn zeros(&self, length: usize) -> Vec<f32> {
        let mut buffer = self.smallest(length);
        buffer.clear();
        buffer.resize(length, 0.0);
        buffer
    }

    /// So many numbers of no meaning, to be overwritten.
    pub(super) fn any(&self, length: usize) -> Vec<f32> {
        let mut buffer = self.smallest(length);
        buffer.resize(length, 0.0);
        buffer
    }

    /// A copy, in such a vector.
    pub(super) fn copy(&self, values: &[f32]) -> Vec<f32> {
        let mut buffer = self.smallest(values.len());
        buffer.clear();
        buffer.extend_from_slice(values);
        buffer
    }

    /// Takes a vector back.
    pub(super) fn give(&self, buffer: Vec<f32>) {
        if buffer.capacity() > 0 {
            self.free.borrow_mut().push(buffer);
        }
    }

    /// How many numbers the free vectors have room for.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.free.borrow().iter().map(Vec::capacity).sum()
    }

    fn smallest(&self, capacity: usize) -> Vec<f32> {
        let mut free = self.free.borrow_mut();
        let fits = (0..free.len()).filter(|index| free[*index].capacity() >= capacity);
        match fits.min_by_key(|index| free[*index].capacity()) {
            Some(index) => free.swap_remove(index),
            None => Vec::with_capacity(capacity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_vector_that_suffices_comes_back_with_zeros() {
        let buffers = Buffers::default();
        let (small, large) = (vec![1.0; 10], vec![2.0; 100]);
        let place = small.as_ptr();
        buffers.give(large);
        buffers.give(small);
        let zeros = buffers.zeros(7);
        assert_eq!((zeros.as_ptr(), &zeros[..]), (place, &[0.0; 7][..]));
        assert_eq!(buffers.zeros(8).capacity(), 100);
    }
}
