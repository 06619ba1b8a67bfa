//! What happens to networks, and how long sessions take to come back from it.

use std::time::{Duration, Instant};

use lapwing_net::Path;
use lapwing_netlab::{Nat, Shape, Way};

use crate::counting::{Answering, Counting};
use crate::nodes::{LabNode, eventually};
use crate::world::{DELAY, World};

/// A few seconds: nothing that nobody answers may hold anybody up for longer.
const BACK: Duration = Duration::from_secs(8);

/// Answers that come one after another: it works again, and goes on working.
const STEADY: usize = 25;

#[test]
#[ignore = "needs root"]
fn sessions_come_back_when_a_router_reboots() {
    let translating = || Nat::port_restricted().translated();
    let world = World::settled(2, &[translating(), translating()]);
    let (a, b) = (&world.homes[0], &world.homes[1]);
    a.ask(b, Duration::from_secs(10)).unwrap();
    eventually("the path is direct", Duration::from_secs(20), || {
        a.path(b) == Some(Path::Direct)
    });
    let main = &world.mains[0];
    let answering = [main, a, b].map(Answering::start);
    let to_main = Counting::start(a, main);
    let (to_b, to_a) = (Counting::start(a, b), Counting::start(b, a));
    for counting in [&to_main, &to_b, &to_a] {
        counting.await_answers(STEADY, BACK);
    }
    println!(
        "\n{:16} {:>12} {:>12} {:>12}",
        "rebooted", to_main.name, to_b.name, to_a.name
    );
    for (router, name) in world
        .routers
        .iter()
        .zip(["a's router", "b's router"])
        .chain(world.routers.iter().zip(["a's again", "b's again"]))
    {
        let since = Instant::now();
        router.reboot().unwrap();
        for counting in [&to_main, &to_b, &to_a] {
            await_back(counting);
        }
        let silences = [&to_main, &to_b, &to_a].map(|counting| counting.longest_silence(since));
        println!(
            "{name:16} {:>12.2?} {:>12.2?} {:>12.2?}",
            silences[0], silences[1], silences[2]
        );
        assert_eq!(
            to_main.channels_lost(),
            0,
            "whoever has dialed a main is followed to another port"
        );
        assert!(silences.iter().all(|silence| *silence < BACK), "{silences:?}");
        eventually("the path is direct again", Duration::from_secs(30), || {
            a.path(b) == Some(Path::Direct)
        });
        world.refresh();
    }
    to_main.finish(&answering[0]);
    to_a.finish(&answering[1]);
    to_b.finish(&answering[2]);
}

