//! Gossip training: rounds, matching, masks, exchange, merging, models and data.
//!
//! The cores plan ([`plan_round`], [`Coordinator`]), follow ([`RoundCore`]), choose coordinates ([`Mask`]),
//! write values down ([`quantise`]) and average them ([`merge`]); they know neither clock nor socket. The edge
//! (feature `driver`) trains: [`Trainer`] follows the committed rounds with a [`Backend`] of its own, swaps
//! values with partners and reports to the leader. Who leads and what is committed, it is told.

pub mod bench;
mod cities;
mod coordinator;
mod data;
mod draws;
mod external;
mod guard;
pub mod jobfile;
mod lanes;
mod layout;
mod mask;
mod matching;
pub mod merge;
mod method;
mod model;
mod paces;
mod planner;
pub mod privacy;
pub mod quantise;
mod round;
mod script;
pub mod simulate;
mod status;

#[cfg(feature = "driver")]
mod backend;
#[cfg(feature = "driver")]
mod card;
#[cfg(feature = "driver")]
mod checkpoint;
#[cfg(feature = "driver")]
mod compute;
#[cfg(feature = "driver")]
mod driver;
#[cfg(feature = "driver")]
mod evidence;
#[cfg(feature = "driver")]
mod exchange;
#[cfg(feature = "driver")]
mod hash_tree;
#[cfg(feature = "driver")]
mod incoming;
#[cfg(feature = "driver")]
mod ledger;
#[cfg(feature = "driver")]
mod model_file;
#[cfg(feature = "driver")]
mod models;
#[cfg(feature = "driver")]
mod payload;
#[cfg(feature = "driver")]
mod private_steps;
#[cfg(feature = "driver")]
mod ring;
#[cfg(feature = "driver")]
mod steps;
#[cfg(feature = "driver")]
mod trainee;
#[cfg(feature = "driver")]
mod worker;

pub use cities::{CITIES, CITY_KBIT_S, city_bandwidths};
pub use coordinator::{Committed, Coordinator, CoordinatorConfig, Decision};
pub use data::{
    Batch, Batches, DataSpec, Dataset, ParseDataSpecError, ParsePartitionError, Part, Partition,
    PartitionError, SAMPLES_MIN, Samples, Scaling, Share, Source,
};
pub use external::ExternalModel;
pub use layout::{Layout, LayoutError, PARAMETERS_MAX, Parameter, model_hash};
pub use mask::{DeltaError, Mask, Runs, round_seed};
pub use method::{Collective, Done, Gossip, Learnt, Method, MethodError, Work, method};
pub use model::{BYTES, Extent, InputKind, InputShape, Layer, Model, ModelError, NORM_EPSILON, shortcut};
pub use planner::{IMPERCEPTIBLE, Knobs, PlanInput, Threshold, is_dense_next, plan_round};
pub use round::{Effect, Exchanged, Input, RoundCore, Stage};
pub use script::ScriptModel;
pub use status::{TrainingState, TrainingStatus};

#[cfg(feature = "driver")]
pub use backend::child::{ChildError, Introduced, MessageError, VectorsError, introduce};
#[cfg(feature = "driver")]
pub use backend::{BACKENDS, Backend, BackendError, Score, StepReport, backend, check_backend};
#[cfg(feature = "driver")]
pub use checkpoint::{Checkpoint, LoadError, Pending, SaveError};
#[cfg(feature = "driver")]
pub use data::{CsvError, DataError, IdxError, TextError, load};
#[cfg(feature = "driver")]
pub use driver::{Applied, Trainer, TrainerConfig, TrainerError};
#[cfg(feature = "driver")]
pub use evidence::{Evidence, EvidenceError};
#[cfg(feature = "driver")]
pub use model_file::{ExportError, ImportError, export_safetensors, import_safetensors, is_model};
#[cfg(feature = "driver")]
pub use ring::RingError;
#[cfg(feature = "driver")]
pub use worker::consensus_file;
