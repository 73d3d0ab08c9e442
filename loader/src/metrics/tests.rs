use std::collections::BTreeSet;

use underseal_abi::{COUNTERS, HELPER_COUNTERS};

use super::*;

/// A node of whose counters one is 7, and the others 0.
fn with_seven(seven: &str) -> Observed {
    let count = |name: &str| if name == seven { 7 } else { 0 };
    let tally = |name: &str| Tally {
        packets: count(name),
        bytes: 0,
    };
    Observed {
        node: Some(Node {
            counters: COUNTERS
                .iter()
                .map(|(_, name)| ((*name).to_owned(), tally(name)))
                .collect(),
            helper_counters: HELPER_COUNTERS
                .iter()
                .map(|(_, name)| ((*name).to_owned(), count(name)))
                .collect(),
            ..Node::default()
        }),
        ..Observed::default()
    }
}

#[test]
fn each_counter_is_in_exactly_one_metric() {
    let own = COUNTERS.iter().map(|(_, name)| *name);
    let helpers = HELPER_COUNTERS.iter().map(|(_, name)| *name);
    for counter in own.chain(helpers) {
        let shown = shown(&with_seven(counter));
        let samples = shown.iter().flat_map(|it| &it.samples);
        let sevens = samples.filter(|it| it.value == 7).count();
        assert_eq!(sevens, 1, "{counter}");
    }
    // The control: a counter that is none is in no metric.
    let none = shown(&with_seven("nothing"));
    assert!(
        none.iter()
            .flat_map(|it| &it.samples)
            .all(|it| it.value != 7)
    );
}

#[test]
fn names_are_as_the_field_has_them() {
    let mut names = BTreeSet::new();
    for family in FAMILIES {
        let name = family.name;
        assert!(names.insert(name), "{name} is listed twice");
        assert!(name.starts_with("underseal_"), "{name}");
        assert_eq!(
            name.ends_with("_total"),
            family.kind == Kind::Counter,
            "{name}"
        );
        assert!(
            !family.help.is_empty() && !family.help.ends_with('.') && !family.help.contains('|'),
            "{name}"
        );
        let is_word = |text: &str| text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'_'));
        assert!(
            is_word(name) && family.labels.iter().all(|label| is_word(label)),
            "{name}"
        );
    }
}

/// Values of labels are as many as their names, on a node that has one of everything.
#[test]
fn samples_have_all_labels() {
    let mut observed = with_seven("sealed");
    (
        observed.valid,
        observed.differences,
        observed.helper,
        observed.applied_abi,
    ) = (Some(true), Some(0), Some(1), Some(1));
    let node = observed.node.as_mut().unwrap();
    node.workloads.insert(
        "shop/cart".into(),
        Workload {
            not_after: Some(1),
            ..Workload::default()
        },
    );
    node.sessions.push(Session::default());
    node.rules.push(Rule::default());
    node.maps.insert("CONNS".into(), Fill::default());
    for family in FAMILIES {
        let samples = (family.samples)(&observed);
        assert!(!samples.is_empty(), "{} has no sample", family.name);
        for (values, _) in samples {
            assert_eq!(values.len(), family.labels.len(), "{}", family.name);
        }
    }
}

#[test]
fn labels_are_escaped() {
    let shown = [Shown {
        name: "underseal_things_total",
        kind: Kind::Counter,
        help: "Things",
        samples: vec![Labelled {
            labels: BTreeMap::from([("peer", "a\"b\\c\nd".to_owned())]),
            value: u64::MAX,
        }],
    }];
    assert_eq!(
        text(&shown).unwrap(),
        "# HELP underseal_things_total Things\n# TYPE underseal_things_total counter\n\
         underseal_things_total{peer=\"a\\\"b\\\\c\\nd\"} 18446744073709551615\n"
    );
}
