//! Two exchanges that talk, with everything that may come between.

use std::collections::VecDeque;

use proptest::prelude::*;
use underseal_abi::THIS_NODE;

use super::*;
use crate::{
    Cipher, Expects, Identity, Party,
    helper::testing::{CLIENT, SERVER, end},
    testing::{Ca, identity},
};

const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
const TILL: &str = "spiffe://example.org/ns/shop/sa/till";
const OTHER: u32 = THIS_NODE + 1;

/// A node with one end of one connection.
struct Side {
    exchange: Exchange<()>,
    identity: Identity,
    conn: Conn,
    seals: bool,
    held: bool,
    link: Option<LinkId>,
    letters: VecDeque<Letter>,
    primed: bool,
    end: Option<Fate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Released,
    LetGo,
    Reset(HelperCounter),
}

impl Surroundings for (&Identity, bool, bool) {
    fn about(&self, _: &Conn) -> About {
        About {
            own: "shop/shop".to_owned(),
            peer: "shop/cart".to_owned(),
            certificate: "/identity/tls.crt".into(),
        }
    }

    fn relay(&self, _: &Conn, role: Role) -> anyhow::Result<Relay> {
        let party = Party {
            identity: self.0,
            expects: Expects::AnyOfDomainOf(self.0.id()),
        };
        Ok(Relay::new(party, role, Cipher::Aes128Gcm)?)
    }
    fn seals(&self) -> bool {
        self.1
    }
    fn is_workload(&self, address: &[u8; 16]) -> bool {
        *address == CLIENT || *address == SERVER
    }
    fn node_of(&self, address: &[u8; 16]) -> Option<u32> {
        (*address == CLIENT).then_some(OTHER)
    }
    fn is_held(&self, _: &Key) -> bool {
        self.2
    }
}

impl Side {
    fn new(identity: Identity, role: End) -> Self {
        let conn = Conn {
            node: OTHER,
            ..end(role)
        };
        Self {
            exchange: Exchange::new(),
            identity,
            conn,
            seals: true,
            held: false,
            link: None,
            letters: VecDeque::new(),
            primed: false,
            end: None,
        }
    }

    fn add(&mut self, now: Instant) {
        self.held = false;
        self.exchange.add(self.conn, (), now);
    }

    fn read(&mut self, letter: Letter, now: Instant) {
        if let Some(link) = self.link {
            let here = (&self.identity, self.seals, self.held);
            self.exchange.receive(link, letter, &here, now);
        }
    }

    fn due(&mut self, now: Instant) {
        let here = (&self.identity, self.seals, self.held);
        self.exchange.due(&here, now);
    }
}

/// Client's and server's node.
struct World {
    sides: [Side; 2],
    last: LinkId,
    now: Instant,
    reach: bool,
}

impl World {
    fn new() -> Self {
        let ca = Ca::new("ca");
        Self::with(identity(&ca, CART), identity(&ca, TILL))
    }

    fn with(client: Identity, server: Identity) -> Self {
        Self {
            sides: [
                Side::new(client, End::Client),
                Side::new(server, End::Server),
            ],
            last: 0,
            now: Instant::now(),
            reach: false,
        }
    }

    /// A link that the client's node opens. (The other way is tested with `ask`.)
    fn connect(&mut self, from: usize) {
        self.disconnect();
        self.last += 1;
        for (i, side) in self.sides.iter_mut().enumerate() {
            let direction = if i == from {
                Direction::Out
            } else {
                Direction::In
            };
            side.link = Some(self.last);
            side.exchange.link_up(self.last, OTHER, direction);
        }
        self.carry_out();
    }

    fn disconnect(&mut self) {
        for i in 0..2 {
            if let Some(link) = self.sides[i].link.take() {
                self.sides[i].letters.clear();
                self.sides[i].exchange.link_down(link);
            }
        }
        self.carry_out();
    }

    /// The side reads its next letter.
    fn read(&mut self, side: usize) -> bool {
        let Some(letter) = self.sides[side].letters.pop_front() else {
            return false;
        };
        let now = self.now;
        self.sides[side].read(letter, now);
        self.carry_out();
        true
    }

    fn settle(&mut self) {
        while self.read(0) | self.read(1) {}
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        for side in 0..2 {
            let now = self.now;
            self.sides[side].due(now);
        }
        self.carry_out();
        self.settle();
    }

    fn carry_out(&mut self) {
        for i in 0..2 {
            while let Some(effect) = self.sides[i].exchange.effects.pop_front() {
                self.effect(i, effect);
            }
        }
    }

    fn effect(&mut self, i: usize, effect: Effect<()>) {
        let now = self.now;
        let other_is_primed = self.sides[1 - i].primed;
        let side = &mut self.sides[i];
        let mut ends = |fate| {
            assert_eq!(side.end.replace(fate), None, "an end has two fates");
        };
        match effect {
            Effect::Send(link, letter) => {
                assert_eq!(side.link, Some(link), "sent over a link that is gone");
                self.sides[1 - i].letters.push_back(letter);
            }
            Effect::Prime(cookie) => {
                if side.exchange.keys(cookie).is_some() {
                    side.primed = true;
                    side.exchange.primed(cookie, now);
                }
            }
            Effect::Release(..) => {
                assert!(other_is_primed, "sends before the other end has its keys");
                ends(Fate::Released);
            }
            Effect::LetGo(..) => {
                assert!(!side.primed, "plaintext from an end with keys");
                ends(Fate::LetGo);
            }
            Effect::Reset(_, counter, _) => ends(Fate::Reset(counter)),
            Effect::Count(_) => {}
            Effect::Reach(_) => self.reach = true,
        }
    }

