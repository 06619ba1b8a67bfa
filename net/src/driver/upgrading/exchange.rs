//! The two sides of the exchange over one substream (libp2p's specification of DCUtR, "The Protocol"). Dials nobody.

use std::io;

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::message::{Malformed, Message, write_varint};
use crate::driver::now;
use lapwing_base::Multiaddr;

/// The exchange has come to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the peer says something at the wrong moment")]
    Unexpected,
}

/// Of the side that was dialed over the circuit: gives the peer's addresses when the peer begins to dial.
pub(super) async fn begin(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    ours: Vec<Multiaddr>,
) -> Result<Vec<Multiaddr>, ExchangeError> {
    let asked_at = now();
    send(&mut stream, &Message::Connect(ours)).await?;
    let Message::Connect(theirs) = receive(&mut stream).await? else {
        return Err(ExchangeError::Unexpected);
    };
    let rtt = now().saturating_duration_since(asked_at);
    send(&mut stream, &Message::Sync).await?;
    stream.close().await?;
    tokio::time::sleep(rtt / 2).await;
    Ok(theirs)
}

/// Of the side that has dialed the circuit: gives the peer's addresses when they are to be dialed.
pub(super) async fn respond(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    ours: Vec<Multiaddr>,
) -> Result<Vec<Multiaddr>, ExchangeError> {
    let Message::Connect(theirs) = receive(&mut stream).await? else {
        return Err(ExchangeError::Unexpected);
    };
    send(&mut stream, &Message::Connect(ours)).await?;
    match receive(&mut stream).await? {
        Message::Sync => Ok(theirs),
        Message::Connect(_) => Err(ExchangeError::Unexpected),
    }
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> io::Result<()> {
    let body = message.to_bytes();
    let mut bytes = Vec::with_capacity(body.len() + 2);
    write_varint(body.len() as u64, &mut bytes);
    bytes.extend(body);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn receive(stream: &mut (impl AsyncRead + Unpin)) -> Result<Message, ExchangeError> {
    // Of a message that is not too long the length takes two bytes at most.
    let mut length = 0;
    for shift in [0, 7] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            break;
        }
        if shift == 7 {
            return Err(Malformed.into());
        }
    }
    if length > Message::SIZE_MAX {
        return Err(Malformed.into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Message::parse(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;
    use tokio_util::compat::TokioAsyncReadCompatExt as _;

    fn addresses(port: u16) -> Vec<Multiaddr> {
        vec![format!("/ip4/192.0.2.1/udp/{port}/quic-v1").parse().unwrap()]
    }

    #[tokio::test]
    async fn each_side_learns_where_the_other_is() {
        let (one, other) = tokio::io::duplex(16);
        let (theirs, ours) = tokio::join!(
            begin(one.compat(), addresses(1)),
            respond(other.compat(), addresses(2))
        );
        assert_eq!(theirs.unwrap(), addresses(2));
        assert_eq!(ours.unwrap(), addresses(1));
    }

    #[tokio::test]
    async fn what_comes_at_the_wrong_moment_or_is_too_long_is_refused() {
        for said in [
            &[3, 0x08, 0xac, 0x02][..],
            &[0xff, 0xff, 0xff, 0xff],
            &[0xff, 0x7f],
        ] {
            let stream = Cursor::new([said, &[0; 64]].concat());
            let error = respond(stream, Vec::new()).await.unwrap_err();
            assert!(!matches!(error, ExchangeError::Io(_)), "{error:?}");
        }
    }
}
