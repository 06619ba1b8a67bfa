//! Averaging by halves over a mask: SAPS, as published and with the cyclic mask, and every dense round.
//!
//! Tang et al., "Communication-Efficient Decentralized Learning with Sparsification and Adaptive Peer Selection" (ICDCS
//! 2020, arXiv 2002.09692), Algorithm 2. Values are merged against what the partner decoded, so that a pair's mean
//! stays what it was.

use super::{Gossip, MethodError};
use crate::mask::Mask;
use crate::merge;
use crate::quantise::{self, Encoded};
use bytes::Bytes;
use lapwing_base::{Algorithm, JobSpec, NodeId, Round, RoundPlan, Values};

/// What one node offers and takes.
#[derive(Debug)]
pub(crate) struct Averaging {
    seed: u64,
    algorithm: Algorithm,
    values: Values,
    parameters: usize,
    exchange: Option<Exchange>,
    /// The memory of what was sent last, for what is sent next.
    spare: Vec<u8>,
}

/// What was offered to the partner and, once it is here, what came back.
#[derive(Debug)]
struct Exchange {
    round: Round,
    partner: NodeId,
    mask: Mask,
    /// As the partner decodes it.
    sent: Encoded,
    received: Option<Encoded>,
}

impl Averaging {
    /// For a model of so many parameters.
    pub(crate) fn new(spec: &JobSpec, parameters: usize) -> Self {
        Self {
            seed: spec.seed,
            algorithm: spec.algorithm,
            values: spec.values,
            parameters,
            exchange: None,
            spare: Vec::new(),
        }
    }

    fn mask(&self, plan: &RoundPlan) -> Mask {
        Mask::of(self.seed, self.algorithm, plan, self.parameters)
    }
}

impl Gossip for Averaging {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        if model.len() != self.parameters {
            return Err(MethodError::Length {
                given: model.len(),
                expected: self.parameters,
            });
        }
        let mask = self.mask(plan);
        let sent = Encoded::of(model, &mask, self.values, std::mem::take(&mut self.spare))?;
        message.clear();
        message.extend_from_slice(&sent.bytes());
        self.exchange = Some(Exchange {
            round: plan.round,
            partner,
            mask,
            sent,
            received: None,
        });
        Ok(())
    }

    fn message_bytes_max(&self, plan: &RoundPlan) -> usize {
        quantise::encoded_len(self.mask(plan).len(), self.values)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        let round = plan.round;
        let exchange = self
            .exchange
            .as_mut()
            .filter(|exchange| (exchange.round, exchange.partner) == (round, partner))
            .ok_or(MethodError::NotOffered { round, partner })?;
        let received = Encoded::parse(Bytes::copy_from_slice(message), self.values, exchange.mask.len())?;
        merge::check_encoded(&exchange.mask, &exchange.sent, &received)?;
        exchange.received = Some(received);
        Ok(())
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        let round = plan.round;
        let exchange = self.exchange.take().filter(|exchange| exchange.round == round);
        for &partner in merged {
            let exchange = exchange.as_ref().filter(|exchange| exchange.partner == partner);
            let received = exchange.and_then(|exchange| Some((exchange, exchange.received.as_ref()?)));
            let (exchange, received) = received.ok_or(MethodError::NotAccepted { round, partner })?;
            merge::merge_encoded(model, &exchange.mask, &exchange.sent, received)?;
        }
        if let Some(exchange) = exchange {
            self.spare = exchange.sent.into_buffer();
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        Vec::new()
    }

    fn restore(&mut self, _state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        Ok(())
    }
}
