//! What the built-in CA has to tell.

use std::fmt;

use super::{GOOD, HEAD, NOTE};
use crate::pki::work::{Certificate, Outcome};

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for it in &self.issued {
            let who = it.workload.as_ref().unwrap_or(&it.spiffe_id);
            writeln!(
                f,
                "{GOOD}issued{GOOD:#} {who} {} until {}",
                it.serial, it.not_after
            )?;
        }
        for (what, all) in [
            ("revoked", &self.revoked),
            ("new trust in the folder of", &self.trusting),
            ("wrote", &self.files),
        ] {
            all.iter()
                .try_for_each(|it| writeln!(f, "{GOOD}{what}{GOOD:#} {it}"))?;
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "{NOTE}note{NOTE:#}: {note}"))?;
        let nothing = self.issued.is_empty() && self.revoked.is_empty() && self.files.is_empty();
        if nothing && self.trusting.is_empty() && self.notes.is_empty() && self.failed.is_empty() {
            return writeln!(f, "{GOOD}nothing to do{GOOD:#}");
        }
        Ok(())
    }
}

/// What was issued.
pub(super) fn list(f: &mut fmt::Formatter<'_>, certificates: &[Certificate]) -> fmt::Result {
    writeln!(
        f,
        "{HEAD}{:32}  {:7}  {:20}  workload{HEAD:#}",
        "serial", "state", "not after"
    )?;
    for it in certificates {
        let who = it.workload.as_deref().unwrap_or("-");
        let replaced = if it.replaced { ", replaced" } else { "" };
        writeln!(
            f,
            "{}  {:7}  {}  {who} {}{replaced}",
            it.serial,
            it.state.to_string(),
            it.not_after,
            it.spiffe_id
        )?;
    }
    Ok(())
}
