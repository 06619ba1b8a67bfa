//! The priority of each stream on a QUIC connection: quinn sends of the highest first, and takes turns within one.

use lapwing_base::Class;

/// libp2p's own: identification, pings, relayed circuits. Below everything that a cluster lives by.
pub(crate) const LIBP2P: i32 = 10;

/// Of a class, on the connection that carries it.
pub(crate) const fn of(class: Class) -> i32 {
    match class {
        Class::Control => 50,
        Class::Consensus => 40,
        Class::Call => 30,
        Class::Maintenance => 2,
        Class::Model => 1,
    }
}

/// Whether a class travels on the bulk lane.
pub(crate) const fn is_bulk(class: Class) -> bool {
    match class {
        Class::Control | Class::Consensus | Class::Call => false,
        Class::Maintenance | Class::Model => true,
    }
}
