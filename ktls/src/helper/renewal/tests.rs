//! Two nodes with one connection between them, whose kernels are modelled: records are under keys, and whoever opens one
//! under another key than it was sent with has found a mistake.

mod cases;

use std::{cell::RefCell, rc::Rc};

use underseal_abi::{State, THIS_NODE};

use super::*;
use crate::{
    Cipher, Expects, Identity, Party, Role,
    helper::{drain::Sent, testing::end},
    testing::{Ca, identity},
};

const CART: &str = "spiffe://example.org/ns/shop/sa/cart";
const TILL: &str = "spiffe://example.org/ns/shop/sa/till";
const OTHER: u32 = THIS_NODE + 1;
/// Bytes of a record, or of its first part, as far as anybody counts them.
const PART: u32 = 100;

/// A key, and a number under it.
type Record = (Vec<u8>, u64);

/// An end of the connection as its kernel has it.
struct Socket {
    state: State,
    held: bool,
    send: Record,
    receive: Record,
    /// What it has sent and the other has not got, and what it has got and not opened.
    flight: VecDeque<Record>,
    arrived: VecDeque<Record>,
    /// A record of which TCP has a part alone: its sender sleeps.
    cut: Option<Record>,
}

impl Socket {
    fn new() -> Self {
        Self {
            state: State::Sealed,
            held: false,
            send: (vec![], 5),
            receive: (vec![], 5),
            flight: VecDeque::new(),
            arrived: VecDeque::new(),
            cut: None,
        }
    }

    /// Its program sends a record, or begins to.
    fn write(&mut self, whole: bool) {
        if self.held {
            return;
        }
        self.finish();
        let record = self.send.clone();
        self.send.1 += 1;
        self.cut = Some(record);
        if whole {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if !self.held
            && let Some(record) = self.cut.take()
        {
            self.flight.push_back(record);
        }
    }

    /// Its program reads a record.
    fn read(&mut self) {
        if let Some(record) = self.arrived.pop_front() {
            assert_eq!(record, self.receive, "opened under another key");
            self.receive.1 += 1;
        }
    }
}

type Kernels = Rc<RefCell<[Socket; 2]>>;

/// A node's hands.
struct Hands {
    side: usize,
    kernels: Kernels,
    identity: Identity,
    able: bool,
    noted: u32,
    counted: Vec<HelperCounter>,
}

impl Hands {
    fn own<T>(&self, act: impl FnOnce(&mut Socket) -> T) -> T {
        act(&mut self.kernels.borrow_mut()[self.side])
    }
}

impl Node<()> for Hands {
    fn relay(&self, _: &Conn, (): &(), role: Role) -> anyhow::Result<Relay> {
        let party = Party {
            identity: &self.identity,
            expects: Expects::AnyOfDomainOf(self.identity.id()),
        };
        Ok(Relay::new(party, role, Cipher::Aes128Gcm)?)
    }
    fn replaces_keys(&mut self) -> bool {
        self.able
    }
    fn note(&mut self, _: &Conn, _: &[CertificateDer<'static>]) -> anyhow::Result<()> {
        self.noted += 1;
        Ok(())
    }
    fn count(&mut self, counter: HelperCounter) {
        self.counted.push(counter);
    }
    fn hold(&mut self, _: &Conn, (): &()) -> Result<(), Failure> {
        self.own(|own| {
            assert_eq!(own.state, State::Sealed);
            (own.state, own.held) = (State::Pausing, true);
        });
        Ok(())
    }
    fn sent(&mut self, (): &()) -> Result<Sent, Failure> {
        Ok(self.own(|own| {
            own.held = true;
            Sent {
                unsent: PART * u32::try_from(own.flight.len()).unwrap(),
                records: own.send.1,
            }
        }))
    }
    fn pulse(&mut self, (): &()) -> Result<(), Failure> {
        self.own(|own| own.held = false);
        Ok(())
    }
    fn replacing(&mut self, _: &Conn, (): &()) -> Result<(), Failure> {
        self.own(|own| {
            assert_eq!(own.state, State::Pausing);
            own.state = State::Replacing;
        });
        Ok(())
    }
    fn opened(&self, (): &()) -> Result<Opened, Failure> {
        let kernels = self.kernels.borrow();
        let (own, other) = (&kernels[self.side], &kernels[1 - self.side]);
        let begun = other.cut.is_some() && other.flight.is_empty();
        let whole = u32::try_from(own.arrived.len()).unwrap();
        Ok(Opened {
            records: own.receive.1,
            unread: PART * (whole + u32::from(begun)),
        })
    }
    fn receive_with(&mut self, (): &(), keys: &SocketKeys) -> Result<(), Failure> {
        assert_eq!(self.kernels.borrow()[1 - self.side].state, State::Replacing);
        self.own(|own| own.receive = (keys.rx.dangerous_key().to_vec(), 0));
        Ok(())
    }
    fn send_with(&mut self, _: &Conn, (): &(), keys: &SocketKeys) -> Result<(), Failure> {
        self.own(|own| own.send = (keys.tx.dangerous_key().to_vec(), 0));
        Ok(())
    }
    fn release(&mut self, _: &Conn, (): &()) -> Result<(), Failure> {
        self.own(|own| (own.state, own.held) = (State::Sealed, false));
        Ok(())
    }
}

/// A node with its end.
struct Side {
    renewals: Renewals<()>,
    hands: Hands,
    conn: Conn,
    letters: VecDeque<(LinkId, Letter)>,
    reset: Option<HelperCounter>,
    reach: bool,
}

impl Side {
    fn new(side: usize, identity: Identity, kernels: &Kernels) -> Self {
        let role = if side == 0 { End::Client } else { End::Server };
        let conn = Conn {
            node: OTHER,
            ..end(role)
        };
        let kernels = Rc::clone(kernels);
        Self {
            renewals: Renewals::new(),
            hands: Hands {
                side,
                kernels,
                identity,
                able: true,
                noted: 0,
                counted: Vec::new(),
            },
            conn,
            letters: VecDeque::new(),
            reset: None,
            reach: false,
        }
    }
}

/// Client's and server's node, and a link from each to the other.
struct World {
    sides: [Side; 2],
    kernels: Kernels,
    links: Option<[LinkId; 2]>,
    last: LinkId,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let ca = Ca::new("ca");
        Self::with(identity(&ca, CART), identity(&ca, TILL))
    }

