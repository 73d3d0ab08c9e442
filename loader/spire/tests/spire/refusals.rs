//! What an agent may not have, or may have wrong: told with its reason, for the workload that it concerns, whose old files
//! stay.

use std::{collections::HashMap, fs};

use crate::support::{
    ca::{Ca, Leaf, message},
    program::{CART, Node, WEB},
    workload::{X509BundlesResponse, X509svid, X509svidResponse},
};
use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};

/// One workload's bad certificate stays out, and the other one's good certificate comes in by the same message.
#[test]
fn bad_certificates_stay_out() {
    let (node, ca, foreign) = (Node::new(), Ca::new(), Ca::new());
    let agent = node.agent();
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    let mut program = node.run();
    program.says(&["shop/web: new certificate"]);
    let before = node.files("cart");
    for (what, svid, reason) in bad(&ca, &foreign) {
        agent.say(message(vec![svid, ca.svid(WEB)]));
        let line = program.says(&["warning", "shop/cart: ", "the old files stay"]);
        assert!(line.contains(reason), "{what}: {line}");
        program.says(&["shop/web: new certificate"]);
        assert_eq!(node.files("cart"), before, "{what}");
        node.shake_hands();
    }
    // And a good one ends it.
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    program.says(&["shop/cart: new certificate"]);
    node.shake_hands();
}

#[expect(clippy::too_many_lines, reason = "a list")]
fn bad(ca: &Ca, foreign: &Ca) -> Vec<(&'static str, X509svid, &'static str)> {
    let leaf = |change: &dyn Fn(&mut Leaf<'_>)| {
        let mut leaf = Leaf::of(CART);
        change(&mut leaf);
        ca.make(&leaf)
    };
    let changed = |change: &dyn Fn(&mut X509svid)| {
        let mut svid = ca.svid(CART);
        change(&mut svid);
        svid
    };
    vec![
        (
            "another workload's certificate",
            X509svid {
                spiffe_id: CART.to_owned(),
                ..ca.svid(WEB)
            },
            "its own bundle does not accept it",
        ),
        (
            "another trust domain's certificate",
            X509svid {
                spiffe_id: CART.to_owned(),
                ..ca.svid("spiffe://partner.test/ns/shop/sa/cart")
            },
            "its own bundle does not accept it",
        ),
        (
            "another key",
            changed(&|svid| svid.x509_svid_key = ca.svid(CART).x509_svid_key),
            "does not belong to the certificate",
        ),
        (
            "no key",
            changed(&|svid| svid.x509_svid_key.clear()),
            "no usable private key",
        ),
        (
            "expired",
            leaf(&|leaf| leaf.valid = (-7200, -3600)),
            "expired at",
        ),
        (
            "not valid yet",
            leaf(&|leaf| leaf.valid = (3600, 7200)),
            "valid only from",
        ),
        (
            "no word of CAs",
            leaf(&|leaf| leaf.is_ca = IsCa::NoCa),
            "does not say that it is no CA",
        ),
        (
            "a CA",
            leaf(&|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "is that of a CA",
        ),
        (
            "no signatures",
            leaf(&|leaf| leaf.usages = vec![KeyUsagePurpose::KeyAgreement]),
            "is not for signatures",
        ),
        (
            "a bundle that does not fit",
            changed(&|svid| svid.bundle = foreign.bundle()),
            "its own bundle does not accept it",
        ),
        (
            "an empty bundle",
            changed(&|svid| svid.bundle.clear()),
            "the bundle of example.org is empty",
        ),
        (
            "a broken bundle",
            changed(&|svid| svid.bundle.truncate(99)),
            "the bundle of example.org: certificate 1",
        ),
        (
            "a broken chain",
            changed(&|svid| svid.x509_svid.truncate(99)),
            "certificate 1 is malformed",
        ),
        (
            "no chain",
            changed(&|svid| svid.x509_svid.clear()),
            "there is no certificate",
        ),
    ]
}

#[test]
fn a_workload_that_the_agent_does_not_have_keeps_its_files() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    agent.say(message(vec![ca.svid(WEB)]));
    let mut program = node.run();
    program.says(&[
        "warning",
        "shop/cart: the agent has no certificate for",
        CART,
    ]);
    program.says(&["shop/web: new certificate"]);
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    program.says(&["shop/cart: new certificate"]);
    let before = node.files("cart");
    agent.say(message(vec![ca.svid(WEB)]));
    program.says(&[
        "warning",
        "shop/cart: the agent has no certificate for",
        "the old files stay",
    ]);
    assert_eq!(node.files("cart"), before);
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let (node, ca) = (Node::new(), Ca::new());
    let theirs = node.folder("cart").join("tls.crt");
    fs::create_dir_all(node.folder("cart")).unwrap();
    fs::write(&theirs, "theirs").unwrap();
    let agent = node.agent();
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    let mut program = node.run();
    program.says(&["warning", "shop/cart: ", "is not Underseal's"]);
    program.says(&["shop/web: new certificate"]);
    assert_eq!(fs::read_to_string(theirs).unwrap(), "theirs");
}

