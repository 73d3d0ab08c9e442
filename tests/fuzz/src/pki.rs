//! What the built-in CA reads: certificates, requests from elsewhere, and its own record.

use std::str::from_utf8;

use underseal::pki::{
    certificate::{date_text, facts},
    due,
    record::{State, index_line, is_forgotten, parse_index},
    request,
};
use underseal_ktls::SpiffeId;

/// A certificate in PEM. What is not one is refused.
pub fn certificate(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    if let Ok(facts) = facts(text) {
        let _ = (date_text(facts.not_before), date_text(facts.not_after));
    }
}

/// A request in PEM asks for one SPIFFE ID, or is refused.
///
/// # Panics
/// It asks for anything else.
pub fn request(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    if let Ok((asked, _key)) = request::read(text) {
        let id: SpiffeId = asked.spiffe_id.parse().expect("a SPIFFE ID");
        assert_eq!(id.as_str(), asked.spiffe_id);
        assert!(asked.dns.iter().all(|name| name.is_ascii()));
    }
}

/// `index.jsonl`, or `state.json`: what is read is written as it was, and any dates in it can be reckoned with.
///
/// # Panics
/// It is not.
pub fn record(bytes: &[u8]) {
    let Ok(text) = from_utf8(bytes) else { return };
    let mut state = State::new("example.org".into());
    if let Ok((index, whole)) = parse_index(text) {
        assert!(whole <= text.len());
        let written: String = index.iter().map(index_line).collect();
        assert_eq!(parse_index(&written), Ok((index.clone(), written.len())));
        for issued in &index {
            for now in [i64::MIN, 0, issued.not_after, i64::MAX] {
                let _ = (
                    is_forgotten(issued, now),
                    due::is_due(issued, &state, now, 3600),
                );
            }
        }
        state.revoke(&index.iter().collect::<Vec<_>>(), 0);
    }
    reckon(state);
    if let Ok(state) = serde_json::from_str::<State>(text) {
        let written = serde_json::to_string(&state).expect("plain values");
        assert_eq!(serde_json::from_str(&written).ok(), Some(state.clone()));
        reckon(state);
    }
}

fn reckon(mut state: State) {
    for now in [i64::MIN, 0, i64::MAX] {
        for ca in state.trusted() {
            let listed = state.revoked_of(ca, now);
            assert!(listed.iter().all(|serial| state.is_revoked(serial)));
        }
        state.forget(now);
    }
}
