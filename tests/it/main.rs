//! The whole thing with real sockets: a gateway and nodes in this process, asked through their public
//! interfaces only. One file per behaviour.

mod cluster;
mod processes;
mod support;
mod training;
