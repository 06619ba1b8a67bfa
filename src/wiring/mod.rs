//! What one room needs of another, carried across as values. No protocol logic: that is in the rooms.

pub(crate) mod entry;
pub(crate) mod federated;
pub(crate) mod feeds;
pub(crate) mod mains;
pub(crate) mod membership;
pub(crate) mod registration;
pub(crate) mod reports;
pub(crate) mod rounds;
