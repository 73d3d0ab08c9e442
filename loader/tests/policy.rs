//! Network policies: what the programs look up, against a reference that walks all rules for a pair of addresses. And what
//! `underseal policy test` says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::IpAddr;

use proptest::prelude::*;
use underseal::config::label::NAMESPACE;
use underseal::config::network_policy::{Entity, Mtls, NetworkPolicy, Peer, Place, Protocol, Rule};
use underseal::config::{Config, Format, Source};
use underseal::policy::explain::{End, explain};
use underseal::policy::names::demanded;
use underseal::policy::outcome::Outcome;
use underseal::policy::table::Question;
use underseal::policy::{compile, ids};
use underseal_abi::{Direction, Ruling, Way};

const NODES: &str = r#"
[node]
name = "node-a"
networks = ["10.1.0.0/24", "fd00:1::/64"]
uplinks = ["eth0"]
trust_domain = "example.org"
[[peer]]
name = "node-b"
public_key = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
endpoint = "192.0.2.2:51871"
networks = ["10.2.0.0/24", "fd00:2::/64"]
[[peer.workload]]
name = "till"
namespace = "shop"
addresses = ["10.2.0.12"]
labels = { app = "web", tier = "front" }
[[peer.workload]]
name = "vault"
namespace = "bank"
addresses = ["10.2.0.13", "fd00:2::13"]
[[workload]]
name = "web"
namespace = "shop"
netns = "/run/netns/web"
addresses = ["10.1.0.10", "fd00:1::10"]
labels = { app = "web", tier = "front" }
[[workload]]
name = "cart"
namespace = "shop"
netns = "/run/netns/cart"
addresses = ["10.1.0.11"]
labels = { app = "cart" }
[[workload]]
name = "ledger"
namespace = "bank"
netns = "/run/netns/ledger"
addresses = ["10.1.0.12"]
dns_names = ["books.example.org"]
"#;

/// Workloads here and there, one that nobody names, the host, and the outside in all its parts.
const ADDRESSES: [&str; 15] = [
    "10.1.0.10",
    "fd00:1::10",
    "10.1.0.11",
    "10.1.0.12",
    "10.2.0.12",
    "10.2.0.13",
    "fd00:2::13",
    "10.2.0.99",
    "10.1.0.1",
    "192.0.2.1",
    "192.0.2.7",
    "192.0.2.200",
    "198.51.100.1",
    "2001:db8::1",
    "2001:db9::1",
];

fn parse(text: &str) -> Config {
    let source = Source {
        name: "config.toml".to_owned(),
        text: text.to_owned(),
        format: Format::Toml,
    };
    Config::parse(&source).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// What can be known of an address, without numbers.
struct Somebody<'a> {
    address: IpAddr,
    own: bool,
    place: Option<Place>,
    labels: underseal::config::label::Labels,
    spiffe: Option<&'a str>,
    dns: Vec<&'a str>,
}

fn somebody<'a>(config: &'a Config, address: IpAddr) -> Somebody<'a> {
    let mut it = Somebody {
        address,
        own: false,
        place: None,
        labels: [].into(),
        spiffe: None,
        dns: Vec::new(),
    };
    for workload in &config.workloads {
        if workload.addresses.iter().any(|ip| ip.0 == address) {
            it.own = true;
            it.place = Some(Place::Same);
            it.labels = workload.labels.clone();
            it.spiffe = Some(workload.spiffe_id.as_str());
            it.dns = workload
                .dns_names
                .iter()
                .map(|name| name.as_str())
                .collect();
        }
    }
    for peer in &config.peers {
        if peer.networks.iter().any(|net| net.0.contains(&address)) {
            it.place = Some(Place::Other);
            it.labels = [("underseal/node".to_owned(), peer.name.to_string())].into();
        }
        for workload in &peer.workloads {
            if workload.addresses.iter().any(|ip| ip.0 == address) {
                it.labels = workload.labels.clone();
                it.spiffe = Some(workload.spiffe_id.as_str());
                it.dns = workload
                    .dns_names
                    .iter()
                    .map(|name| name.as_str())
                    .collect();
            }
        }
    }
    it
}

