//! From what was seen to the values of a metric.

use std::collections::BTreeMap;

use super::{Fill, Node, Observed, Rule, STATES, Sample, Session, Tally, Workload};

pub(super) fn one(value: u64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

pub(super) fn some(value: Option<u64>) -> Vec<Sample> {
    value.map(one).unwrap_or_default()
}

pub(super) fn node(observed: &Observed, samples: impl FnOnce(&Node) -> Vec<Sample>) -> Vec<Sample> {
    observed.node.as_ref().map(samples).unwrap_or_default()
}

pub(super) fn workloads(observed: &Observed, value: fn(&Workload) -> Option<u64>) -> Vec<Sample> {
    node(observed, |node| {
        let all = node.workloads.iter();
        let samples = all.filter_map(|(name, it)| Some((vec![name.clone()], value(it)?)));
        samples.collect()
    })
}

/// All states of each workload, so that a graph does not begin with a gap.
pub(super) fn connections(observed: &Observed) -> Vec<Sample> {
    node(observed, |node| {
        let known = node.workloads.iter();
        let known = known.map(|(name, it)| (name.as_str(), &it.connections));
        let all = known.chain([("", &node.strays)]);
        let of = |(name, ends): (&str, &BTreeMap<String, u64>)| {
            let samples = STATES.map(|state| {
                let labels = vec![name.to_owned(), state.to_owned()];
                (labels, ends.get(state).copied().unwrap_or(0))
            });
            samples.to_vec()
        };
        all.flat_map(of).collect()
    })
}

pub(super) fn sessions(observed: &Observed, value: fn(&Session) -> u64) -> Vec<Sample> {
    node(observed, |node| {
        let all = node.sessions.iter();
        all.map(|it| (vec![it.peer.clone(), it.device.clone()], value(it)))
            .collect()
    })
}

pub(super) fn rules(observed: &Observed, value: fn(&Tally) -> u64) -> Vec<Sample> {
    let labels = |it: &Rule| {
        vec![
            it.policy.clone(),
            it.direction.clone(),
            it.number.to_string(),
        ]
    };
    node(observed, |node| {
        let all = node.rules.iter();
        all.map(|it| (labels(it), value(&it.tally))).collect()
    })
}

pub(super) fn maps(observed: &Observed, value: fn(&Fill) -> u64) -> Vec<Sample> {
    node(observed, |node| {
        let all = node.maps.iter();
        all.map(|(name, it)| (vec![name.clone()], value(it)))
            .collect()
    })
}

pub(super) fn tally(observed: &Observed, name: &str) -> Option<Tally> {
    observed.node.as_ref()?.counters.get(name).copied()
}

pub(super) fn packet(observed: &Observed, name: &str) -> Vec<Sample> {
    some(tally(observed, name).map(|it| it.packets))
}

pub(super) fn packets(observed: &Observed, label: fn(&str) -> Option<&str>) -> Vec<Sample> {
    counters(observed, label, |it| it.packets)
}

pub(super) fn bytes(observed: &Observed, label: fn(&str) -> Option<&str>) -> Vec<Sample> {
    counters(observed, label, |it| it.bytes)
}

fn counters(
    observed: &Observed,
    label: fn(&str) -> Option<&str>,
    value: fn(&Tally) -> u64,
) -> Vec<Sample> {
    node(observed, |node| {
        let all = node.counters.iter();
        all.filter_map(|(name, it)| Some((vec![label(name)?.to_owned()], value(it))))
            .collect()
    })
}

pub(super) fn helper(observed: &Observed, name: &str) -> Vec<Sample> {
    let node = observed.node.as_ref();
    some(node.and_then(|node| node.helper_counters.get(name).copied()))
}

pub(super) fn helpers(observed: &Observed, label: fn(&str) -> Option<&str>) -> Vec<Sample> {
    node(observed, |node| {
        let all = node.helper_counters.iter();
        all.filter_map(|(name, count)| Some((vec![label(name)?.to_owned()], *count)))
            .collect()
    })
}

pub(super) fn forwarded(name: &str) -> Option<&str> {
    ["same_node", "to_wireguard", "from_wireguard", "outside"]
        .contains(&name)
        .then_some(name)
}

/// What the guard drops is of connections; all else that is dropped are packets on their way.
const GUARDED: [&str; 6] = [
    "unsealed",
    "not_a_record",
    "unsealed_ingress",
    "unknown",
    "cut",
    "key_limit",
];

pub(super) fn guarded(name: &str) -> Option<&str> {
    let reason = name.strip_prefix("drop_")?;
    GUARDED.contains(&reason).then_some(reason)
}

pub(super) fn dropped(name: &str) -> Option<&str> {
    let reason = name.strip_prefix("drop_")?;
    (!GUARDED.contains(&reason)).then_some(reason)
}
