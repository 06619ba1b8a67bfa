//! An error told with its causes.

use std::error::Error;

/// An error and its sources on one line, outermost first.
///
/// What has been said already is not said twice: transparent variants repeat their source, and some libraries quote
/// theirs.
///
/// ```
/// let error = std::io::Error::other("the cable is out");
/// assert_eq!(lapwing_base::chain(&error), "the cable is out");
/// ```
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The last cause alone, for errors whose outer ones only name what was asked for ("connection refused" instead of
/// "error sending request").
pub fn innermost(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => innermost(cause),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the port is taken")]
    struct Port;

    #[derive(Debug, thiserror::Error)]
    enum Start {
        #[error("the node cannot listen")]
        Listen(#[source] Port),
        #[error(transparent)]
        Transparent(Port),
    }

    #[test]
    fn causes_follow_in_order_and_nothing_is_said_twice() {
        assert_eq!(
            chain(&Start::Listen(Port)),
            "the node cannot listen: the port is taken"
        );
        assert_eq!(chain(&Start::Transparent(Port)), "the port is taken");
        assert_eq!(innermost(&Start::Listen(Port)), "the port is taken");
    }
}
