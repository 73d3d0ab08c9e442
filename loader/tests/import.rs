//! `underseal import`: the examples, whose outcome lies beside them, and what must never be more open than a manifest.
//! `UPDATE_GOLDEN=1 cargo test` writes the outcomes anew; read the difference before you commit it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf};

use assert_cmd::Command;
use support::golden;
use underseal::{
    config::{Config, ConfigError, Format, Source},
    import::{self, Effect, Imported},
};

mod support;

/// A node for sections to be added to.
const NODE: &str =
    "[node]\nname = \"node-a\"\nnetworks = [\"10.1.0.0/24\"]\ntrust_domain = \"example.org\"\n\n";

fn read(text: &str) -> Imported {
    let file = Source {
        name: "test.yaml".into(),
        text: text.into(),
        format: Format::Yaml,
    };
    import::read(&[file], "default").unwrap_or_else(|error| panic!("{error}"))
}

/// Of a policy that selects `app: cart` and goes on like this.
fn cilium(rest: &str) -> Imported {
    let head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  \
                endpointSelector: {matchLabels: {app: cart}}\n";
    let body: String = rest.lines().map(|line| format!("  {line}\n")).collect();
    read(&format!("{head}{body}"))
}

fn parsed(imported: &Imported) -> toml::Table {
    assert_eq!(imported.refusals(), Vec::<&import::Left>::new());
    imported
        .toml
        .parse()
        .unwrap_or_else(|error| panic!("{error}\n{}", imported.toml))
}

/// The configuration of a node with these sections.
fn configured(sections: &str) -> Result<Config, ConfigError> {
    Config::parse(&Source {
        name: "test.toml".into(),
        text: format!("{NODE}{sections}"),
        format: Format::Toml,
    })
}

/// The first policy, as a value.
fn policy(imported: &Imported) -> toml::Value {
    parsed(imported)["network_policy"][0].clone()
}

fn paths(imported: &Imported, effect: Effect) -> Vec<&str> {
    let of = imported.left.iter().filter(|left| left.effect == effect);
    of.map(|left| left.path.as_str()).collect()
}

fn examples() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/import");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn examples_become_what_lies_beside_them() {
    for path in examples() {
        let file = Source {
            name: path.file_name().unwrap().to_str().unwrap().into(),
            text: fs::read_to_string(&path).unwrap(),
            format: Format::Yaml,
        };
        let imported = import::read(&[file], "default").unwrap();
        for left in &imported.left {
            let line = format!("# not carried over: {}: {}\n", left.path, left.why);
            assert!(imported.toml.contains(&line), "{line}");
        }
        golden::compare(&path.with_extension("toml"), &imported.toml);
        // Where a Certificate says nothing, something has to be filled in.
        let filled = imported
            .toml
            .replace("addresses = []", "addresses = [\"10.1.0.10\"]");
        configured(&filled).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_rule_that_loses_a_part_is_left_out_and_the_rest_stays_closed() {
    for (rest, lost) in [
        (
            "ingress:\n- fromEndpoints: [{}]\n  toPorts: [{ports: [{port: \"80\"}], rules: {http: [{}]}}]",
            "spec.ingress[0].toPorts[0].rules.http",
        ),
        (
            "ingress:\n- toPorts: [{ports: [{port: http}]}]",
            "spec.ingress[0].toPorts[0].ports[0].port",
        ),
        (
            "ingress:\n- toPorts: [{ports: [{port: \"80\"}], serverNames: [a]}]",
            "spec.ingress[0].toPorts[0].serverNames",
        ),
        (
            "ingress:\n- fromEndpoints: [{}]\n  icmps: [{fields: [{type: 8}]}]",
            "spec.ingress[0].icmps",
        ),
        (
            "ingress:\n- fromEndpoints: [{}]\n  news: 1",
            "spec.ingress[0].news",
        ),
        ("ingress:\n- fromNodes: [{}]", "spec.ingress[0].fromNodes"),
        (
            "ingress:\n- fromEndpoints: [{}]\n  fromEntities: [world]",
            "spec.ingress[0].fromEntities",
        ),
        (
            "ingress:\n- fromCIDR: [10.0.0.0/33]",
            "spec.ingress[0].fromCIDR[0]",
        ),
        (
            "ingress:\n- fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/9]}]",
            "spec.ingress[0].fromCIDRSet[0].except[0]",
        ),
        (
            "ingress:\n- fromEndpoints: [{matchLabels: {\"container:id\": a}}]",
            "spec.ingress[0].fromEndpoints[0].matchLabels[\"container:id\"]",
        ),
        (
            "ingress:\n- fromEndpoints: [{matchLabels: {underseal/name: a}}]",
            "spec.ingress[0].fromEndpoints[0].matchLabels[\"underseal/name\"]",
        ),
        (
            "ingress:\n- fromEndpoints: [{}]\n  authentication: {mode: test-always-fail}",
            "spec.ingress[0].authentication.mode",
        ),
    ] {
        let imported = cilium(rest);
        assert_eq!(
            policy(&imported)["ingress"],
            toml::Value::Array(vec![]),
            "{rest}"
        );
        assert!(
            paths(&imported, Effect::LessOpen).contains(&lost),
            "{rest}: {:?}",
            imported.left
        );
    }
}

#[test]
fn what_allows_nobody_does_not_become_what_allows_everybody() {
    for rest in [
        "ingress:\n- {}",
        "ingress:\n- toPorts: []",
        "ingress:\n- fromEndpoints: []",
        "ingress:\n- fromEndpoints: []\n  toPorts: [{ports: [{port: \"80\"}]}]",
        "enableDefaultDeny: {ingress: true}",
    ] {
        let imported = cilium(rest);
        assert_eq!(
            policy(&imported)["ingress"],
            toml::Value::Array(vec![]),
            "{rest}"
        );
        assert!(!policy(&imported).as_table().unwrap().contains_key("egress"));
    }
}

#[test]
fn what_would_be_more_open_refuses_everything() {
    for (rest, path) in [
        (
            "ingressDeny:\n- fromEntities: [world]\ningress:\n- fromEntities: [all]",
            "spec.ingressDeny",
        ),
        ("egressDeny:\n- {}", "spec.egressDeny"),
        (
            "ingress:\n- fromEntities: [all]\n  fromRequires: [{matchLabels: {a: b}}]",
            "spec.ingress[0].fromRequires",
        ),
        ("ingress:\n- {}\nfuture: 1", "spec.future"),
        (
            "ingress:\n- {}\nenableDefaultDeny: {ingress: true, future: true}",
            "spec.enableDefaultDeny.future",
        ),
    ] {
        let imported = cilium(rest);
        assert_eq!(imported.toml, "", "{rest}");
        assert_eq!(paths(&imported, Effect::Refused), [path], "{rest}");
    }
    let whom = read(
        "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: {matchLabels: {\"container:id\": a}}, ingress: [{}]}",
    );
    assert_eq!(
        paths(&whom, Effect::Refused),
        ["spec.endpointSelector.matchLabels[\"container:id\"]"]
    );
    let stranger = read(
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: a}\nspec: {}",
    );
    assert_eq!(paths(&stranger, Effect::Refused), ["kind"]);
}

