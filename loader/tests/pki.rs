//! The built-in CA by its commands: files in, files out. Nothing here needs a kernel or root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;
use underseal_ktls::{Cipher, Identity, Party, SpiffeId, Svid, memory};

const WORKLOADS: [&str; 2] = ["cart", "web"];

/// A node with a configuration, in a folder of its own.
struct Node {
    place: TempDir,
}

impl Node {
    fn new(pki: &str) -> Self {
        let node = Self {
            place: tempfile::tempdir().unwrap(),
        };
        node.configure(pki);
        node
    }

    fn with_ca(pki: &str) -> Self {
        let node = Self::new(pki);
        node.good(&["init"]);
        node.good(&["issue"]);
        node
    }

    fn configure(&self, pki: &str) {
        let at = |name: &str| self.at(name).display().to_string();
        let mut text = format!(
            "[node]\nname = \"a\"\nnetworks = [\"10.1.0.0/24\"]\ntrust_domain = \"example.org\"\n\
             [pki]\ndirectory = \"{}\"\n{pki}\n",
            at("pki")
        );
        for (name, number) in WORKLOADS.iter().zip(10..) {
            text += &format!(
                "[[workload]]\nname = \"{name}\"\nnamespace = \"shop\"\nnetns = \"/run/netns/{name}\"\n\
                 addresses = [\"10.1.0.{number}\"]\nidentity = \"{}\"\n\
                 dns_names = [\"{name}.example.org\"]\n",
                at(name)
            );
        }
        fs::write(self.at("c.toml"), text).unwrap();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(assert_cmd::cargo::cargo_bin!("underseal"))
            .arg("-c")
            .arg(self.at("c.toml"))
            .arg("pki")
            .args(arguments)
            .current_dir(self.place.path())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (out, err) = (text(output.stdout), text(output.stderr));
        assert!(!(out.clone() + &err).contains("PRIVATE KEY"), "{out}{err}");
        (output.status.code().unwrap(), out, err)
    }

    fn good(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!((code, err.as_str()), (0, ""), "{arguments:?}: {out}");
        out
    }

    fn refused(&self, arguments: &[&str], why: &str) {
        let (code, out, err) = self.run(arguments);
        assert!(
            code == 1 && err.contains(why),
            "{arguments:?}: {code} {out}{err}"
        );
    }

    fn list(&self) -> Vec<Value> {
        let json: Value = serde_json::from_str(&self.good(&["--json", "list"])).unwrap();
        json["certificates"].as_array().unwrap().clone()
    }

    fn states(&self) -> Vec<String> {
        let of = |it: &Value| {
            let text = |key: &str| it[key].as_str().unwrap().to_owned();
            format!("{} {}", text("workload"), text("state"))
        };
        self.list().iter().map(of).collect()
    }

    fn identity(&self, name: &str) -> Identity {
        Identity::load(&self.at(name)).unwrap()
    }

    fn key(&self, name: &str) -> String {
        fs::read_to_string(self.at(name).join("tls.key")).unwrap()
    }

    fn files(&self, name: &str) -> [String; 4] {
        let names = ["tls.crt", "tls.key", "ca.crt", "ca.crl"];
        names.map(|file| fs::read_to_string(self.at(name).join(file)).unwrap())
    }