#[test]
fn revocation_lists_come_with_the_certificates() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    agent.say(X509svidResponse {
        crl: vec![ca.list()],
        ..message(vec![ca.svid(CART), ca.svid(WEB)])
    });
    let mut program = node.run();
    program.says(&["shop/web: new certificate"]);
    let list = fs::read_to_string(node.folder("cart").join("ca.crl")).unwrap();
    assert!(list.starts_with("-----BEGIN X509 CRL-----\n"), "{list}");
    node.shake_hands();
    // Not as if there were none: what was revoked would be good again.
    agent.say(X509svidResponse {
        crl: vec![b"no list".to_vec()],
        ..message(vec![ca.svid(CART), ca.svid(WEB)])
    });
    program.says(&["warning", "shop/cart: ", "bad revocation list"]);
    assert_eq!(
        fs::read_to_string(node.folder("cart").join("ca.crl")).unwrap(),
        list
    );
}

/// Of federated trust domains those count that the configuration names.
#[test]
fn bundles_of_other_domains() {
    let (node, ca, partner, newer) = (Node::new(), Ca::new(), Ca::new(), Ca::new());
    let file = node.path("bundles/partner.pem");
    let section = format!(
        "[[trust_bundle]]\ntrust_domain = \"partner.test\"\nfile = \"{}\"\nspire = true\n",
        file.display()
    );
    node.configure(&["cart", "web"], &section);
    let agent = node.agent();
    let federated = |ca: &Ca| {
        HashMap::from([
            ("spiffe://partner.test".to_owned(), ca.bundle()),
            ("spiffe://stranger.test".to_owned(), ca.bundle()),
        ])
    };
    let svids = vec![ca.svid(CART), ca.svid(WEB)];
    agent.say(X509svidResponse {
        federated_bundles: federated(&partner),
        ..message(svids.clone())
    });
    let mut program = node.run();
    program.says(&["partner.test: new trust bundle"]);
    program.says(&["stranger.test", "ignoring"]);
    let now = || fs::read_to_string(&file).unwrap();
    assert_eq!(now(), partner.bundle_pem());
    // By the other stream.
    agent.say_bundles(X509BundlesResponse {
        bundles: federated(&newer),
        crl: Vec::new(),
    });
    program.says(&["partner.test: new trust bundle"]);
    assert_eq!(now(), newer.bundle_pem());
    // One that cannot be used would make every identity of the node unusable.
    let bundles = HashMap::from([("spiffe://partner.test".to_owned(), b"none".to_vec())]);
    agent.say_bundles(X509BundlesResponse {
        bundles,
        crl: Vec::new(),
    });
    program.says(&[
        "warning",
        "the bundle of partner.test",
        "the old file stays",
    ]);
    // The two streams have no order between them: wait for one before the other.
    agent.say(message(vec![ca.svid(CART), svids[1].clone()]));
    program.says(&["shop/cart: new certificate"]);
    agent.say_bundles(X509BundlesResponse::default());
    program.says(&[
        "warning",
        "the agent has no bundle for partner.test",
        "the old file stays",
    ]);
    assert_eq!(now(), newer.bundle_pem());
}
