//! Nothing: an empty stand-in for burn's deprecated backend on libtorch, which no build of ours turns on.
//!
//! Cargo resolves it all the same, since burn's features name it, and with it a version of `torch-sys` for an old
//! libtorch. Only one version of a crate that links a library may be resolved, so that the backend `tch` could not have
//! its own.
