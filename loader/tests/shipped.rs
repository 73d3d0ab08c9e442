//! What is shipped beside the programs: systemd units, the NixOS module, the documents.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use underseal::config::{Config, Format, Source};

const UNITS: [&str; 7] = [
    "underseal.service",
    "underseal-handshake.service",
    "underseal-pki.service",
    "underseal-spire.service",
    "underseal-metrics.service",
    "underseal-pki.timer",
    "underseal-metrics.timer",
];

#[test]
fn systemd_finds_nothing_to_complain_about() {
    let root = root_with_units(|_, text| text);
    assert_eq!(verify(&root), (true, String::new()));
}

#[test]
fn systemd_would_find_a_mistake() {
    for (right, wrong) in [
        ("Restart=", "Restrat="),
        ("Type=notify", "Type=notfy"),
        ("/usr/bin/", "/usr/nib/"),
        ("OnBootSec=", "OnBotSec="),
    ] {
        let spoiled = std::cell::Cell::new(0);
        let root = root_with_units(|_, text| {
            let text_with_mistake = text.replace(right, wrong);
            spoiled.set(spoiled.get() + i32::from(text_with_mistake != text));
            text_with_mistake
        });
        assert!(spoiled.get() > 0, "{right} is in no unit");
        let (passed, complaint) = verify(&root);
        assert!(!passed && !complaint.is_empty(), "{wrong}: {complaint}");
    }
}

/// The limits leave no room: whoever opens the sandbox further has to say so here.
#[test]
fn sandboxes_are_tight() {
    let root = root_with_units(|_, text| text);
    for (unit, limit) in UNITS.iter().zip(["34", "35", "15", "15", "30"]) {
        let mut analyze = tool("systemd-analyze", "systemd");
        analyze.args([
            "security",
            "--offline=yes",
            "--no-pager",
            "--threshold",
            limit,
        ]);
        analyze.arg(root_option(&root)).arg(unit);
        let output = analyze.output().unwrap();
        assert!(
            output.status.success(),
            "{unit}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
}

#[test]
fn units_run_commands_that_exist() {
    let mut commands = 0;
    for unit in UNITS {
        let text = fs::read_to_string(top().join("systemd").join(unit)).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("Exec"));
        for (_, command) in lines.filter_map(|line| line.split_once("=/usr/bin/underseal ")) {
            let variables = text
                .lines()
                .filter_map(|line| line.strip_prefix("Environment="));
            let mut command = command.to_owned();
            for (name, value) in variables.filter_map(|it| it.split_once('=')) {
                command = command.replace(&format!("${{{name}}}"), value);
            }
            let mut underseal = Command::new(env!("CARGO_BIN_EXE_underseal"));
            underseal.args(command.split_whitespace()).arg("--help");
            assert!(
                underseal.output().unwrap().status.success(),
                "{unit}: {command}"
            );
            commands += 1;
        }
    }
    assert_eq!(commands, 5);
}

#[test]
fn nix_files_parse() {
    let files = files_in(&top().join("nixos"), "nix");
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let parsed = rnix::Root::parse(&fs::read_to_string(&file).unwrap());
        assert!(
            parsed.errors().is_empty(),
            "{}: {:?}",
            file.display(),
            parsed.errors()
        );
        let strict = nix().arg("--parse").arg(&file).output().unwrap();
        assert!(
            strict.status.success(),
            "{}",
            String::from_utf8_lossy(&strict.stderr)
        );
    }
}

#[test]
fn module_renders_what_the_loader_reads() {
    let module = evaluate_module();
    let example = Source {
        name: "underseal.toml".into(),
        text: fs::read_to_string(top().join("examples/underseal.toml")).unwrap(),
        format: Format::Toml,
    };
    assert_eq!(
        rendered(&module["example"]),
        Config::parse(&example).unwrap()
    );
    let least = rendered(&module["least"]);
    assert_eq!(
        (least.node.name.to_string().as_str(), least.wireguard),
        ("node-a", None)
    );
}

#[test]
fn module_configures_the_rest_of_nixos() {
    let module = evaluate_module();
    let device = "sys-subsystem-net-devices-eth0.device";
    let service = &module["services"]["underseal"];
    assert_eq!(
        (&service["wants"], &service["after"]),
        (&json!([device]), &json!([device]))
    );
    assert_eq!(service["reloadIfChanged"], json!(true));
    assert_eq!(service["reloadTriggers"], json!([module["example"]]));
    assert_eq!(
        module["modules"],
        json!(["tls", "inet_diag", "tcp_diag", "wireguard"])
    );
    let check = format!(
        "underseal -c {} check > $out\n",
        module["example"].as_str().unwrap()
    );
    assert_eq!(module["checks"], json!([check]));
    assert_eq!(
        module["ports"],
        json!({"example": [51871], "least": [], "generations": [51871, 51872, 51873, 51874]})
    );
    let spire = |value: &Value| value["underseal-spire"]["wantedBy"].clone();
    let wanted = json!(["multi-user.target"]);
    assert_eq!(spire(&module["spire"]), wanted);
    assert_eq!(spire(&module["services"]), json!([]));
    let timers = |pki: Value| {
        let none = json!({"wantedBy": []});
        json!({"underseal-pki": {"wantedBy": pki}, "underseal-metrics": none})
    };
    let (on, off) = (timers(json!(["timers.target"])), timers(json!([])));
    assert_eq!(module["timers"], json!({"on": on, "off": off}));
    assert_eq!(module["off"], json!({"etc": {}, "systemPackages": []}));
}

