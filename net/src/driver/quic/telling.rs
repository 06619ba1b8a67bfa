//! What this end has still to tell the other about their session. Knows nothing of connections.

use std::future::pending;
use std::mem::discriminant;

use futures::future::BoxFuture;

use super::message::Message;

/// Messages go one after the other, and of those that wait only the last of each sort counts: a peer that takes none
/// makes us hold a handful, however often it moves.
#[derive(Default)]
pub(super) struct Telling {
    waiting: Vec<Message>,
    under_way: Option<BoxFuture<'static, ()>>,
}

impl Telling {
    /// It is told after all that wait; one of its sort among these is not told any more.
    pub(super) fn add(&mut self, message: Message) {
        self.waiting
            .retain(|other| discriminant(other) != discriminant(&message));
        self.waiting.push(message);
    }

    /// Tells the next, by what `tell` makes of it; waits for ever where there is none. May be cancelled without losing
    /// anything.
    pub(super) async fn next(&mut self, tell: impl FnOnce(Message) -> BoxFuture<'static, ()>) {
        if self.under_way.is_none() && !self.waiting.is_empty() {
            self.under_way = Some(tell(self.waiting.remove(0)));
        }
        match &mut self.under_way {
            Some(telling) => telling.await,
            None => pending().await,
        }
        self.under_way = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use futures::FutureExt as _;
    use std::net::SocketAddr;

    #[test]
    fn a_peer_that_moves_and_takes_nothing_is_told_where_it_is_at_last() {
        let at = |port: u16| Message::Observed(SocketAddr::from(([192, 0, 2, 1], port)));
        let mut telling = Telling::default();
        telling.add(at(1));
        assert_eq!(telling.next(|_| pending().boxed()).now_or_never(), None);
        for port in 2..1000 {
            telling.add(at(port));
            telling.add(Message::BulkWanted);
            let told = telling.next(|_| unreachable!("the first is under way"));
            assert_eq!(told.now_or_never(), None);
        }
        // It takes the first after all.
        telling.under_way = Some(async {}.boxed());
        assert_eq!(telling.next(|_| unreachable!()).now_or_never(), Some(()));
        let (heard, hears) = std::sync::mpsc::channel();
        loop {
            let heard = heard.clone();
            let tell = |message| {
                heard.send(message).unwrap();
                async {}.boxed()
            };
            if telling.next(tell).now_or_never().is_none() {
                break;
            }
        }
        assert_eq!(
            hears.try_iter().collect::<Vec<_>>(),
            [at(999), Message::BulkWanted]
        );
    }
}