#[test]
fn allowing_without_restricting_is_left_out() {
    let imported = cilium(
        "enableDefaultDeny: {ingress: false}\ningress:\n- fromEntities: [all]\negress:\n- {}",
    );
    assert!(
        !policy(&imported)
            .as_table()
            .unwrap()
            .contains_key("ingress")
    );
    assert_eq!(paths(&imported, Effect::LessOpen), ["spec.ingress"]);
}

#[test]
fn a_manifest_cannot_end_a_comment_or_a_text() {
    let imported = read(
        "apiVersion: v1\nkind: \"Thing\\n[[network_policy]]\\nname = 'x'\"\nmetadata: {name: \"a\\n[node]\", namespace: \"b\\\"\\n\"}\n---\n\
         apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: \"a\\n[b]\"}\nspec:\n  endpointSelector: {matchLabels: {a: b}}\n  ingress: [{fromEndpoints: [{\"x\\ny\": 1}]}]\n",
    );
    let table = parsed(&imported);
    assert_eq!(table.keys().collect::<Vec<_>>(), ["network_policy"]);
    assert_eq!(table["network_policy"].as_array().unwrap().len(), 1);
    assert_eq!(table["network_policy"][0]["name"].as_str(), Some("a--b"));
}

#[test]
fn policies_of_one_name_stay_apart() {
    let one = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a.b}\nspecs:\n- {endpointSelector: {}, ingress: [{}]}\n- {endpointSelector: {}, egress: [{}]}\n";
    let table = parsed(&read(one));
    let names: Vec<_> = table["network_policy"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["a-b", "a-b-2"]);
}

#[test]
fn the_program_says_what_is_left_and_fails_where_it_must() {
    let run = |arguments: &[&str], input: &str| {
        let mut program = Command::new(assert_cmd::cargo::cargo_bin!("underseal"));
        program
            .arg("import")
            .args(arguments)
            .write_stdin(input)
            .output()
            .unwrap()
    };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";
    let output = run(&["-"], service);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stderr).contains("standard input: Service a: kind: "),
        "{}",
        text(&output.stderr)
    );
    let json = run(&["--json", "-"], service);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["left"][0]["path"], "kind");
    assert_eq!(run(&["--strict", "-"], service).status.code(), Some(0));
    let less = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: a}\nspec: {endpointSelector: {}, egress: [{toFQDNs: [{}]}]}";
    assert_eq!(run(&["-"], less).status.code(), Some(0));
    let strict = run(&["--strict", "-"], less);
    assert_eq!(
        (strict.status.code(), strict.stdout.is_empty()),
        (Some(1), true)
    );
    let policy = "apiVersion: x/v1\nkind: Policy\n";
    let refused = run(&["-"], policy);
    assert_eq!(
        (refused.status.code(), refused.stdout.is_empty()),
        (Some(1), true)
    );
    for (wrong, place) in [
        ("a: [1\n", "standard input:"),
        ("- a\n", "standard input: document 1: "),
        ("kind: 1", "document 1: kind: "),
    ] {
        let output = run(&["-"], wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        assert!(
            text(&output.stderr).contains(place),
            "{}",
            text(&output.stderr)
        );
    }
    assert_eq!(run(&["/nonexistent"], "").status.code(), Some(2));
    assert_eq!(run(&[], "").status.code(), Some(2));
}

#[test]
fn a_certificate_makes_a_workload_that_lacks_its_addresses() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../examples/import/certificate.toml");
    let text = fs::read_to_string(path).unwrap();
    let error = configured(&text).unwrap_err().to_string();
    assert!(error.contains("a workload needs an address"), "{error}");
    let filled = text.replace("addresses = []", "addresses = [\"10.1.0.10\"]");
    let config = configured(&filled).unwrap();
    let cart = &config.workloads[0];
    assert_eq!(
        cart.spiffe_id.as_str(),
        "spiffe://example.org/ns/shop/sa/cart-account"
    );
    assert_eq!(
        cart.identity.as_str(),
        "/var/lib/underseal/identities/shop/cart-tls"
    );
    assert_eq!(config.pki.lifetime.seconds(), 86400);
}
