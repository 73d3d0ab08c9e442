//! `--once`, exit codes, and what must not be linked where.

use std::{fs, process::Command};

use crate::support::{
    ca::{Ca, message},
    program::{CART, Node, WEB},
};

#[test]
fn once_is_enough_when_everybody_has_something() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    agent.say(message(vec![ca.svid(CART), ca.svid(WEB)]));
    let first = node.once(&[]);
    let out = String::from_utf8(first.stdout).unwrap();
    assert_eq!(first.status.code(), Some(0), "{out}");
    assert_eq!(out.matches(": new certificate, until ").count(), 2, "{out}");
    let again = node.once(&[]);
    assert_eq!((again.status.code(), again.stdout), (Some(0), Vec::new()));
    node.shake_hands();
}

#[test]
fn once_says_who_has_nothing() {
    let (node, ca) = (Node::new(), Ca::new());
    let agent = node.agent();
    agent.say(message(vec![ca.svid(WEB)]));
    let output = node.once(&["--wait", "1"]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains("error: not every workload has what it needs:\n"),
        "{err}"
    );
    assert!(
        err.contains("shop/cart: the agent has no certificate for"),
        "{err}"
    );
    assert!(node.folder("web").join("tls.crt").exists());
    drop(agent);
    let output = node.once(&["--wait", "1"]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(err.contains("agent.sock"), "{err}");
}

#[test]
fn mistakes_in_the_file_are_shown_where_they_stand() {
    let node = Node::new();
    node.configure(&["cart"], "nonsense = true\n");
    let output = node.once(&[]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{err}");
    assert!(
        err.contains("underseal.toml:14:1: unknown key `nonsense`"),
        "{err}"
    );
    fs::remove_file(node.file()).unwrap();
    assert_eq!(node.once(&[]).status.code(), Some(2));
    assert_eq!(node.once(&["--nonsense"]).status.code(), Some(2));
}

#[test]
fn without_such_workloads_there_is_nothing_to_do() {
    let node = Node::new();
    node.configure(&[], "");
    let output = node.once(&[]);
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(out.contains("nothing to do"), "{out}");
}

/// The others block, and have no gRPC in them.
#[test]
fn tokio_is_in_no_other_program() {
    let tree = |package: &str| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "tree",
            "--offline",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
        ]);
        let output = cargo.args(["--package", package]).output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{err}");
        String::from_utf8(output.stdout).unwrap()
    };
    let has = |package: &str, name: &str| tree(package).lines().any(|line| line.starts_with(name));
    for package in ["underseal", "underseal-ktls"] {
        assert!(
            !has(package, "tokio ") && !has(package, "tonic "),
            "{package}"
        );
    }
    assert!(has("underseal-spire", "tokio ") && has("underseal-spire", "tonic "));
}
