//! What network policies say of a connection or a packet. Pure: what the maps have comes in as values. A rule is a
//! number, from 1 on in the order of the file; where several allow the same, the lowest decides.

/// Which end of a connection a rule is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// The workload is connected to.
    Ingress = 1,
    /// The workload connects.
    Egress = 2,
}

/// What a rule demands of mTLS.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mtls {
    /// As the mode says.
    Permitted = 0,
    /// Nothing passes that is not sealed.
    Required = 1,
    /// Plaintext where the mode would seal inside a node.
    Off = 2,
}

impl Mtls {
    /// The word that `raw` stands for; what is unknown demands the most.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Permitted,
            2 => Self::Off,
            _ => Self::Required,
        }
    }
}

/// What policies say of a workload of this node: value of `SUBJECTS`, whose key is [`SubjectKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Bits `1 << Direction`: what no rule allows is denied.
    pub selected: u32,
}

impl Subject {
    /// Whether what no rule allows in this direction is denied.
    #[inline(always)]
    #[must_use]
    pub const fn is_selected(self, direction: Direction) -> bool {
        self.selected & (1 << direction as u32) != 0
    }
}

/// Key of `SUBJECTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubjectKey {
    /// As [`crate::Config::policy`].
    pub generation: u32,
    /// Workload id.
    pub workload: u32,
}

/// A rule that allows something: value of `GRANTS`, whose key is that of [`grant_key`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// Its number; 0: there is none.
    pub rule: u32,
    /// [`Mtls`] as u32.
    pub mtls: u32,
}

/// The number of an address that no workload, no node and no rule has.
pub const WORLD: u32 = 0;
/// In a [`grant_key`]: whoever the peer is.
pub const ANYBODY: u32 = u32::MAX;
/// Bits of a [`grant_key`] in front of the protocol: a key that ends here is for all protocols.
pub const ANY_PROTOCOL: u32 = 104;
/// Bits of a [`grant_key`] in front of the port: a key that ends here is for all ports. Longer ones are for the ports
/// that begin with their bits.
pub const ANY_PORT: u32 = 112;

/// Key of `GRANTS`, whose longest prefix decides: who is allowed what with whom. `protocol` is that of the IP header, but
/// for ICMPv6, which counts as ICMP.
#[inline(always)]
#[must_use]
pub const fn grant_key(
    generation: u32,
    (subject, direction): (u32, Direction),
    peer: u32,
    (protocol, port): (u8, u16),
) -> [u8; 16] {
    let g = generation.to_be_bytes();
    let s = subject.to_be_bytes();
    let p = peer.to_be_bytes();
    let port = port.to_be_bytes();
    [
        g[0],
        g[1],
        g[2],
        g[3],
        s[0],
        s[1],
        s[2],
        s[3],
        p[0],
        p[1],
        p[2],
        p[3],
        direction as u8,
        protocol,
        port[0],
        port[1],
    ]
}

/// Key of `PEERS`, whose longest prefix decides: the number of an address that is no workload of this node.
#[inline(always)]
#[must_use]
pub const fn peer_key(generation: u32, ip: &[u8; 16]) -> [u8; 20] {
    let mut key = [0; 20];
    let g = generation.to_be_bytes();
    let mut i = 0;
    while i < 4 {
        key[i] = g[i];
        i += 1;
    }
    i = 0;
    while i < 16 {
        key[4 + i] = ip[i];
        i += 1;
    }
    key
}

/// What the rules of one end say: a number, so that a function of BPF can return it.
#[must_use]
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side(u64);

impl Side {
    /// No policy selects it in this direction, or it is another node's to judge.
    pub const OPEN: Self = Self(u64::MAX);
    /// It is selected, and no rule allows this.
    pub const DENIED: Self = Self(0);

    /// What follows from what the maps have of one end: the subject, the grant that names the peer, and the one for
    /// anybody. A workload that the maps do not know is denied everything.
    #[inline(always)]
    pub fn of(
        subject: Option<Subject>,
        direction: Direction,
        exact: Option<Grant>,
        anybody: Option<Grant>,
    ) -> Self {
        let side = |grant: Option<Grant>| grant.map_or(Self::DENIED, Self::granted);
        match subject {
            None => Self::DENIED,
            Some(it) if !it.is_selected(direction) => Self::OPEN,
            Some(_) => side(exact).or(side(anybody)),
        }
    }

    /// What two grants come to, neither of which is [`Self::OPEN`]: the rule with the lower number decides.
    #[inline(always)]
    pub const fn or(self, other: Self) -> Self {
        let is_first = (self.0 as u32) < other.0 as u32;
        if other.0 == Self::DENIED.0 || (self.0 != Self::DENIED.0 && is_first) {
            self
        } else {
            other
        }
    }

    /// The side that `raw` stands for.
    #[inline(always)]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// It as a number.
    #[inline(always)]
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0
    }

    /// This rule allows it.
    #[inline(always)]
    pub const fn granted(grant: Grant) -> Self {
        Self((grant.mtls as u64) << 32 | grant.rule as u64)
    }

    /// The rule that allows it, if one does.
    #[inline(always)]
    #[must_use]
    pub const fn rule(self) -> Option<u32> {
        if self.0 == Self::OPEN.0 || self.0 == Self::DENIED.0 {
            None
        } else {
            Some(self.0 as u32)
        }
    }

    #[inline(always)]
    const fn mtls(self) -> Mtls {
        if self.0 == Self::OPEN.0 {
            Mtls::Permitted
        } else {
            Mtls::from_raw((self.0 >> 32) as u32)
        }
    }
}