    fn count(&self, name: &str, file: &str) -> usize {
        let text = fs::read_to_string(self.at(name).join(file)).unwrap();
        text.matches("-----BEGIN").count()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn id(name: &str) -> SpiffeId {
    format!("spiffe://example.org/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

/// Whether two workloads accept each other, in memory.
fn meet(client: &Identity, server: &Identity) -> bool {
    let (client_id, server_id) = (id("cart"), id("web"));
    let client = Party {
        identity: client,
        expects: (&server_id).into(),
    };
    let server = Party {
        identity: server,
        expects: (&client_id).into(),
    };
    memory::handshake(client, server, Cipher::Aes128Gcm).is_ok()
}

#[test]
fn issued_identities_shake_hands() {
    for kind in ["p256", "ed25519"] {
        let node = Node::with_ca(&format!("key = \"{kind}\""));
        assert!(
            meet(&node.identity("cart"), &node.identity("web")),
            "{kind}"
        );
        // The control: another CA for the same names.
        let other = Node::with_ca("");
        assert!(
            !meet(&node.identity("cart"), &other.identity("web")),
            "{kind}"
        );
    }
}

#[test]
fn what_a_certificate_says() {
    let node = Node::with_ca("");
    let text = fs::read_to_string(node.at("cart/tls.crt")).unwrap();
    let pem = x509_parser::pem::Pem::iter_from_buffer(text.as_bytes())
        .next()
        .unwrap()
        .unwrap();
    let certificate = pem.parse_x509().unwrap();
    let names: Vec<String> = certificate
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        names,
        [
            "URI(spiffe://example.org/ns/shop/sa/cart)",
            "DNSName(cart.shop.svc.cluster.local)",
            "DNSName(cart)",
            "DNSName(cart.example.org)"
        ]
    );
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_encipherment() && !usage.key_cert_sign());
    let extended = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(!certificate.is_ca());
    let validity = certificate.validity();
    let length = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(length, 86400 + 60);
    assert_eq!(certificate.raw_serial().len(), 16);

    let text = fs::read_to_string(node.at("cart/ca.crt")).unwrap();
    let pem = x509_parser::pem::Pem::iter_from_buffer(text.as_bytes())
        .next()
        .unwrap()
        .unwrap();
    let ca = pem.parse_x509().unwrap();
    let usage = ca.key_usage().unwrap().unwrap().value;
    assert!(ca.is_ca() && usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    let names = &ca
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    assert_eq!(names[0].to_string(), "URI(spiffe://example.org)");
    let mode = |path: &str| fs::metadata(node.at(path)).unwrap().mode() & 0o777;
    assert_eq!(
        (mode("pki/ca-1/ca.key"), mode("cart/tls.key")),
        (0o600, 0o600)
    );
}

#[test]
fn there_is_one_ca() {
    let node = Node::new("");
    node.refused(&["issue"], "there is no CA\n  hint: `underseal pki init`");
    node.good(&["init"]);
    node.refused(&["init"], "there is a CA already");
    node.refused(
        &["issue", "cart"],
        "the configuration has no workload `cart`",
    );
    fs::set_permissions(
        node.at("pki/ca-1/ca.key"),
        std::os::unix::fs::PermissionsExt::from_mode(0o640),
    )
    .unwrap();
    node.refused(&["issue"], "others may use it (mode 0640)");
}

#[test]
fn renewal_by_need() {
    let node = Node::with_ca("");
    assert_eq!(node.good(&["renew"]), "nothing to do\n");
    let before = node.key("cart");
    // Now everything is due.
    node.configure("renew_before = \"25h\"\nlifetime = \"26h\"");
    assert_eq!(node.states(), ["shop/cart due", "shop/web due"]);
    assert!(
        node.good(&["renew", "--dry-run"])
            .contains("shop/cart would be renewed")
    );
    assert_eq!(node.key("cart"), before);
    node.good(&["renew"]);
    assert_ne!(node.key("cart"), before);
    assert_eq!(node.states()[2..], ["shop/cart valid", "shop/web valid"]);
    assert!(meet(&node.identity("cart"), &node.identity("web")));
    assert_eq!(node.good(&["renew"]), "nothing to do\n");
}

/// The one that fails keeps its old certificate; the other one is renewed all the same.
#[test]
fn other_names_are_issued_at_the_next_renewal() {
    let node = Node::with_ca("");
    assert_eq!(node.good(&["renew"]), "nothing to do\n");
    let text = fs::read_to_string(node.at("c.toml")).unwrap();
    let text = text.replace(
        "[\"web.example.org\"]",
        "[\"web.example.org\", \"www.example.org\"]",
    );
    fs::write(node.at("c.toml"), text).unwrap();
    let said = node.good(&["renew", "--dry-run"]);
    assert!(
        said.contains("shop/web would be renewed") && !said.contains("cart"),
        "{said}"
    );
    let said = node.good(&["renew"]);
    assert!(
        said.contains("issued shop/web") && !said.contains("cart"),
        "{said}"
    );
    let svid = Svid::parse(&node.identity("web").chain()[0]).unwrap();
    assert!(svid.has_dns_name("www.example.org"));
    assert_eq!(node.good(&["renew"]), "nothing to do\n");
}

#[test]
fn a_certificate_that_lacks_a_name_is_warned_of() {
    let node = Node::with_ca("");
    let text = fs::read_to_string(node.at("c.toml")).unwrap();
    let rule = "[[network_policy]]\nname = \"p\"\n[[network_policy.egress]]\npeers = [{ dns = \"www.example.org\" }]\n";
    let check = |text: String| {
        fs::write(node.at("c.toml"), text).unwrap();
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("underseal"));
        let output = command.arg("-c").arg(node.at("c.toml")).arg("check");
        let output = output.output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(!check(format!("{text}{rule}")).contains("warning"));
    let more = text.replace(
        "[\"web.example.org\"]",
        "[\"web.example.org\", \"www.example.org\"]",
    );
    let said = check(format!("{more}{rule}"));
    assert!(
        said.contains("workload shop/web") && said.contains("www.example.org"),
        "{said}"
    );
    node.good(&["renew"]);
    assert!(!check(format!("{more}{rule}")).contains("warning"));
}

#[test]
fn a_renewal_that_fails_fails_alone() {
    let node = Node::with_ca("");
    node.configure("renew_before = \"25h\"\nlifetime = \"26h\"");
    let (cart, web) = (node.key("cart"), node.key("web"));
    // As somebody else's tool would leave it.
    fs::remove_file(node.at("cart/tls.crt")).unwrap();
    symlink(node.at("web/tls.crt"), node.at("cart/tls.crt")).unwrap();
    node.refused(&["renew"], "shop/cart was left as it was");
    assert_eq!(node.key("cart"), cart);
    assert_ne!(node.key("web"), web);
    node.refused(&["issue", "shop/cart"], "shop/cart was left as it was");
    assert_eq!(node.key("cart"), cart);
    // A lost list comes back; a lost key is nothing to guess about.
    fs::remove_file(node.at("web/..data/ca.crl")).unwrap();
    node.refused(&["renew"], "shop/cart was left as it was");
    assert_eq!(node.count("web", "ca.crl"), 1);
    fs::remove_file(node.at("web/..data/tls.key")).unwrap();
    node.refused(&["renew"], "tls.key: it is missing");
}

#[test]
fn revocation_reaches_every_folder() {
    let node = Node::with_ca("");
    let serial = node.list()[0]["serial"].as_str().unwrap().to_owned();
    let revoked = |name: &str| {
        let text = fs::read_to_string(node.at(name).join("ca.crl")).unwrap();
        let pem = x509_parser::pem::Pem::iter_from_buffer(text.as_bytes())
            .next()
            .unwrap()
            .unwrap();
        let (_, list) = x509_parser::parse_x509_crl(&pem.contents).unwrap();
        assert!(list.next_update().unwrap().timestamp() > list.last_update().timestamp());
        list.iter_revoked_certificates().count()
    };
    assert_eq!(WORKLOADS.map(revoked), [0, 0]);
    node.refused(&["revoke", "4242"], "no certificate has");
    node.good(&["revoke", &serial]);
    assert_eq!(WORKLOADS.map(revoked), [1, 1]);
    assert_eq!(node.states(), ["shop/cart revoked", "shop/web valid"]);
    // Not undone behind the back of whoever did it.
    node.configure("renew_before = \"25h\"\nlifetime = \"26h\"");
    node.good(&["renew"]);
    assert_eq!(node.states()[2..], ["shop/web valid"]);
    node.good(&["revoke", "shop/web"]);
    assert_eq!(WORKLOADS.map(revoked), [3, 3]);
}

#[test]
fn new_keys_in_an_emergency() {
    let node = Node::with_ca("");
    let before = WORKLOADS.map(|name| node.key(name));
    node.good(&["rekey"]);
    for (name, before) in WORKLOADS.iter().zip(before) {
        assert_ne!(node.key(name), before);
    }
    assert_eq!(
        node.states(),
        [
            "shop/cart revoked",
            "shop/web revoked",
            "shop/cart valid",
            "shop/web valid"
        ]
    );
    assert!(meet(&node.identity("cart"), &node.identity("web")));
}

/// At every moment of a change of the CA the two accept each other, whichever of them is ahead.
#[test]
fn another_ca_without_a_gap() {
    let node = Node::with_ca("");
    let mut seen = vec![WORKLOADS.map(|name| node.identity(name))];
    node.refused(&["rotate-ca", "switch"], "no change of the CA has begun");
    for step in ["begin", "begin", "switch", "switch"] {
        node.good(&["rotate-ca", step]);
        let now = WORKLOADS.map(|name| node.identity(name));
        let last = seen.last().unwrap();
        assert!(meet(&now[0], &now[1]) && meet(&last[0], &now[1]) && meet(&now[0], &last[1]));
        seen.push(now);
    }
    // The control: without the step in between they would not.
    assert!(!meet(&seen[0][0], &seen[4][1]));
    assert_eq!(node.list().len(), 4);
    assert_eq!(
        (node.count("cart", "ca.crt"), node.count("cart", "ca.crl")),
        (2, 2)
    );
    node.refused(&["rotate-ca", "begin"], "is not finished");
    node.refused(
        &["rotate-ca", "finish"],
        "2 certificates of the old CA can still be in use",
    );
    node.good(&["rotate-ca", "finish", "--replaced"]);
    assert_eq!(
        (node.count("cart", "ca.crt"), node.count("cart", "ca.crl")),
        (1, 1)
    );
    assert!(!node.at("pki/ca-1").exists() && node.at("pki/ca-2/ca.key").exists());
    assert!(meet(&node.identity("cart"), &node.identity("web")));
    assert_eq!(node.good(&["rotate-ca", "finish"]), "nothing to do\n");
}

#[test]
fn the_old_ca_stays_while_its_certificates_are_shown() {
    let node = Node::with_ca("");
    node.good(&["rotate-ca", "begin"]);
    node.refused(&["rotate-ca", "finish"], "has only begun");
    // Not while one does not trust both.
    fs::remove_file(node.at("cart/tls.crt")).unwrap();
    fs::write(node.at("cart/tls.crt"), "foreign").unwrap();
    node.refused(&["rotate-ca", "switch"], "was left as it was");
    fs::remove_file(node.at("cart/tls.crt")).unwrap();
    symlink("..data/tls.crt", node.at("cart/tls.crt")).unwrap();
    // A folder that the switch did not reach stays with the old CA.
    let data = |node: &Node| {
        node.at("cart")
            .join(fs::read_link(node.at("cart/..data")).unwrap())
    };
    let kept = node.at("kept");
    copy(&data(&node), &kept);
    node.good(&["rotate-ca", "switch"]);
    copy(&kept, &data(&node));
    node.refused(
        &["rotate-ca", "finish", "--replaced"],
        "1 certificate of the old CA",
    );
    // The timer comes by and completes the switch.
    node.good(&["renew"]);
    node.good(&["rotate-ca", "finish", "--replaced"]);
    assert!(meet(&node.identity("cart"), &node.identity("web")));
}

/// Killed after the record was written and before the folders were: the next command goes on.
#[test]
fn what_was_interrupted_is_finished_by_the_next_command() {
    let node = Node::with_ca("");
    let old = fs::read_link(node.at("cart/..data")).unwrap();
    let kept = node.at("cart").join("kept");
    copy(&node.at("cart").join(&old), &kept);
    node.good(&["rotate-ca", "begin"]);
    // The folder as it was before.
    let current = node
        .at("cart")
        .join(fs::read_link(node.at("cart/..data")).unwrap());
    copy(&kept, &current);
    assert_eq!(node.count("cart", "ca.crt"), 1);
    // A line of the index that was cut off, and a CA that nothing names.
    let index = node.at("pki/index.jsonl");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, format!("{text}{{\"serial\":\"4")).unwrap();
    fs::create_dir(node.at("pki/ca-3")).unwrap();
    node.good(&["renew"]);
    assert_eq!(node.count("cart", "ca.crt"), 2);
    node.good(&["issue", "shop/web"]);
    assert_eq!(node.list().len(), 3);
    node.good(&["rotate-ca", "switch"]);
    node.good(&["rotate-ca", "finish", "--replaced"]);
    assert!(!node.at("pki/ca-3").exists());
}

/// The CA is on one machine, the workloads are on another.
#[test]
fn requests_travel_and_keys_do_not() {
    let ca = Node::with_ca("");
    let node = Node::new("");
    let desk = ca.place.path().join("desk");
    let desk_text = desk.to_str().unwrap();
    node.good(&["request", "--out", desk_text]);
    for entry in fs::read_dir(&desk).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("PRIVATE"));
    }
    ca.good(&["sign", desk_text]);
    node.good(&["install", desk_text]);
    assert!(meet(&node.identity("cart"), &ca.identity("web")));
    assert_eq!(fs::read_dir(node.at("pki/requests")).unwrap().count(), 0);
    node.refused(&["install", desk_text], "there is no key that waits");