fn means(peer: &Peer, policy: &NetworkPolicy, who: &Somebody<'_>, config: &Config) -> bool {
    let is_host = || {
        config
            .node
            .networks
            .iter()
            .any(|net| net.0.contains(&who.address))
            && !who.own
    };
    match peer {
        Peer::Workloads { select, node } => {
            let Some(place) = who.place else { return false };
            if node.is_some_and(|wanted| wanted != place) || !select.fits(&who.labels) {
                return false;
            }
            match &policy.namespace {
                Some(own) if !select.requirements.iter().any(|r| r.key == NAMESPACE) => {
                    who.labels.get(NAMESPACE).map(String::as_str) == Some(own.as_str())
                }
                _ => true,
            }
        }
        Peer::Spiffe(pattern) => who
            .spiffe
            .is_some_and(|id| pattern.fits(&id.parse().unwrap())),
        Peer::Dns(pattern) => who
            .dns
            .iter()
            .any(|name| pattern.fits(&name.parse().unwrap())),
        Peer::Cidr { cidr, except } => {
            who.place.is_none()
                && !is_host()
                && cidr.0.contains(&who.address)
                && !except.iter().any(|net| net.0.contains(&who.address))
        }
        Peer::Entity(Entity::World) => who.place.is_none(),
        Peer::Entity(Entity::Host) => is_host(),
        Peer::Entity(Entity::Workloads) => who.place.is_some(),
        Peer::Entity(Entity::All) => true,
    }
}

fn allows(rule: &Rule, protocol: Protocol, port: u16) -> bool {
    let Some(ports) = &rule.ports else {
        return true;
    };
    ports.iter().any(|it| {
        let named = match it.protocol {
            None => protocol != Protocol::Icmp,
            Some(one) => one == protocol,
        };
        named
            && it
                .range
                .is_none_or(|(first, last)| first <= port && port <= last)
    })
}

/// What one end says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Nothing,
    No,
    Yes(u32, Mtls),
}

fn said(
    config: &Config,
    (own, peer): (&Somebody<'_>, &Somebody<'_>),
    direction: Direction,
    (protocol, port): (Protocol, u16),
) -> Said {
    let mut number = 0;
    let mut selected = false;
    let mut first = None;
    for policy in &config.network_policies {
        let namespace = own.labels.get(NAMESPACE).map(String::as_str);
        let here = policy.namespace.as_ref().map(|it| it.as_str());
        let selects = (here.is_none() || here == namespace) && policy.select.fits(&own.labels);
        for (its, rules) in [
            (Direction::Ingress, &policy.ingress),
            (Direction::Egress, &policy.egress),
        ] {
            selected |= selects && its == direction && rules.is_some();
            for rule in rules.iter().flatten() {
                number += 1;
                let peers = rule.peers.as_ref();
                if its == direction
                    && selects
                    && first.is_none()
                    && allows(rule, protocol, port)
                    && peers.is_none_or(|all| all.iter().any(|it| means(it, policy, peer, config)))
                {
                    first = Some(Said::Yes(number, rule.mtls));
                }
            }
        }
    }
    match first {
        _ if !selected => Said::Nothing,
        Some(said) => said,
        None => Said::No,
    }
}

fn reference(ends: [Said; 2], way: Way) -> Ruling {
    if ends.contains(&Said::No) {
        return Ruling::RefusedPolicy;
    }
    let demands = |mtls| {
        ends.iter()
            .any(|it| matches!(it, Said::Yes(_, m) if *m == mtls))
    };
    let plain = way == Way::SealedInside && demands(Mtls::Off);
    if demands(Mtls::Required) && (plain || way == Way::Plain) {
        return Ruling::RefusedMtls;
    }
    if plain {
        Ruling::PassPlain
    } else {
        Ruling::Pass
    }
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    proptest::sample::select(texts).prop_map(str::to_owned)
}

const SELECT: &[&str] = &[
    "{}",
    "{ labels = { app = 'web' } }",
    "{ labels = { 'underseal/name' = 'cart' } }",
    "{ expressions = [{ key = 'app', operator = 'NotIn', values = ['web', 'db'] }] }",
    "{ expressions = [{ key = 'tier', operator = 'Exists' }] }",
    "{ expressions = [{ key = 'tier', operator = 'DoesNotExist' }] }",
    "{ expressions = [{ key = 'underseal/namespace', operator = 'In', values = ['bank'] }] }",
    "{ labels = { 'underseal/node' = 'node-b' } }",
];

