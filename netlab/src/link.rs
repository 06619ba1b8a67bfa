//! The uplink of a host or router: the wire between it and what it is behind.
//!
//! A link starts as a pair of virtual Ethernet devices, which costs nothing. The first shape makes it a pair of TAP
//! devices with a forwarder between them; names, addresses and hardware addresses stay, so that the node's sockets go
//! on, but for multicast groups, which have to be joined again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tappers::Interface;
use tappers::linux::Tap;

use crate::draws::Draws;
use crate::error::LabError;
use crate::forwarder::{Forwarder, Way};
use crate::namespace::Namespace;
use crate::paths::Paths;
use crate::pipe::{Counters, Pipe};
use crate::ruleset;
use crate::shape::Shape;

/// How much later than asked a round trip may be: what scheduling adds on two busy cores.
const TOLERANCE: Duration = Duration::from_millis(5);

/// How much earlier: the clock of the forwarder starts when it reads a frame.
const EARLY: Duration = Duration::from_micros(100);

/// The frame of a probe: Ethernet, IPv4 and UDP headers, and 16 bytes.
const PROBE_FRAME: usize = 14 + 20 + 8 + 16;

/// The uplink of a node.
#[derive(Clone, Debug)]
pub struct Link {
    wire: Arc<Wire>,
}

#[derive(Debug)]
struct Wire {
    node: String,
    number: u16,
    seed: u64,
    lower: Arc<Namespace>,
    lower_device: &'static str,
    upper: Arc<Namespace>,
    upper_device: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ends: Ends,
    mtu: u16,
    /// `None`: a pair of virtual Ethernet devices.
    forwarder: Option<Forwarder>,
    cut_up: bool,
    cut_down: bool,
    unplugged: bool,
    blocked: Vec<IpAddr>,
}

/// What `ip` is told of the two ends once their devices are there, and who answers a probe.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) lower: String,
    pub(crate) upper: String,
    pub(crate) gateway: Ipv4Addr,
}

