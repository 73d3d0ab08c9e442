//! Metrics, alert rules and `doctor` on this machine: golden texts, the table in docs/metrics.md, and what promtool says.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use support::{golden, promtool};
use underseal::{
    doctor::{CHECKS, Facts, Level, examine},
    metrics::{self, FAMILIES, Observed},
    report::{Diagnosis, Report},
};
use underseal_abi::{COUNTERS, HELPER_COUNTERS};

mod support;

/// `golden_seeing/metrics/CASE.json` is what was seen, `CASE.prom` what is told of it.
#[test]
fn golden_metrics() {
    for seen in golden::files("golden_seeing/metrics", "json") {
        let text = fs::read_to_string(&seen).unwrap();
        let observed: Observed = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", seen.display()));
        let told = metrics::text(&metrics::shown(&observed)).unwrap();
        golden::compare(&seen.with_extension("prom"), &told);
        let lint = promtool::with_input(&["check", "metrics"], &told);
        assert!(
            lint.status.success() && said(&lint).is_empty(),
            "{}: {}",
            seen.display(),
            said(&lint)
        );
    }
}

#[test]
fn promtool_would_find_a_mistake_in_metrics() {
    for wrong in [
        "underseal_things 1\n",
        "# HELP underseal_things Things.\n# TYPE underseal_things counter\nunderseal_things 1\n",
        "underseal things\n",
    ] {
        let lint = promtool::with_input(&["check", "metrics"], wrong);
        assert!(!lint.status.success() && !said(&lint).is_empty(), "{wrong}");
    }
}

/// `golden_seeing/doctor/CASE.json` is what was seen, `CASE.txt` what is told of it, and `CASE.out.json` the same for programs.
#[test]
fn golden_doctor() {
    let is_told = |file: &PathBuf| file.to_string_lossy().ends_with(".out.json");
    for seen in golden::files("golden_seeing/doctor", "json") {
        if is_told(&seen) {
            continue;
        }
        let text = fs::read_to_string(&seen).unwrap();
        let facts: Facts = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", seen.display()));
        let report = Report::Doctor(Diagnosis::of(&facts));
        let told = anstream::adapter::strip_str(&report.to_string()).to_string();
        golden::compare(&seen.with_extension("txt"), &told);
        let json = serde_json::to_string_pretty(&report).unwrap() + "\n";
        golden::compare(&seen.with_extension("out.json"), &json);
        let has_problem = told.lines().any(|line| line.starts_with("problem "));
        assert_eq!(report.code(), u8::from(has_problem), "{}", seen.display());
    }
}

/// Every check can find something, and finds nothing on a node that is well.
#[test]
fn every_check_can_fail() {
    let level = |case: &str| -> BTreeSet<(&str, bool)> {
        let file = format!("tests/golden_seeing/doctor/{case}.json");
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let facts: Facts = serde_json::from_str(&text).unwrap();
        let checked = examine(&facts).into_iter();
        checked
            .map(|it| (it.check, it.level == Level::Ok))
            .collect()
    };
    let all = |is_ok: bool| {
        CHECKS
            .iter()
            .map(|check| (check.name, is_ok))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(level("well"), all(true));
    let mut ill: BTreeSet<&str> = BTreeSet::new();
    for case in ["everything", "nothing", "other_version"] {
        ill.extend(
            level(case)
                .into_iter()
                .filter(|(_, is_ok)| !is_ok)
                .map(|(name, _)| name),
        );
    }
    // Being told that nothing is forwarded is all that it does.
    ill.insert("forwarding");
    assert_eq!(ill, CHECKS.iter().map(|check| check.name).collect());
}

#[test]
fn the_table_lists_every_metric() {
    let page = fs::read_to_string(top().join("docs/metrics.md")).unwrap();
    let found: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("| `underseal_"))
        .collect();
    let wanted: Vec<String> = FAMILIES
        .iter()
        .map(|family| {
            let labels = family.labels.iter().map(|label| format!("`{label}`"));
            let labels = labels.collect::<Vec<_>>().join(", ");
            let labels = if labels.is_empty() { "-" } else { &labels };
            format!(
                "| `{}` | {} | {labels} | {} |",
                family.name, family.kind, family.help
            )
        })
        .collect();
    assert_eq!(found, wanted, "wanted:\n{}", wanted.join("\n"));
}

#[test]
fn alerts_are_in_order() {
    for arguments in [
        ["check", "rules", "alerts.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ] {
        let output = promtool::run(&arguments, &top().join("examples"));
        assert!(output.status.success(), "{}", said(&output));
    }
}

/// Each alert fires in a case and does not in another one, and a rule that is changed makes its cases fail.
#[test]
fn alerts_are_tested() {
    let rules = fs::read_to_string(top().join("examples/alerts.yaml")).unwrap();
    let cases = fs::read_to_string(top().join("examples/alerts_test.yaml")).unwrap();
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() >= 10, "{alerts:?}");
    for alert in alerts {
        let name = format!("alertname: {alert}\n");
        let mut after = cases.split(&name).skip(1);
        assert!(
            after
                .clone()
                .any(|it| it.trim_start().starts_with("exp_alerts: []")),
            "{alert} is never quiet"
        );
        assert!(
            after.any(|it| it.trim_start().starts_with("exp_alerts:\n")),
            "{alert} never fires"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("alerts_test.yaml"), &cases).unwrap();
    for (right, wrong) in [
        ("underseal_up == 0", "underseal_up == 2"),
        ("> 0.8", "> 0.7"),
        ("for: 10m", "for: 1m"),
    ] {
        let spoiled = rules.replace(right, wrong);
        assert_ne!(spoiled, rules, "{right} is in no rule");
        fs::write(folder.path().join("alerts.yaml"), spoiled).unwrap();
        let output = promtool::run(&["test", "rules", "alerts_test.yaml"], folder.path());
        assert!(!output.status.success(), "{wrong}: {}", said(&output));
    }
}

/// What rules ask for exists: metrics, and reasons.
#[test]
fn alerts_ask_for_what_there_is() {
    let rules = fs::read_to_string(top().join("examples/alerts.yaml")).unwrap();
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    let words = rules.split(|c: char| !is_word(c));
    let asked: BTreeSet<&str> = words
        .filter(|word| word.starts_with("underseal_"))
        .collect();
    let known: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert!(
        asked.len() >= 10 && asked.is_subset(&known),
        "{:?}",
        asked.difference(&known)
    );
    let counters = COUNTERS
        .iter()
        .map(|(_, name)| *name)
        .chain(HELPER_COUNTERS.iter().map(|(_, name)| *name));
    let counters: BTreeSet<&str> = counters.collect();
    let mut reasons = 0;
    for selector in rules.split("{reason=").skip(1) {
        let text = selector.trim_start_matches('~').split('"').nth(1).unwrap();
        for reason in text.split('|') {
            let is_known = ["drop_", "reset_", "refused_"]
                .iter()
                .any(|kind| counters.contains(format!("{kind}{reason}").as_str()));
            assert!(is_known, "{reason}");
            reasons += 1;
        }
    }
    assert!(reasons > 5);
}

fn said(output: &Output) -> String {
    let said = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8(said).unwrap()
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