fn peer() -> impl Strategy<Value = String> {
    prop_oneof![
        one_of(SELECT).prop_map(|select| format!("{{ select = {select} }}")),
        (one_of(SELECT), one_of(&["same", "other"]))
            .prop_map(|(select, node)| format!("{{ select = {select}, node = '{node}' }}")),
        one_of(&[
            "{ node = 'same' }",
            "{ spiffe = 'spiffe://example.org/ns/*/sa/web' }",
            "{ spiffe = 'spiffe://example.org/ns/bank/sa/*' }",
            "{ dns = '*.example.org' }",
            "{ dns = '*.shop.svc.cluster.local' }",
            "{ cidr = '192.0.2.0/24', except = ['192.0.2.7/32'] }",
            "{ cidr = '192.0.2.128/25' }",
            "{ cidr = '0.0.0.0/0', except = ['192.0.2.0/25'] }",
            "{ cidr = '::/0', except = ['2001:db8::/32'] }",
            "{ entity = 'world' }",
            "{ entity = 'host' }",
            "{ entity = 'workloads' }",
            "{ entity = 'all' }",
        ]),
    ]
}

fn ports() -> impl Strategy<Value = String> {
    let range = (1u16..200, 0u16..100)
        .prop_map(|(first, more)| format!("port = {first}, end_port = {}", first + more));
    prop_oneof![
        (
            range,
            one_of(&["", ", protocol = 'udp'", ", protocol = 'tcp'"])
        )
            .prop_map(|(range, protocol)| format!("{{ {range}{protocol} }}")),
        one_of(&[
            "{}",
            "{ protocol = 'icmp' }",
            "{ protocol = 'tcp' }",
            "{ port = 80 }"
        ]),
    ]
}

fn rule() -> impl Strategy<Value = String> {
    let list = |it: Option<Vec<String>>, key: &str| match it {
        None => String::new(),
        Some(all) => format!("{key} = [{}], ", all.join(", ")),
    };
    (
        proptest::option::weighted(0.8, proptest::collection::vec(peer(), 0..3)),
        proptest::option::weighted(0.6, proptest::collection::vec(ports(), 0..3)),
        one_of(&["permitted", "required", "off"]),
    )
        .prop_map(move |(peers, ports, mtls)| {
            format!(
                "{{ {}{}mtls = '{mtls}' }}",
                list(peers, "peers"),
                list(ports, "ports")
            )
        })
}

fn policies() -> impl Strategy<Value = String> {
    let rules = |key: &'static str| {
        proptest::option::of(proptest::collection::vec(rule(), 0..3)).prop_map(move |rules| {
            rules.map_or_else(String::new, |all| format!("{key} = [{}]\n", all.join(", ")))
        })
    };
    let policy = (
        one_of(&["", "namespace = 'shop'\n", "namespace = 'bank'\n"]),
        one_of(SELECT),
        rules("ingress"),
        rules("egress"),
    );
    let text = policy.prop_map(|(namespace, select, ingress, egress)| {
        let nothing = if ingress.is_empty() && egress.is_empty() {
            "ingress = []\n"
        } else {
            ""
        };
        format!("{namespace}select = {select}\n{nothing}{ingress}{egress}")
    });
    proptest::collection::vec(text, 1..4).prop_map(|all| {
        let named = all.iter().enumerate();
        let named = named.map(|(i, text)| format!("[[network_policy]]\nname = 'p{i}'\n{text}"));
        named.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// For every pair of addresses, and ports in and beside every range, the maps say what the rules say.
    #[test]
    fn the_maps_say_what_the_rules_say(text in policies(), ports in proptest::collection::vec(0u16..320, 3)) {
        let config = parse(&format!("{NODES}{text}"));
        let ids = ids(&config);
        let table = compile(&config, &ids).unwrap();
        let number = |who: &Somebody<'_>| {
            let mut own = config.workloads.iter();
            let own = own.find(|it| it.addresses.iter().any(|ip| ip.0 == who.address));
            own.map_or_else(|| table.number(who.address), |it| ids[&it.name])
        };
        let all: Vec<_> = ADDRESSES.iter().map(|ip| somebody(&config, ip.parse().unwrap())).collect();
        for (from, to) in all.iter().flat_map(|from| all.iter().map(move |to| (from, to))) {
            let (client, server) = (number(from), number(to));
            if client == server || !(from.own || to.own) {
                continue;
            }
            for (protocol, port) in Protocol::ALL.into_iter().flat_map(|p| ports.iter().map(move |port| (p, *port))) {
                let question = Question { client, server, protocol: protocol.number(), port };
                let end = |own: &Somebody<'_>, peer, direction| {
                    if own.own { said(&config, (own, peer), direction, (protocol, port)) } else { Said::Nothing }
                };
                let ends = [end(from, to, Direction::Egress), end(to, from, Direction::Ingress)];
                for (said, own, direction) in [(ends[0], from, Direction::Egress), (ends[1], to, Direction::Ingress)] {
                    if own.own {
                        let rule = match said { Said::Yes(rule, _) => Some(rule), _ => None };
                        prop_assert_eq!(table.side(question, direction).rule(), rule, "{:?} {:?} {} {}", from.address, to.address, protocol, port);
                    }
                }
                for way in [Way::SealedInside, Way::SealedBetween, Way::Plain] {
                    prop_assert_eq!(table.ruling(question, way), reference(ends, way), "{:?} {:?} {} {}", from.address, to.address, protocol, port);
                }
            }
        }
    }
}