impl Link {
    /// Lays the first wire of a node, from `lower_device` of `lower` to a device of `upper`.
    pub(crate) fn lay(
        node: &str,
        number: u16,
        seed: u64,
        (lower, lower_device): (&Arc<Namespace>, &'static str),
        upper: &Arc<Namespace>,
        ends: Ends,
    ) -> Result<Self, LabError> {
        let state = State {
            ends,
            mtu: 1_500,
            forwarder: None,
            cut_up: false,
            cut_down: false,
            unplugged: false,
            blocked: Vec::new(),
        };
        let wire = Wire {
            node: node.into(),
            number,
            seed,
            lower: lower.clone(),
            lower_device,
            upper: upper.clone(),
            upper_device: format!("p{number}"),
            state: Mutex::new(state),
        };
        wire.lower.ip(&format!(
            "link set dev lo up\nlink add {lower_device} type veth peer name {} netns {}\n{}",
            wire.upper_device,
            upper.path()?,
            wire.lower_lines(&wire.state())
        ))?;
        wire.upper.ip(&wire.upper_lines(&wire.state()))?;
        wire.await_carrier(&wire.state())?;
        Ok(Self { wire: Arc::new(wire) })
    }

    /// Shapes both directions alike, and measures that it came about: see [`Self::shape_each`].
    ///
    /// # Errors
    ///
    /// [`LabError::NotAsAsked`] if the round trip is not the one that was asked for.
    pub fn shape(&self, shape: Shape) -> Result<(), LabError> {
        self.shape_each(shape, shape)
    }

    /// Shapes the directions, and measures the round trip over the link, which takes two or three of it. To be used
    /// while the link is quiet; [`Self::reshape`] does not measure.
    ///
    /// # Errors
    ///
    /// [`LabError::NotAsAsked`] if the round trip is not the one that was asked for.
    pub fn shape_each(&self, up: Shape, down: Shape) -> Result<(), LabError> {
        self.reshape(up, down)?;
        self.verify()
    }

    /// Shapes the directions without measuring, for a change under traffic. What is on its way arrives as before.
    ///
    /// # Errors
    ///
    /// If a shape is out of reason, or the link has to be replaced by a shaped one and the system refuses that.
    pub fn reshape(&self, up: Shape, down: Shape) -> Result<(), LabError> {
        up.check()?;
        down.check()?;
        let mut state = self.wire.state();
        match &state.forwarder {
            Some(forwarder) => forwarder.set_shape(up, down),
            None => state.forwarder = Some(self.wire.replace(&state, up, down)?),
        }
        Ok(())
    }

    /// Shapes what the node sends to certain addresses, after the link's own shape.
    pub(crate) fn shape_path(&self, to: &[IpAddr], shape: Shape) -> Result<(), LabError> {
        shape.check()?;
        let mut state = self.wire.state();
        let forwarder = match state.forwarder.take() {
            Some(forwarder) => forwarder,
            None => self.wire.replace(&state, Shape::default(), Shape::default())?,
        };
        forwarder.set_path(to, shape);
        state.forwarder = Some(forwarder);
        Ok(())
    }

    /// Measures the round trip over the link and compares it with the shape. A link without a shape, or one that
    /// is cut or loses everything, has nothing to compare.
    ///
    /// # Errors
    ///
    /// [`LabError::NotAsAsked`] if the shortest of several round trips is shorter than asked, or more than 5 ms (and
    /// the jitter) longer.
    pub fn verify(&self) -> Result<(), LabError> {
        let state = self.wire.state();
        if state.forwarder.is_none() || !state.carries() {
            return Ok(());
        }
        let (gateway, asked) = (state.ends.gateway, state.asked());
        let jitter = state.shapes().iter().map(|shape| shape.jitter).sum::<Duration>();
        drop(state);
        let latest = asked + jitter + TOLERANCE;
        let earliest = asked.saturating_sub(EARLY);
        let got = self.wire.shortest_round_trip(gateway, asked, latest)?;
        if got.is_some_and(|got| (earliest..=latest).contains(&got)) {
            return Ok(());
        }
        Err(LabError::NotAsAsked {
            node: self.wire.node.clone(),
            asked,
            got,
        })
    }

    /// What the link did in one direction. All zero until it has its first shape.
    pub fn counters(&self, way: Way) -> Counters {
        let state = self.wire.state();
        state
            .forwarder
            .as_ref()
            .map_or_else(Counters::default, |forwarder| forwarder.counters(way))
    }

    /// Lets nothing through in one direction, and says so to nobody: a one-way partition.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn cut(&self, way: Way) -> Result<(), LabError> {
        self.set_cut(way, true)
    }