    fn fates(&self) -> [Option<Fate>; 2] {
        [self.sides[0].end, self.sides[1].end]
    }
}

#[test]
fn both_ends_are_released_whichever_comes_first() {
    for server_first in [false, true] {
        let mut world = World::new();
        let mut order = [0, 1];
        if server_first {
            order.reverse();
        }
        for side in order {
            let now = world.now;
            world.sides[side].add(now);
            world.carry_out();
            world.connect(0);
            world.settle();
        }
        assert_eq!(world.fates(), [Some(Fate::Released); 2]);
        assert_eq!(world.sides.map(|side| side.exchange.len()), [0, 0]);
    }
}

#[test]
fn a_late_accept_is_waited_for() {
    let mut world = World::new();
    let now = world.now;
    world.sides[0].add(now);
    world.sides[1].held = true;
    world.connect(0);
    world.settle();
    for _ in 0..5 {
        world.wait(31);
    }
    assert_eq!(world.fates(), [None, None]);
    let now = world.now;
    world.sides[1].add(now);
    world.carry_out();
    world.settle();
    assert_eq!(world.fates(), [Some(Fate::Released); 2]);
}

#[test]
fn a_connection_that_never_arrives_is_given_up() {
    let mut world = World::new();
    let now = world.now;
    world.sides[0].add(now);
    world.connect(0);
    world.settle();
    world.wait(29);
    assert_eq!(world.fates(), [None, None]);
    world.wait(2);
    let reset = Some(Fate::Reset(HelperCounter::ResetNode));
    assert_eq!(world.fates(), [reset, None]);
}

#[test]
fn a_node_that_does_not_seal_says_so() {
    for (client_seals, fate) in [
        (true, Fate::Reset(HelperCounter::ResetNotSealing)),
        (false, Fate::LetGo),
    ] {
        let mut world = World::new();
        world.sides[0].seals = client_seals;
        world.sides[1].seals = false;
        let now = world.now;
        world.sides[0].add(now);
        world.connect(0);
        world.settle();
        assert_eq!(world.fates(), [Some(fate), None]);
    }
}

/// The server's end is held and the client's node has let its own go: nobody would ever name it.
#[test]
fn a_server_that_nobody_names_asks() {
    for (server_seals, fate) in [
        (true, Fate::Reset(HelperCounter::ResetNotSealing)),
        (false, Fate::LetGo),
    ] {
        let mut world = World::new();
        world.sides[0].seals = false;
        world.sides[1].seals = server_seals;
        let now = world.now;
        world.sides[1].add(now);
        world.carry_out();
        assert!(!world.reach, "asks at once");
        world.wait(1);
        assert!(world.reach, "does not ask");
        world.connect(1);
        world.wait(5);
        assert_eq!(world.fates(), [None, Some(fate)]);
    }
}

#[test]
fn a_held_client_that_is_asked_for_is_waited_for() {
    let mut world = World::new();
    world.sides[0].held = true;
    let now = world.now;
    world.sides[1].add(now);
    world.connect(1);
    world.wait(40);
    assert_eq!(world.fates(), [None, None]);
}

#[test]
fn a_wrong_certificate_ends_both_with_the_reason() {
    let (ca, other) = (Ca::new("ca"), Ca::new("other"));
    let refused = Some(Fate::Reset(HelperCounter::ResetRefused));
    for wrong in [0, 1] {
        let mut cas = [&ca, &ca];
        cas[wrong] = &other;
        let mut world = World::with(identity(cas[0], CART), identity(cas[1], TILL));
        let now = world.now;
        world.sides.iter_mut().for_each(|side| side.add(now));
        world.connect(0);
        world.settle();
        assert_eq!(world.fates(), [refused, refused]);
    }
}

#[test]
fn another_nodes_address_cannot_be_named() {
    let mut world = World::new();
    let now = world.now;
    world.sides[0].conn.tuple.local = [9; 16];
    world.sides[0].add(now);
    world.connect(0);
    world.settle();
    let reset = Some(Fate::Reset(HelperCounter::ResetNode));
    assert_eq!(world.fates(), [reset, None]);
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Read(usize),
    Break,
    Connect,
    Add(usize),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0usize..2).prop_map(Event::Read),
        1 => Just(Event::Break),
        3 => Just(Event::Connect),
        2 => (0usize..2).prop_map(Event::Add),
        1 => (0u64..3).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Wherever links break: no end sends before the other has its keys (`World::effect`), and when
    /// the link is back each connection is sealed at both ends, or at least one end is reset.
    #[test]
    fn nothing_is_left_half_done(events in prop::collection::vec(event(), 0..40)) {
        let mut world = World::new();
        let mut added = [false; 2];
        let mut add = |world: &mut World, side: usize| {
            if !std::mem::replace(&mut added[side], true) {
                let now = world.now;
                world.sides[side].add(now);
                world.carry_out();
            }
        };
        for event in events {
            match event {
                Event::Read(side) => { world.read(side); }
                Event::Break => world.disconnect(),
                Event::Connect => world.connect(0),
                Event::Add(side) => add(&mut world, side),
                Event::Wait(seconds) => world.wait(seconds),
            }
        }
        add(&mut world, 0);
        add(&mut world, 1);
        world.connect(0);
        world.settle();
        let fates = world.fates();
        let is_reset = |fate: &Option<Fate>| matches!(fate, Some(Fate::Reset(_)));
        prop_assert!(
            fates == [Some(Fate::Released); 2] || fates.iter().any(is_reset),
            "{:?}", fates
        );
    }
}