    // A change of the CA over there, with the bundle carried over by hand.
    ca.good(&["rotate-ca", "begin"]);
    let bundle = ca.place.path().join("bundle");
    ca.good(&["bundle", bundle.to_str().unwrap()]);
    node.good(&["install", bundle.to_str().unwrap()]);
    ca.good(&["rotate-ca", "switch"]);
    assert!(meet(&node.identity("cart"), &ca.identity("web")));
    // What is on another machine holds the old CA, replaced or not.
    ca.refused(&["rotate-ca", "finish", "--replaced"], "2 certificates");
    // A bundle that would not accept the workload's own certificate stays out.
    let stranger = Node::with_ca("");
    stranger.good(&["bundle", bundle.to_str().unwrap()]);
    node.refused(&["install", bundle.to_str().unwrap()], "does not accept it");
    assert!(meet(&node.identity("cart"), &ca.identity("web")));
}

#[test]
fn requests_get_what_the_configuration_gives_them() {
    let ca = Node::with_ca("");
    let write = |names: Vec<rcgen::SanType>| {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = names;
        // It may ask to be a CA; it does not become one.
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let text = params.serialize_request(&key).unwrap().pem().unwrap();
        fs::write(ca.at("x.csr"), text).unwrap();
    };
    let uri = |text: &str| rcgen::SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| rcgen::SanType::DnsName(text.try_into().unwrap());
    let cart = "spiffe://example.org/ns/shop/sa/cart";
    let other = "spiffe://example.org/ns/shop/sa/other";
    for (names, why) in [
        (vec![], "0 SPIFFE IDs"),
        (vec![uri(cart), uri(other)], "2 SPIFFE IDs"),
        (vec![uri(other)], "which the configuration does not have"),
        (
            vec![uri("spiffe://else.org/a")],
            "not in the CA's trust domain",
        ),
        (vec![uri(cart), dns("web")], "DNS name `web`"),
        (
            vec![uri(cart), rcgen::SanType::IpAddress([10, 1, 0, 1].into())],
            "neither a URI",
        ),
    ] {
        write(names);
        ca.refused(&["sign", "x.csr"], why);
        assert!(!ca.at("x.crt").exists());
    }
    fs::write(ca.at("x.csr"), "nonsense").unwrap();
    ca.refused(&["sign", "x.csr"], "no good request");
    write(vec![uri(other), dns("other.example.org")]);
    ca.refused(
        &["sign", "x.csr", "--allow", other],
        "--allow-dns other.example.org",
    );
    ca.good(&[
        "sign",
        "x.csr",
        "--allow",
        other,
        "--allow-dns",
        "other.example.org",
    ]);
    let text = fs::read_to_string(ca.at("x.crt")).unwrap();
    let pem = x509_parser::pem::Pem::iter_from_buffer(text.as_bytes())
        .next()
        .unwrap()
        .unwrap();
    assert!(!pem.parse_x509().unwrap().is_ca());
}

