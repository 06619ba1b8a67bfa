//! A mask of runs of neighbouring coordinates: a sixteenth of the memory of a list, and read and written by the line.

/// Runs of equally many coordinates in ascending order; only the last one may be shorter.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Runs {
    /// The first coordinate of each run.
    starts: Vec<u32>,
    /// Coordinates of a run, at least 1.
    length: usize,
    /// Coordinates in all.
    count: usize,
}

/// Coordinates in a run of a large model: one cache line of `f32`s, so that gathering reads no line for a single
/// value.
pub(super) const LINE: usize = 16;

impl Runs {
    /// The runs that begin at `starts`, which ascend, in a model of `parameters` coordinates.
    pub(super) fn new(starts: Vec<u32>, length: usize, parameters: usize) -> Self {
        let cut = starts
            .last()
            .map_or(0, |&last| (last as usize + length).saturating_sub(parameters));
        let count = starts.len() * length - cut;
        Self {
            starts,
            length,
            count,
        }
    }

    pub(super) fn into_starts(self) -> Vec<u32> {
        self.starts
    }

    /// How many coordinates there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// One more than the last coordinate; 0 when there is none.
    pub(super) fn end(&self) -> usize {
        let cut = self.starts.len() * self.length - self.count;
        self.starts
            .last()
            .map_or(0, |&last| last as usize + self.length - cut)
    }

    /// All coordinates, ascending.
    pub(super) fn coordinates(&self) -> impl Iterator<Item = u32> + '_ {
        // As many as fit a `u32` were counted when the mask was made.
        (0..self.starts.len()).flat_map(|run| {
            let (start, first) = (self.starts[run], run * self.length);
            let length = self.length.min(self.count - first) as u32;
            start..start + length
        })
    }

    /// Copies the values of coordinates number `first` and following.
    #[inline(always)]
    pub(super) fn gather(&self, x: &[f32], first: usize, out: &mut [f32]) {
        if let Some(starts) = self.lines(first, out.len()) {
            for (out, &start) in out.as_chunks_mut::<LINE>().0.iter_mut().zip(starts) {
                out.copy_from_slice(&x[start as usize..][..LINE]);
            }
            return;
        }
        let mut done = 0;
        for (start, length) in self.pieces(first, out.len()) {
            out[done..done + length].copy_from_slice(&x[start..start + length]);
            done += length;
        }
    }

    /// Sets the values of coordinates number `first` and following.
    #[inline(always)]
    pub(super) fn scatter(&self, x: &mut [f32], first: usize, values: &[f32]) {
        if let Some(starts) = self.lines(first, values.len()) {
            for (values, &start) in values.as_chunks::<LINE>().0.iter().zip(starts) {
                x[start as usize..][..LINE].copy_from_slice(values);
            }
            return;
        }
        let mut done = 0;
        for (start, length) in self.pieces(first, values.len()) {
            x[start..start + length].copy_from_slice(&values[done..done + length]);
            done += length;
        }
    }

    /// The runs that these coordinates are, where they are whole lines.
    #[inline(always)]
    fn lines(&self, first: usize, count: usize) -> Option<&[u32]> {
        let are_whole = self.length == LINE && first.is_multiple_of(LINE) && count.is_multiple_of(LINE);
        are_whole.then(|| &self.starts[first / LINE..(first + count) / LINE])
    }

    /// Where coordinates number `first` and following lie, `count` in all: start and length of each piece of a run.
    fn pieces(&self, first: usize, count: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let (mut run, mut inside, mut left) = (first / self.length.max(1), first % self.length.max(1), count);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let length = left.min(self.length - inside);
            let start = self.starts[run] as usize + inside;
            (run, inside, left) = (run + 1, 0, left - length);
            Some((start, length))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_part_of_the_runs_is_gathered_and_scattered_as_by_a_list(
            length in 1_usize..20, places in prop::collection::vec(0_usize..3, 0..40), cut in 0_usize..20,
            part in (0_usize..800, 0_usize..300),
        ) {
            let mut at = 0;
            let starts: Vec<u32> = places.iter().map(|place| {
                let start = at + place * length;
                at = start + length;
                start as u32
            }).collect();
            let parameters = at.saturating_sub(cut.min(length - 1));
            let runs = Runs::new(starts, length, parameters);
            let list: Vec<u32> = runs.coordinates().collect();
            prop_assert_eq!(list.len(), runs.len());
            prop_assert_eq!(list.last().map_or(0, |&last| last as usize + 1), runs.end());
            prop_assert!(list.is_sorted_by(|a, b| a < b) && runs.end() <= parameters);

            let first = part.0.min(list.len());
            let list = &list[first..(first + part.1).min(list.len())];
            let x: Vec<f32> = (0..parameters).map(|index| index as f32).collect();
            let mut values = vec![0.0; list.len()];
            runs.gather(&x, first, &mut values);
            prop_assert!(values.iter().zip(list).all(|(value, &index)| *value == index as f32));
            let mut zeros = vec![-1.0; parameters];
            runs.scatter(&mut zeros, first, &values);
            for (index, value) in zeros.into_iter().enumerate() {
                let expected = if list.contains(&(index as u32)) { index as f32 } else { -1.0 };
                prop_assert_eq!(value, expected);
            }
        }
    }
}
