//! All that a node does in the rounds of one job: its algorithm's method, and the averaging of dense rounds, which are
//! the same whichever the algorithm.

use super::values::check_length;
use super::{Averaging, Collective, Gossip, Method, MethodError, Work, method};
use lapwing_base::{JobSpec, Meeting, RoundKind, RoundPlan};

/// The methods of one node.
#[derive(Debug)]
pub(crate) struct Methods {
    meeting: Meeting,
    method: Method,
    averaging: Averaging,
}

impl Methods {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        Self {
            meeting: spec.algorithm.meeting(),
            method: method(spec, model),
            averaging: Averaging::new(spec, model.len()),
        }
    }

    /// What tells partners in a round, if the round is one of telling partners.
    pub(crate) fn gossip(&mut self, plan: &RoundPlan) -> Option<&mut dyn Gossip> {
        match (&mut self.method, plan.kind) {
            (_, RoundKind::Dense) => Some(&mut self.averaging),
            (Method::Gossip(method), RoundKind::Sparse) => Some(&mut **method),
            _ => None,
        }
    }

    /// What adds to a mean in a round, if the round is one of a mean.
    pub(crate) fn collective(&mut self, plan: &RoundPlan) -> Option<&mut dyn Collective> {
        match (&mut self.method, plan.kind) {
            (Method::Collective(method), RoundKind::Reduced | RoundKind::Served { .. }) => {
                Some(&mut **method)
            }
            _ => None,
        }
    }

    /// Whether a round's work is one gradient instead of steps.
    pub(crate) fn works_on_gradient(&self, plan: &RoundPlan) -> bool {
        plan.kind == RoundKind::Reduced && self.is_of_gradients()
    }

    fn is_of_gradients(&self) -> bool {
        matches!(&self.method, Method::Collective(method) if method.work() == Work::Gradient)
    }

    /// What must be kept over a restart beside the model, by names that tell dense rounds from the others.
    pub(crate) fn state(&self) -> Vec<(String, &[f32])> {
        fn named<'a>(prefix: &str) -> impl Fn((String, &'a [f32])) -> (String, &'a [f32]) {
            move |(name, vector)| (format!("{prefix}{name}"), vector)
        }
        let of_method = self.state_of_method().into_iter().map(named(OF_METHOD));
        of_method
            .chain(self.averaging.state().into_iter().map(named(OF_DENSE)))
            .collect()
    }

    /// Goes on from what [`state`](Self::state) gave.
    ///
    /// # Errors
    ///
    /// When a vector is missing, or of another length.
    pub(crate) fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let (mut of_method, mut of_dense) = (Vec::new(), Vec::new());
        for (name, vector) in state {
            if let Some(name) = name.strip_prefix(OF_METHOD) {
                of_method.push((name.to_owned(), vector));
            } else if let Some(name) = name.strip_prefix(OF_DENSE) {
                of_dense.push((name.to_owned(), vector));
            }
        }
        match &mut self.method {
            Method::Gossip(method) => method.restore(of_method)?,
            Method::Collective(method) => method.restore(of_method)?,
            Method::Local => (),
        }
        self.averaging.restore(of_dense)
    }

    /// How many vectors [`common`](Self::common) has.
    pub(crate) fn commons(&self) -> usize {
        match self.meeting {
            // What is kept about partners is begun anew with each of them, and a server's word is all that counts.
            Meeting::Pairs | Meeting::Ring | Meeting::Server | Meeting::Nobody => 0,
            Meeting::All => self.state_of_method().len() + usize::from(self.is_of_gradients()),
        }
    }

    /// What all who take part have alike beside the model, each as long as it, so that whoever joins needs it too: what
    /// the algorithm keeps, and, where all take the same steps, the optimiser's `momentum`.
    pub(crate) fn common(&self, momentum: &[f32]) -> Vec<Vec<f32>> {
        if self.commons() == 0 {
            return Vec::new();
        }
        let state = self.state_of_method().into_iter();
        let kept = state.map(|(_, vector)| vector.to_vec());
        kept.chain(self.is_of_gradients().then(|| momentum.to_vec()))
            .collect()
    }

    /// Goes on from another's model and [`common`](Self::common); returns the optimiser's momentum, where it is common.
    ///
    /// # Errors
    ///
    /// When there are not as many vectors, or one is not as long as the model; then nothing is changed.
    pub(crate) fn join(
        &mut self,
        spec: &JobSpec,
        model: &[f32],
        mut common: Vec<Vec<f32>>,
    ) -> Result<Option<Vec<f32>>, MethodError> {
        let mut joined = Self::new(spec, model);
        check_commons(common.len(), joined.commons())?;
        common
            .iter()
            .try_for_each(|vector| check_length(vector, model.len()))?;
        let momentum = joined.is_of_gradients().then(|| common.pop()).flatten();
        let names = joined.state_of_method().into_iter().map(|(name, _)| name);
        let state: Vec<_> = names.zip(common).collect();
        if let Method::Collective(method) = &mut joined.method
            && !state.is_empty()
        {
            method.restore(state)?;
        }
        *self = joined;
        Ok(momentum)
    }

    fn state_of_method(&self) -> Vec<(String, &[f32])> {
        match &self.method {
            Method::Gossip(method) => method.state(),
            Method::Collective(method) => method.state(),
            Method::Local => Vec::new(),
        }
    }
}

fn check_commons(given: usize, expected: usize) -> Result<(), MethodError> {
    if given == expected {
        return Ok(());
    }
    Err(MethodError::Malformed {
        why: "it has another number of vectors than the algorithm keeps",
    })
}

/// What precedes the names of what is kept.
const OF_METHOD: &str = "method/";
const OF_DENSE: &str = "dense/";

#[cfg(test)]
mod tests {
    use super::super::fixture::spec;
    use super::*;
    use lapwing_base::{Algorithm, Values};

    #[test]
    fn whoever_joins_has_all_that_is_common_and_what_is_of_another_job_is_refused() {
        let model = [1.0, 2.0, 3.0];
        for (algorithm, vectors) in [
            (Algorithm::DiLoCo, 2),
            (Algorithm::AllReduce, 1),
            (Algorithm::FedAvg, 0),
            (Algorithm::Default, 0),
            (Algorithm::ChocoSgd, 0),
        ] {
            let spec = spec(algorithm, Values::F32);
            let here = Methods::new(&spec, &model);
            let common = here.common(&[7.0; 3]);
            assert_eq!((common.len(), here.commons()), (vectors, vectors), "{algorithm}");
            let mut joining = Methods::new(&spec, &[0.0; 3]);
            let momentum = joining.join(&spec, &model, common.clone()).unwrap();
            assert_eq!(momentum.is_some(), algorithm == Algorithm::AllReduce);
            assert_eq!(joining.state(), here.state(), "{algorithm}");
            let mut more = common.clone();
            more.push(vec![0.0; 3]);
            assert!(joining.join(&spec, &model, more).is_err());
            let short = common.iter().map(|_| vec![0.0; 2]).collect();
            assert!(vectors == 0 || joining.join(&spec, &model, short).is_err());
        }
    }
}