#[test]
fn the_configuration_is_checked() {
    let node = Node::new("lifetime = \"1h\"\nrenew_before = \"2h\"");
    let (code, _, err) = node.run(&["init"]);
    assert!(
        code == 2 && err.contains("`renew_before` must be shorter"),
        "{err}"
    );
    node.configure("key = \"rsa\"");
    assert!(
        node.run(&["init"])
            .2
            .contains("must be `p256` or `ed25519`")
    );
    assert_eq!(node.run(&["issue", "--key", "rsa"]).0, 2);
}

/// Neither certificates nor trust: the folder's contents are the agent's.
#[test]
fn workloads_of_spire_are_left_alone() {
    let node = Node::with_ca("");
    let before = node.files("cart");
    let text = fs::read_to_string(node.at("c.toml")).unwrap();
    let cart = format!("identity = \"{}\"\n", node.at("cart").display());
    let spire = "[spire]\nsocket = \"/run/agent.sock\"\n";
    let text = text.replace(&cart, &format!("{cart}spire = true\n"));
    fs::write(
        node.at("c.toml"),
        text.replace("[pki]", &format!("{spire}[pki]")),
    )
    .unwrap();
    let web = node.files("web");
    node.good(&["issue"]);
    node.good(&["revoke", "shop/web"]);
    node.good(&["rekey"]);
    assert_ne!(node.files("web"), web);
    assert_eq!(node.files("cart"), before);
    node.refused(
        &["issue", "shop/cart"],
        "has its identity from the SPIRE agent",
    );
}