    /// Lets everything through again in one direction.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn mend(&self, way: Way) -> Result<(), LabError> {
        self.set_cut(way, false)
    }

    /// Takes the plug out: both ends see that the link is down, and the node loses its routes.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn unplug(&self) -> Result<(), LabError> {
        let mut state = self.wire.state();
        self.wire
            .upper
            .ip(&format!("link set dev {} down", self.wire.upper_device))?;
        self.wire
            .lower
            .ip(&format!("link set dev {} down", self.wire.lower_device))?;
        state.unplugged = true;
        Ok(())
    }

    /// Puts the plug back in.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub fn plug(&self) -> Result<(), LabError> {
        let mut state = self.wire.state();
        self.wire.configure(&state)?;
        state.unplugged = false;
        self.wire.await_carrier(&state)
    }

    /// Changes the largest packet that the link takes, 1,500 bytes at first.
    ///
    /// # Errors
    ///
    /// If it is not from 1,280 (what IPv6 asks for) to 9,000 bytes, or the system refuses.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), LabError> {
        if !(1_280..=9_000).contains(&mtu) {
            return Err(LabError::Unsupported(
                "a link takes packets of 1,280 to 9,000 bytes",
            ));
        }
        let mut state = self.wire.state();
        state.mtu = mtu;
        self.wire.configure(&state)
    }

    /// Drops what the node sends to an address, before anybody else sees it.
    pub(crate) fn block(&self, addresses: &[IpAddr]) -> Result<(), LabError> {
        let mut state = self.wire.state();
        state.blocked.extend_from_slice(addresses);
        self.wire.raise_barriers(&state)
    }

    pub(crate) fn unblock(&self, addresses: &[IpAddr]) -> Result<(), LabError> {
        let mut state = self.wire.state();
        state.blocked.retain(|blocked| !addresses.contains(blocked));
        self.wire.raise_barriers(&state)
    }

    /// Gives the ends other addresses.
    pub(crate) fn renumber(&self, ends: Ends) -> Result<(), LabError> {
        let mut state = self.wire.state();
        self.wire
            .lower
            .ip(&format!("addr flush dev {} scope global", self.wire.lower_device))?;
        self.wire
            .upper
            .ip(&format!("addr flush dev {} scope global", self.wire.upper_device))?;
        state.ends = ends;
        self.wire.configure(&state)?;
        self.wire.await_carrier(&state)
    }

    /// What its devices are numbered by.
    pub(crate) fn number(&self) -> u16 {
        self.wire.number
    }

    /// Stops the forwarder, which has the devices of a shaped link with it.
    pub(crate) fn close(&self) {
        let forwarder = self.wire.state().forwarder.take();
        drop(forwarder);
    }

    fn set_cut(&self, way: Way, cut: bool) -> Result<(), LabError> {
        let mut state = self.wire.state();
        match way {
            Way::Up => state.cut_up = cut,
            Way::Down => state.cut_down = cut,
        }
        self.wire.raise_barriers(&state)
    }
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a pair of TAP devices with a forwarder out of the pair of virtual Ethernet devices.
    fn replace(&self, state: &State, up: Shape, down: Shape) -> Result<Forwarder, LabError> {
        self.lower.ip(&format!("link del {}", self.lower_device))?;
        let attach = |name: &str| Interface::new(name).and_then(Tap::new_named);
        let failed = LabError::system("attach to a TAP device");
        let lower = self.lower.enter(|| attach(self.lower_device))?.map_err(&failed)?;
        let upper = self
            .upper
            .enter(|| attach(&self.upper_device))?
            .map_err(&failed)?;
        let pipe = |shape, way| Pipe::new(shape, Draws::seed_of(self.seed, way));
        let paths = Paths::new(Draws::seed_of(self.seed, 3));
        let forwarder = Forwarder::start(lower, upper, pipe(up, 1), pipe(down, 2), paths)?;
        self.configure(state)?;
        // They went with the devices.
        if state.cut_up || state.cut_down || !state.blocked.is_empty() {
            self.raise_barriers(state)?;
        }
        Ok(forwarder)
    }

    fn configure(&self, state: &State) -> Result<(), LabError> {
        // The upper end first: the lower one's routes need nothing of it, but what they carry does.
        self.upper.ip(&self.upper_lines(state))?;
        self.lower.ip(&self.lower_lines(state))
    }

    fn lower_lines(&self, state: &State) -> String {
        self.device_line(self.lower_device, 1, state.mtu) + &state.ends.lower
    }

    fn upper_lines(&self, state: &State) -> String {
        self.device_line(&self.upper_device, 2, state.mtu) + &state.ends.upper
    }

    /// The hardware address is the same for whatever device is there, so that nobody's neighbour table is out of
    /// date; the queue is long enough for a forwarder that wakes late, since a TAP device drops what is beyond it.
    fn device_line(&self, device: &str, end: u8, mtu: u16) -> String {
        let [high, low] = self.number.to_be_bytes();
        format!(
            "link set dev {device} address 02:6c:62:{high:02x}:{low:02x}:{end:02x} mtu {mtu} txqueuelen 4096 up\n"
        )
    }

    fn raise_barriers(&self, state: &State) -> Result<(), LabError> {
        self.upper.nft(&ruleset::barrier(
            &self.upper_device,
            state.cut_up,
            &state.blocked,
        ))?;
        self.lower
            .nft(&ruleset::barrier(self.lower_device, state.cut_down, &[]))
    }

    /// Returns once a packet gets there and back. Devices that were told to be up are so a little later, and what they
    /// are given in between is lost without a word.
    fn await_carrier(&self, state: &State) -> Result<(), LabError> {
        if !state.carries() {
            return Ok(());
        }
        match self.shortest_round_trip(state.ends.gateway, state.asked(), Duration::MAX)? {
            Some(_) => Ok(()),
            None => Err(LabError::NotAsAsked {
                node: self.node.clone(),
                asked: state.asked(),
                got: None,
            }),
        }
    }

    /// The shortest round trip of probes to the other end, until one is as short as `good`.
    #[expect(clippy::disallowed_methods, reason = "a measurement of real time")]
    fn shortest_round_trip(
        &self,
        gateway: Ipv4Addr,
        asked: Duration,
        good: Duration,
    ) -> Result<Option<Duration>, LabError> {
        let failed = LabError::system("probe a link");
        let bind = |at: Ipv4Addr| -> io::Result<_> {
            let socket = UdpSocket::bind((at, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        let echo = self.upper.enter(|| bind(gateway))?.map_err(&failed)?;
        let probe = self
            .lower
            .enter(|| bind(Ipv4Addr::UNSPECIFIED))?
            .map_err(&failed)?;
        let measure = || -> io::Result<Option<Duration>> {
            let target = SocketAddr::from((gateway, echo.local_addr()?.port()));
            let patience = asked * 2 + Duration::from_millis(100);
            // Room for the first that waits for the hardware address, and for lost ones.
            let deadline = Instant::now() + Duration::from_secs(3) + asked * 6;
            let mut sent: Vec<Instant> = Vec::new();
            let mut shortest: Option<Duration> = None;
            while Instant::now() < deadline && shortest.is_none_or(|shortest| shortest > good) {
                let number = sent.len() as u128;
                let sent_at = Instant::now();
                sent.push(sent_at);
                // A route that is not there yet is as good as a lost probe.
                let _ = probe.send_to(&number.to_be_bytes(), target);
                loop {
                    let left = patience.saturating_sub(sent_at.elapsed());
                    let Some(timeout) = Timespec::try_from(left).ok().filter(|_| !left.is_zero()) else {
                        break;
                    };
                    let waits = [&echo, &probe].map(|socket| PollFd::new(socket, PollFlags::IN));
                    poll(&mut { waits }, Some(&timeout))?;
                    let mut bytes = [0; 16];
                    while let Ok((16, from)) = echo.recv_from(&mut bytes) {
                        let _ = echo.send_to(&bytes, from);
                    }
                    let Ok(16) = probe.recv(&mut bytes) else { continue };
                    // An answer to an earlier one tells as much.
                    let answered = usize::try_from(u128::from_be_bytes(bytes)).ok();
                    if let Some(sent_at) = answered.and_then(|number| sent.get(number)) {
                        let took = sent_at.elapsed();
                        shortest = Some(shortest.map_or(took, |shortest| shortest.min(took)));
                        break;
                    }
                }
            }
            Ok(shortest)
        };
        measure().map_err(&failed)
    }
}

impl State {
    /// Whether a packet can get there and back at all.
    fn carries(&self) -> bool {
        let shapes = self.shapes();
        !(self.cut_up || self.cut_down || self.unplugged || shapes.iter().any(|shape| shape.loss >= 1.0))
    }

    /// The shortest round trip that the shapes allow.
    fn asked(&self) -> Duration {
        self.shapes()
            .iter()
            .map(|shape| shape.delay + shape.airtime(PROBE_FRAME))
            .sum()
    }

    fn shapes(&self) -> [Shape; 2] {
        let none = || [Shape::default(); 2];
        self.forwarder.as_ref().map_or_else(none, |forwarder| {
            [Way::Up, Way::Down].map(|way| forwarder.shape(way))
        })
    }
}