#[test]
fn module_writes_metrics_where_it_is_told() {
    let metrics = &evaluate_module()["metrics"];
    let wanted = |folder: &str| {
        json!({
            "service": {
                "environment": {"UNDERSEAL_METRICS": format!("{folder}/underseal.prom")},
                "serviceConfig": {"ReadWritePaths": [folder]},
            },
            "timer": {"wantedBy": ["timers.target"]},
            "folders": [format!("d {folder} 0755 root root -")],
        })
    };
    assert_eq!(metrics["on"], wanted("/var/lib/prometheus/node-exporter"));
    assert_eq!(metrics["elsewhere"], wanted("/srv/textfiles"));
    assert_eq!(metrics["off"]["timer"], json!({"wantedBy": []}));
    assert_eq!(metrics["off"]["folders"], json!([]));
}

#[test]
fn module_refuses_what_cannot_work() {
    let module = evaluate_module();
    let refused = json!({"mode": true, "port": true, "peer": true, "null": true, "nothing": false});
    assert_eq!(module["refused"], refused);
    let failing = |case: &str| module["failing"][case].as_array().unwrap().len();
    let cases = ["neither", "lsm", "lsm_with_bpf", "kernel"];
    assert_eq!(cases.map(failing), [0, 1, 0, 1]);
}

#[test]
fn examples_in_the_readme_are_in_order() {
    let readme = fs::read_to_string(top().join("README.md")).unwrap();
    let blocks: Vec<&str> = readme
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(!blocks.is_empty());
    for text in blocks {
        let source = Source {
            name: "README.md".into(),
            text: text.into(),
            format: Format::Toml,
        };
        Config::parse(&source).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn architecture_names_every_file() {
    let text = fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    let mut named = BTreeSet::new();
    for section in text.split("\n### ").skip(1) {
        let (heading, lines) = section.split_once('\n').unwrap();
        let folders = heading.split(':').next().unwrap().split(" and ");
        let folders: Vec<PathBuf> = folders.map(|folder| top().join(folder)).collect();
        let items = lines
            .lines()
            .filter(|line| line.starts_with("- `") && line.contains(".rs`: "));
        for name in items.flat_map(|line| line.split(": ").next().unwrap().split(", ")) {
            let name = name.trim_matches(['-', ' ', '`']);
            let file = folders
                .iter()
                .map(|folder| folder.join(name))
                .find(|file| file.exists());
            named.insert(file.unwrap_or_else(|| panic!("{heading}: there is no {name}")));
        }
    }
    let crates = [
        "bpf/src",
        "bpf/abi/src",
        "ktls/src",
        "loader/src",
        "tests/fuzz/src",
        "loader/spire/src",
        "tests/model/src",
    ];
    let all = crates
        .iter()
        .flat_map(|folder| files_in(&top().join(folder), "rs"));
    // Tests in files of their own are named by what they test.
    let missing: Vec<PathBuf> = all
        .filter(|file| !named.contains(file) && !file.ends_with("tests.rs"))
        .collect();
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md, \"Files\", does not name {missing:?}"
    );
}

/// A file system root with systemd's own units, ours as `change` leaves them, and what they start.
fn root_with_units(change: impl Fn(&str, String) -> String) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for folder in ["usr/lib/systemd", "usr/bin", "etc/systemd/system"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    let copied = Command::new("cp")
        .args(["-a", "/usr/lib/systemd/system"])
        .arg(at("usr/lib/systemd"))
        .status();
    assert!(copied.unwrap().success());
    for unit in UNITS {
        let text = fs::read_to_string(top().join("systemd").join(unit)).unwrap();
        fs::write(at("etc/systemd/system").join(unit), change(unit, text)).unwrap();
    }
    for program in ["underseal", "underseal-handshake", "underseal-spire"] {
        let path = at("usr/bin").join(program);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    root
}

/// Whether systemd accepts the units, and what it says. Without `--recursive-errors` it would
/// accept unknown keys.
fn verify(root: &TempDir) -> (bool, String) {
    let mut analyze = tool("systemd-analyze", "systemd");
    analyze.args(["verify", "--recursive-errors=no", "--man=no"]);
    let output = analyze.arg(root_option(root)).args(UNITS).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn root_option(root: &TempDir) -> String {
    format!("--root={}", root.path().display())
}

/// What nixos/tests/module.nix says. Nothing but builtins is evaluated: no store, no nixpkgs.
fn evaluate_module() -> Value {
    let output = nix()
        .args(["--eval", "--strict", "--json"])
        .arg(top().join("nixos/tests/module.nix"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The configuration that the module has rendered, as `NAME: JSON`.
fn rendered(file: &Value) -> Config {
    let (name, text) = file.as_str().unwrap().split_once(": ").unwrap();
    let source = Source {
        name: name.into(),
        text: text.into(),
        format: Format::Json,
    };
    Config::parse(&source).unwrap_or_else(|error| panic!("{error}"))
}

/// nix-instantiate without a daemon, a store, or a network.
fn nix() -> Command {
    let mut nix = tool("nix-instantiate", "nix-bin");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nix");
    nix.env("NIX_REMOTE", "dummy://").env("HOME", &folder);
    for variable in [
        "NIX_STORE_DIR",
        "NIX_STATE_DIR",
        "NIX_CONF_DIR",
        "NIX_LOG_DIR",
    ] {
        nix.env(variable, folder.join(variable));
    }
    nix
}

/// A program that must be there: a test that is skipped in silence tests nothing.
fn tool(name: &str, package: &str) -> Command {
    if let Err(error) = Command::new(name).arg("--version").output() {
        assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error}");
        panic!(
            "{name} is not installed\n  hint: apt-get install -y --no-install-recommends {package}"
        );
    }
    Command::new(name)
}

fn files_in(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                files_in(&path, ending)
            } else {
                vec![path]
            }
        })
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect()
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
