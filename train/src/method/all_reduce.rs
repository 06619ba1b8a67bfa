//! Every step down the mean of everybody's gradient, as in a data centre: what all others are measured by.
//!
//! Each node's batch counts alike. The step itself, with its momentum, is the backend's; since all nodes begin with one
//! model and take the same steps, they stay bit-identical.

use super::values::{check_length, check_mean};
use super::{Collective, Done, Learnt, MethodError, Work};
use lapwing_base::RoundPlan;

/// One node's side: contributes the gradient of one batch, with weight 1, and steps down the mean of all. When that is
/// not to be had, nobody steps.
///
/// Kept over a restart: nothing.
#[derive(Debug)]
pub(crate) struct AllReduce {
    parameters: usize,
}

impl AllReduce {
    /// For a model of so many parameters.
    pub(crate) fn new(parameters: usize) -> Self {
        Self { parameters }
    }
}

impl Collective for AllReduce {
    fn work(&self) -> Work {
        Work::Gradient
    }

    fn begin(&mut self, _plan: &RoundPlan, _model: &[f32]) {}

    fn contribute(
        &mut self,
        _plan: &RoundPlan,
        done: Done<'_>,
        vector: &mut Vec<f32>,
    ) -> Result<u64, MethodError> {
        check_length(done.gradient, self.parameters)?;
        vector.clear();
        vector.extend_from_slice(done.gradient);
        Ok(1)
    }

    fn length(&self, _plan: &RoundPlan) -> usize {
        self.parameters
    }

    fn settle(&mut self, _plan: &RoundPlan, mean: &[f32], model: &mut [f32]) -> Result<Learnt, MethodError> {
        check_mean(mean, self.parameters)?;
        check_length(model, self.parameters)?;
        Ok(Learnt::Gradient)
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        Vec::new()
    }

    fn restore(&mut self, _state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use super::*;
    use lapwing_base::RoundKind;

    #[test]
    fn gradients_are_contributed_as_they_are_and_the_backend_steps() {
        let plan = plan(1, RoundKind::Reduced, &ring_edges(3), 1);
        let mut node = AllReduce::new(3);
        assert_eq!(node.work(), Work::Gradient);
        let mut model = [5.0; 3];
        node.begin(&plan, &model);
        let done = |gradient| Done {
            model: &[5.0; 3],
            gradient,
            samples: 7,
        };
        let mut vector = vec![1.0];
        assert_eq!(
            node.contribute(&plan, done(&[1.0, -2.0, 3.0]), &mut vector)
                .unwrap(),
            1
        );
        assert_eq!(vector, [1.0, -2.0, 3.0]);
        assert!(node.contribute(&plan, done(&[]), &mut vector).is_err());
        assert_eq!(node.settle(&plan, &vector, &mut model).unwrap(), Learnt::Gradient);
        assert!(node.settle(&plan, &[f32::INFINITY; 3], &mut model).is_err());
        assert!(node.settle(&plan, &[0.0; 4], &mut model).is_err());
        assert_eq!(model, [5.0; 3]);
    }
}
