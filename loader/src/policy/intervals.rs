//! Ports: which rule decides for which of them, in pieces that a map can look up.

use crate::config::network_policy::Protocol;

use super::Numbered;

/// Which rule decides for a protocol and a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Protocol number; `None`: all that no other piece names.
    pub(super) protocol: Option<u8>,
    /// The first port, and how many leading bits of it count: 0 are all ports, 16 is one.
    pub(super) ports: (u16, u8),
    /// Which of the rules, as an index.
    pub(super) rule: usize,
}

/// Works out for all protocols and ports the first of `rules` (which are in order) that allows them.
pub(super) fn pieces(rules: &[&Numbered<'_>]) -> Vec<Piece> {
    let everything = rules.iter().position(|it| it.rule.ports.is_none());
    let mut pieces = Vec::new();
    pieces.extend(everything.map(|rule| Piece {
        protocol: None,
        ports: (0, 0),
        rule,
    }));
    for protocol in Protocol::ALL {
        let ranges = ranges(rules, protocol);
        if let [(_, _, rule)] = ranges[..]
            && rule == everything
        {
            continue;
        }
        for (first, last, rule) in ranges {
            let Some(rule) = rule else { continue };
            pieces.extend(blocks(first, last).into_iter().map(|ports| Piece {
                protocol: Some(protocol.number()),
                ports,
                rule,
            }));
        }
    }
    pieces
}

/// All ports of a protocol as ranges (first, last), each with the rule that decides.
fn ranges(rules: &[&Numbered<'_>], protocol: Protocol) -> Vec<(u16, u16, Option<usize>)> {
    let mut spans = Vec::new();
    for (i, it) in rules.iter().enumerate() {
        match &it.rule.ports {
            None => spans.push((0, u16::MAX, i)),
            Some(ports) => {
                let meant = ports.iter().filter(|it| match it.protocol {
                    None => protocol != Protocol::Icmp,
                    Some(named) => named == protocol,
                });
                spans.extend(meant.map(|it| {
                    let (first, last) = it.range.unwrap_or((0, u16::MAX));
                    (first, last, i)
                }));
            }
        }
    }
    let mut borders: Vec<u32> = vec![0, 0x1_0000];
    borders.extend(spans.iter().map(|(first, _, _)| u32::from(*first)));
    borders.extend(spans.iter().map(|(_, last, _)| u32::from(*last) + 1));
    borders.sort_unstable();
    borders.dedup();
    let mut ranges: Vec<(u16, u16, Option<usize>)> = Vec::new();
    for pair in borders.windows(2) {
        let (Ok(first), Ok(last)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1)) else {
            continue;
        };
        let covers = spans
            .iter()
            .filter(|(from, to, _)| *from <= first && last <= *to);
        let rule = covers.map(|(_, _, rule)| *rule).min();
        match ranges.last_mut() {
            Some((_, end, same)) if *same == rule => *end = last,
            _ => ranges.push((first, last, rule)),
        }
    }
    ranges
}

/// A range as blocks that begin with the same bits.
fn blocks(first: u16, last: u16) -> Vec<(u16, u8)> {
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    let mut blocks = Vec::new();
    while at < end {
        let aligned = if at == 0 { 16 } else { at.trailing_zeros() };
        let room = (end - at).ilog2();
        let size = aligned.min(room);
        // Both are 16 at most.
        let bits = u8::try_from(16 - size).unwrap_or(16);
        blocks.push((u16::try_from(at).unwrap_or(u16::MAX), bits));
        at += 1 << size;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Every port of a range is in exactly one block, and no other is.
        #[test]
        fn blocks_are_the_range(a: u16, b: u16, other: u16) {
            let (first, last) = (a.min(b), a.max(b));
            let blocks = blocks(first, last);
            let holds = |port: u16| blocks.iter().filter(|(base, bits)| {
                let mask = u32::MAX << (16 - u32::from(*bits));
                u32::from(port) & mask == u32::from(*base)
            }).count();
            for port in [first, last, other, first.saturating_sub(1), last.saturating_add(1)] {
                assert_eq!(holds(port), usize::from((first..=last).contains(&port)), "{port}");
            }
            assert!(blocks.len() <= 30);
        }
    }
}
