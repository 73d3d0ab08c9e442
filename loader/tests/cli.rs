//! The executable itself: exit codes, where messages go, and that nothing is changed where the
//! machine lacks something. Runs without privileges.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
};

use assert_cmd::Command;

/// The user id that Linux gives to nobody in particular.
const NOBODY: u32 = 65534;

fn underseal(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(assert_cmd::cargo::cargo_bin!("underseal"))
        .args(arguments)
        .env_remove("UNDERSEAL_CONFIG")
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn example() -> String {
    file("../examples/underseal.toml")
}

fn file(relative: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(relative);
    path.canonicalize().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn the_example_is_in_order() {
    let (code, out, err) = underseal(&["-c", &example(), "check"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        format!(
            "{}: in order: node node-a, 1 peer, 2 workloads\n",
            example()
        )
    );
}

#[test]
fn check_speaks_json() {
    let (code, out, _) = underseal(&["check", "--json", "-c", &example()]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 0);
    assert_eq!(
        (&json["command"], &json["workloads"]),
        (&"check".into(), &2.into())
    );
}

#[test]
fn a_mistake_is_shown_where_it_stands() {
    let path = file("tests/config/unknown_key.toml");
    let (code, out, err) = underseal(&["check", "-c", &path]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(
        err.starts_with(&format!("error: {path}:6:1: unknown key `uplink`")),
        "{err}"
    );
    assert!(err.ends_with("\n    | ^^^^^^\n"), "{err}");
}

#[test]
fn a_missing_file_is_bad_usage() {
    let (code, _, err) = underseal(&["apply", "-c", "/nowhere/underseal.toml"]);
    assert_eq!(code, 2);
    assert_eq!(
        err,
        "error: cannot read /nowhere/underseal.toml: No such file or directory (os error 2)\n  \
         hint: name another one with -c\n"
    );
}

#[test]
fn bad_usage() {
    for arguments in [
        &["fly"][..],
        &[],
        &["apply", "--wait", "long"],
        &["check", "--fast"],
    ] {
        let (code, _, err) = underseal(arguments);
        assert_eq!(code, 2, "{arguments:?}");
        assert!(err.contains("--help") || err.contains("Usage:"), "{err}");
    }
}

#[test]
fn errors_are_json_too() {
    let path = file("tests/config/syntax.toml");
    let (code, out, _) = underseal(&["check", "--json", "-c", &path]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 2);
    assert!(json["error"].as_str().unwrap().contains("syntax.toml:2:10"));
}

/// The file alone decides: no privileges, nothing applied.
#[test]
fn policies_can_be_asked_for() {
    let config = file("../examples/policy.toml");
    let ask =
        |arguments: &[&str]| underseal(&[&["-c", &config, "policy", "test"], arguments].concat());
    let (code, out, err) = ask(&["shop/cart", "bank/ledger", "5432"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert_eq!(
        out,
        "shop/cart -> bank/ledger 5432/tcp: allowed, sealed by mTLS\n  egress of shop/cart: rule 5 (number 1 of policy \
         shop/cart): spiffe://example.org/ns/bank/sa/*; port 5432 of tcp; mtls required\n  ingress of bank/ledger: rule 7 \
         (number 1 of policy bank/ledger): workloads with app=cart, underseal/namespace=shop; port 5432 of tcp; mtls required\n"
    );
    let (code, out, _) = ask(&["world", "bank/ledger", "53/udp", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &json["outcome"]), (0, &"denied".into()));
    assert_eq!(
        json["ingress"]["policies"],
        serde_json::json!(["icmp-and-dns", "bank/ledger"])
    );
    let (code, _, err) = ask(&["shop/nobody", "bank/ledger", "80"]);
    assert!(
        code == 2 && err.contains("`shop/nobody` is not known"),
        "{err}"
    );
    assert_eq!(ask(&["world", "bank/ledger", "80/gre"]).0, 2);
}

/// Said once, with what to do, and nothing else is tried.
#[test]
fn not_root() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (program, config) = (
        folder.path().join("underseal"),
        folder.path().join("c.toml"),
    );
    // Not written by this process: a child that another test starts meanwhile would have the file open, and a program
    // that somebody may write to cannot be started (ETXTBSY).
    let mut copy = std::process::Command::new("cp");
    copy.arg(assert_cmd::cargo::cargo_bin!("underseal"));
    assert!(copy.arg(&program).status().unwrap().success());
    fs::copy(example(), &config).unwrap();
    for subcommand in ["plan", "apply", "status", "down"] {
        let mut command = std::process::Command::new(&program);
        command.arg(subcommand).arg("-c").arg(&config);
        if nix::unistd::geteuid().is_root() {
            command.uid(NOBODY);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{subcommand}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "error: not enough privileges: not running as root\n  hint: run it with sudo\n"
        );
    }
}

#[test]
fn the_public_key_stays_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (key, config) = (
        folder.path().join("keys/wg.key"),
        folder.path().join("c.toml"),
    );
    let text = format!(
        "[node]\nname = \"a\"\nnetworks = [\"10.1.0.0/24\"]\ntrust_domain = \"example.org\"\n\
         [wireguard]\nprivate_key_file = \"{}\"\n",
        key.display()
    );
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let (code, first, _) = underseal(&["key", "-c", config]);
    assert_eq!(code, 0);
    let secret = fs::read_to_string(&key).unwrap();
    assert!(
        !first.contains(secret.trim()),
        "the private key was printed"
    );
    assert_eq!(underseal(&["key", "-c", config]).1, first);
    assert_eq!(
        first
            .trim()
            .parse::<underseal::config::value::PublicKey>()
            .unwrap()
            .to_string(),
        first.trim()
    );
}

#[test]
fn metrics_go_into_a_prom_file_alone() {
    for file in ["/tmp/metrics.txt", "/tmp/prom", ""] {
        let (code, out, err) = underseal(&["metrics", "--output", file]);
        assert_eq!((code, out.as_str()), (2, ""), "{file}");
        assert!(err.contains("ends in .prom"), "{err}");
    }
}
