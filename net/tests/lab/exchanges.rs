//! How long two partners take to exchange a model's values, over links whose two ways differ.

use std::time::{Duration, Instant};

use lapwing_base::Role;
use lapwing_net::Channel;
use lapwing_netlab::{Lab, Nat, Rate, Shape};
use tokio::sync::mpsc;

use crate::latency::MODEL;
use crate::nodes::{LabNode, enrol};
use crate::world::ANY;

/// A hundred thousand values of four bytes each way.
const FRAMES: usize = 8;
const FRAME: usize = 50_000;

const EXCHANGES: usize = 8;

/// Two round trips until an answer begins to arrive take as long again where the link is fast; nothing else may.
const TIMES_MAX: f64 = 2.6;

/// In which partners train.
const PAUSE: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root"]
fn partners_exchange_at_about_the_speed_of_their_links() {
    println!(
        "\n{:>14} {:>8}  times what each way needs for the bytes, exchange by exchange",
        "Mbit/s", "RTT"
    );
    for (up, down, rtt) in [
        (20_000, 20_000, 20),
        (50_000, 50_000, 20),
        (5_000, 5_000, 20),
        (5_000, 20_000, 20),
        (5_000, 1_300, 20),
        (1_300, 5_000, 20),
        (20_000, 20_000, 100),
    ] {
        let times = run([up, down], Duration::from_millis(rtt));
        let [up_times, down_times] =
            [0, 1].map(|way| times.iter().map(|times| times[way]).collect::<Vec<f64>>());
        println!(
            "{:>6.1} {:>6.1} {rtt:>6}ms  up {up_times:.2?}  down {down_times:.2?}",
            up as f64 / 1e3,
            down as f64 / 1e3,
        );
        for times in [up_times, down_times] {
            // The first begins with nothing known of the link.
            let mut later = times[1..].to_vec();
            later.sort_by(f64::total_cmp);
            assert!(
                later[later.len() / 2] < TIMES_MAX,
                "{up} and {down} kbit/s: {times:?}"
            );
        }
    }
}

/// Of each exchange and way.
fn run(kbit: [u64; 2], rtt: Duration) -> Vec<[f64; 2]> {
    let lab = Lab::builder().seed(9).start().unwrap();
    let main = ["/ip4/0.0.0.0/udp/4001/quic-v1"];
    let main = [LabNode::start(
        &lab.public_host("main").unwrap(),
        Some(Role::Main),
        &main,
    )];
    let router = lab.router("nat", Nat::port_restricted()).unwrap();
    let [up, down] = kbit.map(|kbit| {
        Shape::default()
            .with_rate(Rate::kbit(kbit))
            .with_delay(rtt / 2)
            .with_queue(Duration::from_millis(200))
    });
    router.link().shape_each(up, down).unwrap();
    let home = [LabNode::start(&router.host("home").unwrap(), None, &[ANY])];
    enrol(&main, &home);
    let ([home], [main]) = (home, main);
    home.ask(&main, Duration::from_secs(10)).unwrap();
    let mut inbound = main.network.serve(MODEL, 1);
    let (answered, mut answers) = mpsc::channel(1);
    main.spawn(async move {
        while let Some(channel) = inbound.recv().await {
            if answered.send(exchange(channel).await).await.is_err() {
                break;
            }
        }
    });
    let (network, peer) = (home.network.clone(), main.id());
    home.run(async move {
        let mut times = Vec::new();
        for _ in 0..EXCHANGES {
            let channel = network.open(peer, MODEL, Duration::from_secs(10)).await.unwrap();
            let down = exchange(channel).await;
            let up = answers.recv().await.unwrap();
            let least = kbit.map(|kbit| (FRAMES * FRAME * 8) as f64 / kbit as f64 / 1e3);
            times.push([up.as_secs_f64() / least[0], down.as_secs_f64() / least[1]]);
            tokio::time::sleep(PAUSE).await;
        }
        times
    })
}

/// Sends and receives at once, and says how long it took to receive.
async fn exchange(channel: Channel) -> Duration {
    let begun = Instant::now();
    let (mut sending, mut receiving) = channel.split();
    let send = async {
        let frame = vec![3; FRAME];
        for _ in 0..FRAMES {
            sending.send(&frame).await.unwrap();
        }
    };
    let receive = async {
        for _ in 0..FRAMES {
            receiving.receive().await.unwrap().unwrap();
        }
        begun.elapsed()
    };
    let ((), took) = tokio::join!(send, receive);
    took
}