#[test]
#[ignore = "needs root"]
fn the_homes_of_a_relay_that_is_killed_turn_to_others() {
    let world = World::settled(3, &[Nat::symmetric(), Nat::symmetric()]);
    for host in &world.main_hosts {
        host.link().reshape(Shape::default(), Shape::default()).unwrap();
    }
    let (a, b) = (&world.homes[0], &world.homes[1]);
    a.ask(b, Duration::from_secs(10)).unwrap();
    eventually("it is known to be hopeless", Duration::from_secs(30), || {
        a.peer(b)
            .and_then(|peer| peer.relayed_because)
            .is_some_and(|because| !because.is_transient())
    });
    eventually("one path is left", Duration::from_secs(30), || {
        [(a, b), (b, a)]
            .iter()
            .all(|(from, to)| from.peer(to).is_some_and(|peer| peer.connections == 1))
    });
    let answering = [Answering::start(a), Answering::start(b)];
    let (to_b, to_a) = (Counting::start(a, b), Counting::start(b, a));
    to_b.await_answers(STEADY, BACK);
    to_a.await_answers(STEADY, BACK);
    // The one that carries them.
    let address = a.peer(b).and_then(|peer| peer.address).unwrap();
    println!("\nrelayed over {address}");
    let carries = |main: &LabNode| address.to_string().contains(&main.id().to_string());
    let relay = world.mains.iter().position(carries).unwrap();
    let killed = &world.mains[relay];
    // Like a power cut: no packet says goodbye.
    let dead = Shape::default().with_loss(1.0);
    let since = Instant::now();
    world.main_hosts[relay].link().reshape(dead, dead).unwrap();
    let mut noticed = [None; 2];
    let mut elsewhere = [None; 2];
    eventually(
        "there are reservations elsewhere",
        Duration::from_secs(20),
        || {
            for (number, home) in [a, b].into_iter().enumerate() {
                let gone = home.peer(killed).is_none_or(|peer| !peer.connected);
                let held = home.reach().reservations;
                let moved = held.len() == 2 && held.iter().all(|(relay, _)| *relay != killed.id());
                noticed[number] = noticed[number].or_else(|| gone.then(|| since.elapsed()));
                elsewhere[number] = elsewhere[number].or_else(|| moved.then(|| since.elapsed()));
            }
            noticed.iter().chain(&elsewhere).all(Option::is_some)
        },
    );
    let [noticed, elsewhere] = [noticed, elsewhere].map(|after| after.map(Option::unwrap_or_default));
    world.refresh();
    let silences = [&to_b, &to_a].map(|counting| {
        await_back(counting);
        counting.longest_silence(since)
    });
    println!(
        "noticed after {noticed:.2?}, reservations elsewhere after {elsewhere:.2?}, answers after {silences:.2?}"
    );
    assert!(
        noticed.iter().all(|after| *after < Duration::from_secs(1)),
        "{noticed:?}"
    );
    assert!(
        elsewhere.iter().all(|after| *after < Duration::from_secs(5)),
        "{elsewhere:?}"
    );
    assert!(
        silences.iter().all(|after| *after < Duration::from_secs(5)),
        "{silences:?}"
    );
    to_a.finish(&answering[0]);
    to_b.finish(&answering[1]);
}

