//! From one CA to another in three steps, between which every workload accepts every other one:
//! both are trusted; the new one issues; the old one is trusted no more. Each may be repeated.

use super::{Outcome, Work, concerned};
use crate::pki::{
    Error, certificate, due,
    record::{CaNumber, Rotation},
};

/// Which certificates of an old CA keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// All that are not over: connections may have been opened with them.
    Alive,
    /// Those that are in a folder, or on another machine.
    InUse,
}

impl Work<'_> {
    /// Makes another CA, which everybody trusts and which issues nothing yet.
    ///
    /// # Errors
    /// A change is under way already and past this, or the CA does not serve.
    pub fn rotate_begin(&mut self) -> Result<Outcome, Error> {
        match self.authority.state.rotation {
            Rotation::Begun(_) => {}
            Rotation::Switched(old) => {
                return Err(Error::Refused(format!(
                    "the change from CA {old} is not finished\n  hint: `underseal pki rotate-ca \
                     finish`"
                )));
            }
            Rotation::None => {
                let next = self.authority.state.active + 1;
                self.authority.make(next, self.key, self.now)?;
                self.authority.state.rotation = Rotation::Begun(next);
                self.authority.save()?;
            }
        }
        let mut outcome = Outcome::default();
        self.settle(&mut outcome)?;
        outcome.notes.push(
            "both CAs are trusted; when that has reached all other machines (`underseal pki \
             bundle`): `underseal pki rotate-ca switch`"
                .to_owned(),
        );
        Ok(outcome)
    }

    /// Issues by the new CA from now on, to everybody at once.
    ///
    /// # Errors
    /// No change has begun, a workload does not trust both, or the CA does not serve.
    pub fn rotate_switch(&mut self) -> Result<Outcome, Error> {
        let mut outcome = Outcome::default();
        let bundle = self.settle(&mut outcome)?;
        match self.authority.state.rotation {
            Rotation::None => {
                return Err(Error::Refused(
                    "no change of the CA has begun\n  hint: `underseal pki rotate-ca begin`".into(),
                ));
            }
            // A workload that does not trust the new CA would refuse those that have switched.
            Rotation::Begun(_) if !outcome.failed.is_empty() => {
                outcome
                    .notes
                    .push("not switched: not all trust both CAs".into());
                return Ok(outcome);
            }
            Rotation::Begun(next) => {
                let old = std::mem::replace(&mut self.authority.state.active, next);
                self.authority.state.rotation = Rotation::Switched(old);
                self.authority.save()?;
            }
            Rotation::Switched(_) => {}
        }
        for workload in concerned(self.config) {
            let of = self.of(workload);
            if let Ok(Some((it, _))) = of
                && it.ca != self.authority.state.active
                && !self.authority.state.is_revoked(&it.serial)
            {
                self.issue_one(workload, &bundle, &mut outcome);
            }
        }
        outcome.notes.push(
            "when nothing of the old CA is in use any more: `underseal pki rotate-ca finish`"
                .into(),
        );
        Ok(outcome)
    }

    /// Trusts the old CA no more, and removes its key.
    ///
    /// # Errors
    /// Certificates of it are in use, no change is that far, or the CA does not serve.
    pub fn rotate_finish(&mut self, holding: Holding) -> Result<Outcome, Error> {
        if let Rotation::Begun(_) = self.authority.state.rotation {
            return Err(Error::Refused(
                "the change of the CA has only begun\n  hint: `underseal pki rotate-ca \
                 switch`"
                    .into(),
            ));
        }
        let mut outcome = Outcome::default();
        if let Rotation::Switched(old) = self.authority.state.rotation {
            self.refuse_while_held(old, holding)?;
            self.authority.state.rotation = Rotation::None;
            self.authority.save()?;
        }
        self.settle(&mut outcome)?;
        // Its key is of use to nobody, whether or not a folder could not be written.
        self.authority.remove_others()?;
        Ok(outcome)
    }

    fn refuse_while_held(&self, old: CaNumber, holding: Holding) -> Result<(), Error> {
        let mut held = due::alive(&self.authority.index, &self.authority.state, old, self.now);
        let mut hint = "wait, or revoke them";
        match holding {
            Holding::Alive => {
                hint = "wait, revoke them, or say --replaced to count those alone that are still \
                        in a folder or on another machine";
            }
            Holding::InUse => {
                let folders = concerned(self.config);
                let shown: Vec<String> = folders
                    .filter_map(|workload| Some(self.of(workload).ok()??.0.serial))
                    .collect();
                held.retain(|it| it.requested || shown.contains(&it.serial));
            }
        }
        let Some(last) = held.iter().map(|it| it.not_after).max() else {
            return Ok(());
        };
        Err(Error::Refused(format!(
            "{} of the old CA can still be in use, until {}\n  hint: {hint}",
            crate::report::counted(held.len(), "certificate"),
            certificate::date_text(last),
        )))
    }
}