    fn with(client: Identity, server: Identity) -> Self {
        let kernels = Rc::new(RefCell::new([Socket::new(), Socket::new()]));
        let sides = [
            Side::new(0, client, &kernels),
            Side::new(1, server, &kernels),
        ];
        Self {
            sides,
            kernels,
            links: None,
            last: 0,
            now: Instant::now(),
        }
    }

    fn connect(&mut self) {
        self.disconnect();
        let links = [self.last + 1, self.last + 2];
        (self.last, self.links) = (self.last + 2, Some(links));
        for (i, side) in self.sides.iter_mut().enumerate() {
            side.renewals.link_up(links[i], OTHER, Direction::Out);
            side.renewals.link_up(links[1 - i], OTHER, Direction::In);
            links.iter().for_each(|link| side.renewals.speaks(*link));
        }
        self.turn();
    }

    fn disconnect(&mut self) {
        for link in self.links.take().into_iter().flatten() {
            for side in &mut self.sides {
                side.letters.clear();
                side.renewals.link_down(link, &mut side.hands);
            }
        }
        self.carry_out();
    }

    fn ask(&mut self, side: usize) {
        let side = &mut self.sides[side];
        side.renewals.ask(&side.conn);
    }

    /// The helper is killed and started again.
    fn kill(&mut self, side: usize) {
        self.sides[side].renewals = Renewals::new();
        for link in self.links.take().into_iter().flatten() {
            let other = &mut self.sides[1 - side];
            other.renewals.link_down(link, &mut other.hands);
        }
        self.sides.iter_mut().for_each(|side| side.letters.clear());
        let side = &mut self.sides[side];
        match side.hands.own(|own| own.state) {
            State::Replacing => side.reset = Some(HelperCounter::ResetInterrupted),
            _ => side.hands.release(&side.conn, &()).unwrap(),
        }
        self.carry_out();
    }

    fn turn(&mut self) {
        for side in &mut self.sides {
            side.renewals.turn(&mut side.hands, self.now);
        }
        self.carry_out();
    }

    fn wait(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
        self.turn();
    }

    fn carry_out(&mut self) {
        for i in 0..2 {
            while let Some(effect) = self.sides[i].renewals.effects.pop_front() {
                let side = &mut self.sides[i];
                match effect {
                    Effect::Send(link, letter) => {
                        assert!(self.links.is_some_and(|links| links.contains(&link)));
                        self.sides[1 - i].letters.push_back((link, letter));
                    }
                    Effect::Find(search) => {
                        let is_sealed = side.hands.own(|own| own.state == State::Sealed);
                        let found = is_sealed.then_some((side.conn, ()));
                        let hands = &mut side.hands;
                        side.renewals.found(&search, found, hands, self.now);
                    }
                    Effect::Reset(_, counter, _) => side.reset = Some(counter),
                    Effect::Reach(_) => side.reach = true,
                }
            }
        }
    }

    /// The side reads its next letter.
    fn hear(&mut self, side: usize) -> bool {
        let side = &mut self.sides[side];
        let Some((link, Letter { id, message })) = side.letters.pop_front() else {
            return false;
        };
        let Message::Renewal(said) = message else {
            panic!("said something else");
        };
        let hands = &mut side.hands;
        side.renewals.receive((link, id), said, hands, self.now);
        self.carry_out();
        true
    }

    fn settle(&mut self) {
        while self.hear(0) | self.hear(1) {}
    }

    /// Time passes while both programs read all that arrives.
    fn run(&mut self, millis: u64) {
        for _ in 0..millis / 2 {
            self.settle();
            for side in 0..2 {
                self.arrive(side);
                self.kernels.borrow_mut()[side].read();
                self.kernels.borrow_mut()[side].finish();
            }
            self.wait(2);
        }
    }

    /// What the other side has sent arrives.
    fn arrive(&mut self, side: usize) {
        let kernels = &mut *self.kernels.borrow_mut();
        let flight = std::mem::take(&mut kernels[1 - side].flight);
        kernels[side].arrived.extend(flight);
    }

    fn is_reset(&self) -> bool {
        self.sides.iter().any(|side| side.reset.is_some())
    }

    fn counted(&self, counter: HelperCounter) -> [usize; 2] {
        let of = |side: usize| {
            let counted = self.sides[side].hands.counted.iter();
            counted.filter(|c| **c == counter).count()
        };
        [of(0), of(1)]
    }

    /// Both ends may send, and what they send is understood.
    fn assert_whole(&mut self) {
        for side in 0..2 {
            let own = &mut self.kernels.borrow_mut()[side];
            assert_eq!((own.state, own.held), (State::Sealed, false));
            own.write(true);
        }
        for side in 0..2 {
            self.arrive(side);
            while !self.kernels.borrow()[side].arrived.is_empty() {
                self.kernels.borrow_mut()[side].read();
            }
        }
        let kernels = self.kernels.borrow();
        for side in 0..2 {
            assert_eq!(kernels[side].send, kernels[1 - side].receive);
        }
    }
}