const SHOP: &str = r#"
[[network_policy]]
name = "cart"
namespace = "shop"
select = { labels = { app = "cart" } }
[[network_policy.ingress]]
peers = [{ select = { labels = { app = "web" } }, node = "same" }]
ports = [{ port = 80, end_port = 90, protocol = "tcp" }]
mtls = "required"
[[network_policy]]
name = "outside"
select = { labels = { app = "cart" } }
[[network_policy.egress]]
peers = [{ cidr = "192.0.2.0/24" }]
"#;

#[test]
fn a_test_names_the_rule_that_decides() {
    let config = parse(&format!("{NODES}{SHOP}"));
    let ask = |from: &str, to: &str, port: &str| {
        explain(&config, from, to, port.parse().unwrap()).unwrap()
    };
    let web = ask("shop/web", "shop/cart", "85");
    assert_eq!(web.outcome, Outcome::Sealed);
    assert!(matches!(web.egress, End::Nothing));
    assert!(matches!(&web.ingress, End::Rule { number: 1, policy, .. } if policy == "shop/cart"));
    assert!(
        web.to_string()
            .contains("ports 80-90 of tcp; mtls required"),
        "{web}"
    );
    let port = ask("shop/web", "shop/cart", "91");
    assert_eq!(port.outcome, Outcome::Denied);
    assert!(matches!(&port.ingress, End::Default { policies } if policies == &["shop/cart"]));
    let other = ask("10.2.0.12", "shop/cart", "80");
    assert_eq!(
        (other.outcome, other.from.as_str()),
        (Outcome::Denied, "shop/till")
    );
    assert_eq!(
        ask("shop/cart", "192.0.2.9", "53/udp").outcome,
        Outcome::Plaintext
    );
    assert_eq!(ask("shop/cart", "world", "53/udp").outcome, Outcome::Denied);
    assert!(explain(&config, "world", "shop/till", "80".parse().unwrap()).is_err());
    assert!(explain(&config, "shop/nobody", "shop/cart", "80".parse().unwrap()).is_err());
    // A mode that seals nothing cannot give what the rule requires.
    let plain = parse(&format!("{NODES}{SHOP}[seal]\nmode = 'never'\n"));
    let refused = explain(&plain, "shop/web", "shop/cart", "80".parse().unwrap()).unwrap();
    assert_eq!(refused.outcome, Outcome::DeniedUnsealed);
}

