//! Golden mistakes: `config/<case>.{toml,yaml,json}` → `<case>.<ending>.txt`, the whole message. And
//! the shipped examples, which have none.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path};

use support::golden;
use underseal::config::{Config, Format, Source};

mod support;

fn parse(path: &Path) -> Result<Config, String> {
    let source = Source {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        text: fs::read_to_string(path).unwrap(),
        format: Format::of(path),
    };
    Config::parse(&source).map_err(|e| e.to_string())
}

#[test]
fn mistakes() {
    let inputs = golden::entries("config")
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ending| ending != "txt"));
    for input in inputs {
        let message = parse(&input).expect_err(&input.display().to_string());
        let ending = input.extension().unwrap().to_string_lossy();
        golden::compare(
            &input.with_extension(format!("{ending}.txt")),
            &(message + "\n"),
        );
    }
}

#[test]
fn the_examples_are_in_order() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/underseal.toml");
    let config = parse(&example).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.workloads.len(), 2);
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policy.toml");
    let config = parse(&policies).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.network_policies.len(), 3);
}

#[test]
fn all_formats_say_the_same() {
    let toml = r#"
        [node]
        name = "a"
        networks = ["10.1.0.0/24"]
        uplinks = ["eth0"]
        trust_domain = "example.org"
        [[workload]]
        name = "cart"
        netns = "/run/netns/cart"
        addresses = ["10.1.0.10"]
    "#;
    let yaml = "
node: {name: a, networks: [10.1.0.0/24], uplinks: [eth0], trust_domain: example.org}
workload:
- name: cart
  netns: /run/netns/cart
  addresses: [10.1.0.10]
";
    let json = r#"{
        "node": {"name": "a", "networks": ["10.1.0.0/24"], "uplinks": ["eth0"], "trust_domain": "example.org"},
        "workload": [{"name": "cart", "netns": "/run/netns/cart", "addresses": ["10.1.0.10"]}]
    }"#;
    let [toml, yaml, json] = [
        (toml, Format::Toml),
        (yaml, Format::Yaml),
        (json, Format::Json),
    ]
    .map(|(text, format)| {
        let source = Source {
            name: "config".to_owned(),
            text: text.to_owned(),
            format,
        };
        Config::parse(&source).unwrap_or_else(|e| panic!("{e}"))
    });
    assert_eq!(toml, yaml);
    assert_eq!(toml, json);
    assert_eq!(
        toml.workloads[0].spiffe_id.as_str(),
        "spiffe://example.org/ns/default/sa/cart"
    );
}
