//! Sets samples aside for testing, the same share of every class.

use crate::draws::Draws;

/// One sample in five is for testing.
const TEST_SHARE: usize = 5;

/// Splits samples into training and test positions, each sorted: a fifth for testing, rounded up, and of each
/// class as many as its share, rounded by largest remainder. Fixed for given labels: the split is no
/// setting, since nodes that split differently would test on what others trained on.
pub(super) fn split(labels: &[u8]) -> (Vec<u32>, Vec<u32>) {
    let mut classes: Vec<Vec<u32>> = vec![vec![]; 256];
    for (position, label) in (0_u32..).zip(labels) {
        classes[usize::from(*label)].push(position);
    }
    let wanted = labels.len().div_ceil(TEST_SHARE);
    // Whole parts first; what is missing goes to the largest remainders, of equal ones to the smaller label.
    let mut quotas: Vec<usize> = classes.iter().map(|class| class.len() / TEST_SHARE).collect();
    let mut by_remainder: Vec<usize> = (0..classes.len()).collect();
    by_remainder.sort_by_key(|label| std::cmp::Reverse(classes[*label].len() % TEST_SHARE));
    let missing = wanted - quotas.iter().sum::<usize>();
    for label in by_remainder.into_iter().take(missing) {
        quotas[label] += 1;
    }
    let (mut train, mut test) = (vec![], vec![]);
    for ((label, class), quota) in (0_u64..).zip(&mut classes).zip(quotas) {
        Draws::new("lapwing train split 1", &[label]).shuffle(class);
        let (for_test, for_training) = class.split_at(quota);
        test.extend_from_slice(for_test);
        train.extend_from_slice(for_training);
    }
    train.sort_unstable();
    test.sort_unstable();
    (train, test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_on_one_side_and_every_class_on_both_in_proportion() {
        let labels: Vec<u8> = (0..1003_u32).map(|i| (i % 7 % 4) as u8).collect();
        let (train, test) = split(&labels);
        assert_eq!(test.len(), 201);
        let mut all = [train.clone(), test.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..1003).collect::<Vec<_>>());
        for class in 0..4_u8 {
            let count = |positions: &[u32]| {
                positions
                    .iter()
                    .filter(|position| labels[**position as usize] == class)
                    .count()
            };
            let (tested, all) = (count(&test), count(&train) + count(&test));
            assert!(
                (all / 5..=all / 5 + 1).contains(&tested),
                "{class}: {tested} of {all}"
            );
        }
        assert_eq!(split(&labels), (train, test));
    }

    #[test]
    fn nothing_splits_into_nothing() {
        assert_eq!(split(&[]), (vec![], vec![]));
        assert_eq!(split(&[3]), (vec![], vec![0]));
    }
}
