//! The program and an agent, over the official protocol: what comes, what changes, and what happens when either is gone.

use std::{collections::HashMap, fs, os::unix::fs::PermissionsExt};

use crate::support::{
    ca::{Ca, Leaf, message},
    program::{CART, Node, WEB},
    workload::X509BundlesResponse,
};

#[test]
fn certificates_come_and_are_renewed() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    let web = ca.svid(WEB);
    agent.say(message(vec![ca.svid(CART), web.clone()]));
    let mut program = node.run();
    program.says(&["shop/cart: new certificate, until"]);
    program.says(&["shop/web: new certificate, until"]);
    node.shake_hands();
    let (cart_before, web_before) = (node.files("cart"), node.files("web"));
    // One is renewed, the other one is given again as it was.
    agent.say(message(vec![ca.svid(CART), web]));
    program.says(&["shop/cart: new certificate, until"]);
    node.shake_hands();
    assert_ne!(node.files("cart"), cart_before);
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    program.says(&["shop/cart: new certificate, until"]);
    let between = program.says(&["shop/web"]);
    assert!(between.contains("new certificate"), "{between}");
    assert_ne!(node.files("web"), web_before);
    node.shake_hands();
    let mode = fs::metadata(node.folder("cart").join("tls.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o600);
    // Neither file nor log has more than it should: no list, and no key.
    assert!(!node.folder("cart").join("ca.crl").exists());
    let key = fs::read_to_string(node.folder("cart").join("tls.key")).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(
        program
            .said()
            .iter()
            .all(|line| !line.contains(secret) && !line.contains("PRIVATE"))
    );
}

/// What the stream of bundles says first counts at once, and what that of SVIDs says later counts then.
#[test]
fn another_ca_comes_in_either_stream() {
    let (node, old, new) = (Node::new(), Ca::new(), Ca::new());
    let agent = node.agent();
    let both = [old.bundle(), new.bundle()].concat();
    let svids = vec![old.svid(CART), old.svid(WEB)];
    agent.say(message(svids.clone()));
    let mut program = node.run();
    program.says(&["shop/web: new certificate"]);
    let bundles = HashMap::from([("spiffe://example.org".to_owned(), both.clone())]);
    agent.say_bundles(X509BundlesResponse {
        bundles,
        crl: Vec::new(),
    });
    program.says(&["shop/cart: new trust"]);
    program.says(&["shop/web: new trust"]);
    let trusted = |workload| fs::read_to_string(node.folder(workload).join("ca.crt")).unwrap();
    assert_eq!(trusted("cart"), old.bundle_pem() + &new.bundle_pem());
    // The new CA issues, while the other workload still has a certificate of the old one.
    let mut next = vec![new.svid(CART), svids[1].clone()];
    for svid in &mut next {
        svid.bundle = both.clone();
    }
    agent.say(message(next));
    program.says(&["shop/cart: new certificate"]);
    node.shake_hands();
    agent.say(message(vec![new.svid(CART), new.svid(WEB)]));
    program.says(&["shop/web: new certificate"]);
    assert_eq!(trusted("web"), new.bundle_pem());
    node.shake_hands();
}

#[test]
fn an_agent_that_is_away_does_no_harm() {
    let (node, ca) = (Node::new(), Ca::new());
    // Not there yet.
    let mut program = node.run();
    program.says(&["warning", "agent.sock", "No such file"]);
    let agent = node.agent();
    agent.has_no_bundle_stream();
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    program.says(&["over: ", "No such file"]);
    program.says(&["shop/web: new certificate"]);
    let before = (node.files("cart"), node.files("web"));
    // Gone, and another one in its place, which says the same thing anew.
    drop(agent);
    program.says(&["warning", "agent.sock"]);
    assert_eq!((node.files("cart"), node.files("web")), before);
    let agent = node.agent();
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    program.says(&["over: "]);
    program.says(&["shop/web: new certificate"]);
    node.shake_hands();
}

#[test]
fn a_program_without_a_registration_entry_says_so() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    agent.deny();
    let mut program = node.run();
    program.says(&["warning", "no registration entry", "no identity issued"]);
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    program.says(&["shop/web: new certificate"]);
    // An entry that is deleted: the files stay.
    let before = node.files("web");
    agent.deny();
    program.says(&["warning", "no registration entry"]);
    assert_eq!(node.files("web"), before);
}

#[test]
fn killed_it_leaves_files_that_serve_and_goes_on_with_them() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    for _ in 0..3 {
        agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
        let mut program = node.run();
        program.says(&["shop/web: new certificate"]);
        drop(program);
        node.shake_hands();
    }
}

#[test]
fn a_change_of_the_configuration_needs_no_restart() {
    let (node, ca) = (Node::new(), Ca::new());
    node.configure(&["cart"], "");
    let agent = node.agent();
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    let mut program = node.run();
    program.says(&["shop/cart: new certificate"]);
    program.says(&[WEB, "ignoring"]);
    node.configure(&["cart", "web"], "nonsense = true\n");
    program.says(&["warning", "unknown key `nonsense`", "the old one counts"]);
    node.configure(&["cart", "web"], "");
    program.says(&["shop/web: new certificate"]);
    node.shake_hands();
}

#[test]
fn a_certificate_that_ends_soon_is_complained_of() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    let mut leaf = Leaf::of(CART);
    leaf.valid = (-80_000, 600);
    agent.say(message(vec![ca.make(&leaf), ca.svid(WEB)]));
    let mut program = node.run();
    program.says(&[
        "warning",
        "shop/cart: the certificate ends at",
        "has not given a new one",
    ]);
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    program.says(&["shop/cart: new certificate"]);
}
