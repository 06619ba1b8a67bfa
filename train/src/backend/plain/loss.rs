//! Cross entropy of columns of logits, and its slopes.

use super::activation::exp;

/// Turns logits into the slopes of the loss; returns the sum of the losses, in nats.
///
/// The logits are `positions` times `classes` rows of `columns`, of which the first `samples` are counted and the
/// others get no slope. `answers` has, sample after sample, a class for each position. Every class's logit is
/// raised by its `shifts` first. Slopes are multiplied by `weight`.
#[inline(always)]
pub(super) fn cross_entropy(
    logits: &mut [f32],
    classes: usize,
    columns: usize,
    answers: &[u8],
    shifts: Option<&[f32]>,
    weight: f32,
) -> f64 {
    let positions = logits.len() / (classes * columns);
    let samples = answers.len() / positions.max(1);
    let mut total = 0.0;
    let (mut largest, mut sums) = (vec![0.0_f32; columns], vec![0.0_f32; columns]);
    for (position, logits) in logits.chunks_exact_mut(classes * columns).enumerate() {
        if let Some(shifts) = shifts {
            for (row, shift) in logits.chunks_exact_mut(columns).zip(shifts) {
                row.iter_mut().for_each(|logit| *logit += shift);
            }
        }
        largest.fill(f32::NEG_INFINITY);
        for row in logits.chunks_exact(columns) {
            for (largest, logit) in largest.iter_mut().zip(row) {
                *largest = largest.max(*logit);
            }
        }
        let answer = |sample: usize| usize::from(answers[sample * positions + position]) * columns + sample;
        let right: Vec<f32> = (0..samples).map(|sample| logits[answer(sample)]).collect();
        sums.fill(0.0);
        for row in logits.chunks_exact_mut(columns) {
            for ((logit, largest), sum) in row.iter_mut().zip(&largest).zip(&mut sums) {
                *logit = exp(*logit - largest);
                *sum += *logit;
            }
        }
        for ((right, largest), sum) in right.iter().zip(&largest).zip(&sums) {
            total += f64::from(sum.ln() + largest - right);
        }
        for sum in &mut sums[..samples] {
            *sum = weight / *sum;
        }
        sums[samples..].fill(0.0);
        for row in logits.chunks_exact_mut(columns) {
            row.iter_mut()
                .zip(&sums)
                .for_each(|(share, factor)| *share *= factor);
        }
        for sample in 0..samples {
            logits[answer(sample)] -= weight;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_logits_cost_the_logarithm_of_the_classes_and_pull_towards_the_answer() {
        // Two classes, two columns of which one is a sample.
        let mut logits = [3.0, 0.0, 3.0, 0.0];
        let loss = cross_entropy(&mut logits, 2, 2, &[1], None, 2.0);
        assert!((loss - f64::from(2_f32.ln())).abs() < 1e-6);
        assert_eq!(logits, [1.0, 0.0, -1.0, 0.0]);
    }

    #[test]
    fn each_position_has_its_own_answer_and_classes_their_shifts() {
        // Two positions of two classes and one sample; the shift makes them even.
        let mut logits = [0.0, 1.0, 0.0, 1.0];
        let loss = cross_entropy(&mut logits, 2, 1, &[0, 1], Some(&[1.0, 0.0]), 1.0);
        assert!((loss - f64::from(2.0 * 2_f32.ln())).abs() < 1e-6);
        assert_eq!(logits, [-0.5, 0.5, 0.5, -0.5]);
    }
}