#[test]
#[ignore = "needs root"]
fn whatever_befalls_an_uplink_sessions_come_back_and_nothing_grows() {
    let world = World::settled(2, &[Nat::port_restricted(), Nat::port_restricted()]);
    let (a, b) = (&world.homes[0], &world.homes[1]);
    a.ask(b, Duration::from_secs(10)).unwrap();
    eventually("the path is direct", Duration::from_secs(20), || {
        a.path(b) == Some(Path::Direct)
    });
    let main = &world.mains[0];
    let answering = [main, a, b].map(Answering::start);
    let countings = [
        Counting::start(a, main),
        Counting::start(b, a),
        Counting::start(a, b),
    ];
    for counting in &countings {
        counting.await_answers(STEADY, BACK);
    }
    main.ask(&world.mains[1], Duration::from_secs(10)).unwrap();
    let everybody: Vec<_> = world.mains.iter().chain(&world.homes).collect();
    eventually("only the best paths are left", Duration::from_secs(90), || {
        everybody
            .iter()
            .all(|node| node.links() as usize == everybody.len() - 1)
    });
    let before = Size::of(&everybody);
    let (router, host) = (&world.routers[0], &world.home_hosts[0]);
    let shape = Shape::delayed(DELAY);
    let slow = Shape::delayed(Duration::from_millis(295));
    let befall: [Fault<'_>; 6] = [
        (
            "another address outside",
            Box::new(|| {
                router.renumber().unwrap();
            }),
            Duration::ZERO,
            Box::new(|| ()),
        ),
        (
            "another address inside",
            Box::new(|| {
                host.renumber().unwrap();
            }),
            Duration::ZERO,
            Box::new(|| ()),
        ),
        (
            "5 % loss for 10 s",
            Box::new(|| {
                router
                    .link()
                    .reshape(shape.with_loss(0.05), shape.with_loss(0.05))
                    .unwrap()
            }),
            Duration::from_secs(10),
            Box::new(|| router.link().reshape(shape, shape).unwrap()),
        ),
        (
            "nothing goes up for 5 s",
            Box::new(|| router.link().cut(Way::Up).unwrap()),
            Duration::from_secs(5),
            Box::new(|| router.link().mend(Way::Up).unwrap()),
        ),
        (
            "nothing comes down for 5 s",
            Box::new(|| router.link().cut(Way::Down).unwrap()),
            Duration::from_secs(5),
            Box::new(|| router.link().mend(Way::Down).unwrap()),
        ),
        (
            "600 ms there and back for 20 s",
            Box::new(|| router.link().reshape(slow, slow).unwrap()),
            Duration::from_secs(20),
            Box::new(|| router.link().reshape(shape, shape).unwrap()),
        ),
    ];
    println!(
        "\n{:32} {:>14} {:>14} {:>14}",
        "longest silence", countings[0].name, countings[1].name, countings[2].name
    );
    for (what, begin, lasts, end) in befall {
        let since = Instant::now();
        begin();
        passes(lasts);
        end();
        for counting in &countings {
            await_back(counting);
        }
        world.refresh();
        let silences = [0, 1, 2].map(|number: usize| countings[number].longest_silence(since));
        println!(
            "{what:32} {:>14.2?} {:>14.2?} {:>14.2?}",
            silences[0], silences[1], silences[2]
        );
        let least = if what.contains("nothing") {
            lasts
        } else {
            Duration::ZERO
        };
        assert!(
            silences.iter().all(|silence| *silence < least + BACK),
            "{what}: {silences:?}"
        );
        eventually("the path is direct again", Duration::from_secs(45), || {
            a.path(b) == Some(Path::Direct)
        });
    }
    let lost: Vec<_> = countings
        .into_iter()
        .zip(&answering)
        .map(|(counting, answering)| counting.finish(answering))
        .collect();
    println!("channels lost on the way: {lost:?}");
    // Links that were replaced end with what ran over them.
    let mut after = Size::of(&everybody);
    let patience = Instant::now();
    while !after.fits(&before) && patience.elapsed() < Duration::from_secs(60) {
        std::thread::park_timeout(Duration::from_millis(100));
        after = Size::of(&everybody);
    }
    println!("before {before:?}\nafter  {after:?}");
    assert!(after.fits(&before));
}

/// What happens, how it begins, how long it lasts and how it ends.
type Fault<'a> = (&'a str, Box<dyn Fn() + 'a>, Duration, Box<dyn Fn() + 'a>);

/// What nodes hold.
#[derive(Debug)]
struct Size {
    tasks: Vec<usize>,
    links: Vec<u32>,
    files: Vec<String>,
}

impl Size {
    fn of(nodes: &[&LabNode]) -> Self {
        Self {
            tasks: nodes.iter().map(|node| node.tasks()).collect(),
            links: nodes.iter().map(|node| node.links()).collect(),
            files: files(),
        }
    }

    /// Whether there is no more than there was; a note or two may be on their way.
    fn fits(&self, before: &Self) -> bool {
        let tasks = self
            .tasks
            .iter()
            .zip(&before.tasks)
            .all(|(now, then)| *now <= *then + 4);
        let links = self
            .links
            .iter()
            .zip(&before.links)
            .all(|(now, then)| now <= then);
        tasks && links && self.files.len() <= before.files.len()
    }
}

/// What this process has open.
fn files() -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    // One that was closed meanwhile is not open.
    let mut files: Vec<_> = open
        .filter_map(|file| std::fs::read_link(file.path()).ok())
        .map(|to| to.display().to_string())
        .collect();
    files.sort();
    files
}

fn await_back(counting: &Counting) {
    counting.await_answers(STEADY, Duration::from_secs(60));
}

/// Lets a fault last.
fn passes(time: Duration) {
    let until = Instant::now() + time;
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(left);
    }
}
