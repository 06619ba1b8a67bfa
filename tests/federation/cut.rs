//! Mains that cannot reach each other any more while both go on, in a laboratory of network namespaces.

use lapwing_netlab::Lab;

use crate::placed::{Placed, folder, mains};
use crate::world::eventually;

/// Waits until each of two calls the other over so many links.
async fn until_over(links: u64, one: &Placed, other: &Placed) {
    for (caller, called) in [(one, other), (other, one)] {
        let what = format!("{} to call {} over {links} links", caller.name, called.name);
        eventually(&what, async || match caller.call(&called.name)? {
            hops if hops == links => Ok(()),
            hops => Err(format!("it was over {hops}")),
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs root: lays out network namespaces"]
async fn two_mains_between_which_nothing_passes_call_each_other_by_a_third_that_knows_both() {
    let lab = Lab::builder().seed(32).start().unwrap();
    let folder = folder("federation-cut");
    let hosts = ["relay-a", "relay-b", "relay-c"].map(|name| lab.public_host(name).unwrap());
    let mains = mains(&hosts, &folder);
    let ([a, b, _], [one, other, _]) = (&hosts, mains.as_slice()) else {
        unreachable!("there are three")
    };
    until_over(1, one, other).await;
    a.block(b).unwrap();
    b.block(a).unwrap();
    until_over(2, one, other).await;
    a.unblock(b).unwrap();
    b.unblock(a).unwrap();
    until_over(1, one, other).await;
}