/// By the mode, by what is no workload, and by what mTLS cannot carry; rules come first.
#[test]
fn a_test_says_what_encrypts_and_what_else_denies() {
    use Outcome::{Denied, DeniedNonTcp, DeniedOutside, Plaintext, Sealed, SealedInTunnel, Tunnel};
    let cases = [
        // Mode, `policy`, to whom, which port.
        ("same-node", "", "shop/cart", "80", Sealed),
        ("same-node", "", "shop/till", "80", Tunnel),
        ("always", "", "shop/cart", "80", Sealed),
        ("always", "", "shop/till", "80", SealedInTunnel),
        ("always", "", "shop/till", "53/udp", Tunnel),
        ("cross-node", "", "shop/cart", "80", Plaintext),
        ("cross-node", "", "shop/till", "80", SealedInTunnel),
        ("never", "", "shop/cart", "53/udp", Plaintext),
        ("same-node", "", "shop/cart", "53/udp", DeniedNonTcp),
        ("same-node", "", "shop/cart", "icmp", Plaintext),
        (
            "same-node",
            "non_tcp = 'allow'",
            "shop/cart",
            "53/udp",
            Plaintext,
        ),
        ("same-node", "", "world", "443", Plaintext),
        (
            "same-node",
            "outside = 'deny'",
            "world",
            "443",
            DeniedOutside,
        ),
        (
            "same-node",
            "outside = 'deny'",
            "host",
            "443",
            DeniedOutside,
        ),
        ("same-node", "outside = 'deny'", "shop/till", "443", Tunnel),
    ];
    let peer = "[[peer]]\naddress = '10.2.0.1'\n";
    let own = "[wireguard]\naddresses = ['10.1.0.1/32']\n";
    let nodes = format!("{}{own}", NODES.replace("[[peer]]\n", peer));
    for (mode, policy, to, port, outcome) in cases {
        let settings = format!("[seal]\nmode = '{mode}'\n[policy]\n{policy}\n");
        let ask = |rules: &str| {
            let config = parse(&format!("{nodes}{settings}{rules}"));
            explain(&config, "shop/web", to, port.parse().unwrap())
        };
        assert_eq!(ask("").unwrap().outcome, outcome, "{mode} {policy} {to}");
        let nothing = "[[network_policy]]\nname = 'n'\negress = []\n";
        assert_eq!(ask(nothing).unwrap().outcome, Denied);
    }
}

/// `web` may connect to whoever has a name of the bank, or is the cart; nobody else is asked for names.
const BY_NAME: &str = r#"
[[network_policy]]
name = "web"
select = { labels = { tier = "front" } }
[[network_policy.egress]]
peers = [{ dns = "*.example.org" }, { dns = "*.bank.svc.cluster.local" }]
[[network_policy.egress]]
peers = [{ dns = "cart" }]
mtls = "off"
"#;

#[test]
fn names_that_rules_rely_on_are_asked_for() {
    let config = parse(&format!("{NODES}{BY_NAME}"));
    let demanded = demanded(&config, &ids(&config));
    let shown: Vec<String> = demanded
        .iter()
        .map(|(whose, names)| {
            let names: Vec<&str> = names.iter().map(|it| it.as_str()).collect();
            format!("{whose}: {}", names.join(" "))
        })
        .collect();
    let vault = "vault.bank.svc.cluster.local";
    assert_eq!(
        shown,
        [
            "2: cart".to_owned(),
            "3: books.example.org ledger.bank.svc.cluster.local".to_owned(),
            format!("10.2.0.13: {vault}"),
            format!("fd00:2::13: {vault}"),
        ]
    );
    assert!(self::demanded(&parse(NODES), &ids(&config)).is_empty());
}

#[test]
fn a_test_says_that_a_rule_rests_on_a_dns_name() {
    let config = parse(&format!("{NODES}{BY_NAME}"));
    let ask = |to: &str| explain(&config, "shop/web", to, "80".parse().unwrap()).unwrap();
    let ledger = ask("bank/ledger");
    assert_eq!(ledger.outcome, Outcome::Sealed);
    assert!(matches!(
        ledger.egress,
        End::Rule {
            by_dns_name: true,
            ..
        }
    ));
    let line =
        "the certificate of bank/ledger must have the DNS name books.example.org, ledger.bank";
    assert!(ledger.to_string().contains(line), "{ledger}");
    // Between nodes nothing is sealed in this mode, and `off` takes the seal away inside.
    for (to, outcome) in [
        ("bank/vault", Outcome::Tunnel),
        ("shop/cart", Outcome::Plaintext),
    ] {
        let plain = ask(to);
        assert_eq!(plain.outcome, outcome);
        let line = "but a DNS name decides, which no certificate proves";
        assert!(
            plain.proven.is_empty() && plain.to_string().contains(line),
            "{plain}"
        );
    }
}

#[test]
fn there_is_a_limit_for_dns_names() {
    let names: Vec<String> = (0..200)
        .map(|i| format!("\"n{i}.very-long-name.example.org\""))
        .collect();
    let nodes = NODES.replace("\"books.example.org\"", &names.join(", "));
    let source = Source {
        name: "config.toml".to_owned(),
        text: format!("{nodes}{BY_NAME}").replace("*.example.org", "*.very-long-name.example.org"),
        format: Format::Toml,
    };
    let error = Config::parse(&source).unwrap_err().to_string();
    assert!(
        error.contains("bytes of DNS names of one workload"),
        "{error}"
    );
}