/// How a connection, or a packet, would go if there were no policies.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// TCP that mTLS seals, inside of this node.
    SealedInside,
    /// TCP that mTLS seals, between nodes.
    SealedBetween,
    /// Without mTLS.
    Plain,
}

/// What becomes of it.
#[must_use]
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It passes as the mode says.
    Pass = 0,
    /// It passes in plaintext, though the mode would seal it.
    PassPlain = 1,
    /// No rule allows it.
    RefusedPolicy = 2,
    /// A rule allows it only sealed, and it would not be.
    RefusedMtls = 3,
}

impl Ruling {
    /// The ruling that `raw` stands for; what is unknown is refused.
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Pass,
            1 => Self::PassPlain,
            3 => Self::RefusedMtls,
            _ => Self::RefusedPolicy,
        }
    }

    /// Whether it passes in one way or another.
    #[inline(always)]
    #[must_use]
    pub const fn passes(self) -> bool {
        matches!(self, Self::Pass | Self::PassPlain)
    }
}

/// What follows from both ends: both must allow it, and sealing that one of them requires wins over plaintext that the
/// other one wants.
#[inline(always)]
pub fn ruling(client: Side, server: Side, way: Way) -> Ruling {
    if client == Side::DENIED || server == Side::DENIED {
        return Ruling::RefusedPolicy;
    }
    let required = client.mtls() == Mtls::Required || server.mtls() == Mtls::Required;
    let off = client.mtls() == Mtls::Off || server.mtls() == Mtls::Off;
    let plain = matches!(way, Way::Plain) || (off && matches!(way, Way::SealedInside));
    match (required && plain, off && matches!(way, Way::SealedInside)) {
        (true, _) => Ruling::RefusedMtls,
        (false, true) => Ruling::PassPlain,
        (false, false) => Ruling::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAYS: [Way; 3] = [Way::SealedInside, Way::SealedBetween, Way::Plain];
    const MTLS: [Mtls; 3] = [Mtls::Permitted, Mtls::Required, Mtls::Off];

    fn grant(rule: u32, mtls: Mtls) -> Side {
        Side::granted(Grant {
            rule,
            mtls: mtls as u32,
        })
    }

    /// Client's rule, server's rule, way, what follows.
    #[test]
    fn golden() {
        use Mtls::{Off, Permitted, Required};
        for (client, server, way, expected) in [
            (Permitted, Permitted, Way::SealedInside, Ruling::Pass),
            (Permitted, Permitted, Way::Plain, Ruling::Pass),
            (Required, Permitted, Way::SealedInside, Ruling::Pass),
            (Required, Permitted, Way::SealedBetween, Ruling::Pass),
            (Permitted, Required, Way::Plain, Ruling::RefusedMtls),
            (Off, Permitted, Way::SealedInside, Ruling::PassPlain),
            (Permitted, Off, Way::SealedBetween, Ruling::Pass),
            (Off, Required, Way::SealedInside, Ruling::RefusedMtls),
            (Off, Required, Way::SealedBetween, Ruling::Pass),
            (Off, Off, Way::Plain, Ruling::Pass),
        ] {
            let got = ruling(grant(1, client), grant(2, server), way);
            assert_eq!(got, expected, "{client:?} {server:?} {way:?}");
        }
    }

    #[test]
    fn a_number_that_is_no_ruling_refuses() {
        for raw in 0..9 {
            let ruling = Ruling::from_raw(raw);
            let is_one = raw <= Ruling::RefusedMtls as u32;
            assert!(ruling as u32 == raw || !is_one && ruling == Ruling::RefusedPolicy);
        }
    }

    #[test]
    fn who_is_not_known_is_denied_and_who_is_not_selected_is_not() {
        let some = Some(Grant { rule: 1, mtls: 0 });
        for direction in [Direction::Ingress, Direction::Egress] {
            assert_eq!(Side::of(None, direction, some, some), Side::DENIED);
            let free = Some(Subject::default());
            assert_eq!(Side::of(free, direction, None, None), Side::OPEN);
            let selected = Some(Subject {
                selected: 1 << direction as u32,
            });
            assert_eq!(Side::of(selected, direction, None, None), Side::DENIED);
        }
    }

    proptest::proptest! {
        /// A denied end denies, whatever the other one says; a required seal is never left out; and without
        /// `required` or `off` nothing differs from the mode.
        #[test]
        fn both_ends_must_agree(a in 0usize..5, b in 0usize..5, way in 0usize..3) {
            let side = |i: usize| match i {
                0 => Side::OPEN,
                1 => Side::DENIED,
                i => grant(7, MTLS[i - 2]),
            };
            let (client, server, way) = (side(a), side(b), WAYS[way]);
            let got = ruling(client, server, way);
            assert_eq!(got, ruling(server, client, way));
            assert_eq!(got == Ruling::RefusedPolicy, a == 1 || b == 1);
            let (required, off) = (a == 3 || b == 3, a == 4 || b == 4);
            if got == Ruling::Pass && required {
                assert_ne!(way, Way::Plain);
            }
            assert!(!(got == Ruling::PassPlain && (required || !off || way != Way::SealedInside)));
        }

        /// The lowest rule decides, whether it names the peer or not.
        #[test]
        fn the_first_rule_decides(exact in 0u32..4, anybody in 0u32..4) {
            let of = |rule| (rule != 0).then_some(Grant { rule, mtls: 0 });
            let subject = Some(Subject { selected: 6 });
            let side = Side::of(subject, Direction::Egress, of(exact), of(anybody));
            let first = [exact, anybody].into_iter().filter(|rule| *rule != 0).min();
            assert_eq!(side.rule(), first);
            assert_eq!(side == Side::DENIED, first.is_none());
        }
    }
}
