//! What a refusal is counted as, beside `reset_refused`. Pure.

use underseal_abi::HelperCounter;

use crate::{HandshakeError, IdentityError, Refusal};

/// The counter of this reason; `None` if it has none of its own.
pub(super) fn counter(error: &anyhow::Error) -> Option<HelperCounter> {
    if let Some(error) = error.downcast_ref::<IdentityError>() {
        return Some(of_identity(error));
    }
    match error.downcast_ref::<HandshakeError>() {
        Some(HandshakeError::Refused { refusal, .. }) => of_refusal(refusal),
        _ => None,
    }
}

/// Whether the certificates themselves are refused; else somebody may still mend files.
pub(super) fn is_final(error: &anyhow::Error) -> bool {
    use HelperCounter as C;
    counter(error).is_some_and(|counter| !matches!(counter, C::RefusedKey | C::RefusedFile))
}

const fn of_identity(error: &IdentityError) -> HelperCounter {
    use IdentityError as E;
    match error {
        E::Expired { .. } => HelperCounter::RefusedExpired,
        E::NotYetValid { .. } => HelperCounter::RefusedNotYetValid,
        E::BadKey { .. } | E::KeyMismatch { .. } => HelperCounter::RefusedKey,
        E::Unreadable { .. }
        | E::Changing { .. }
        | E::Due { .. }
        | E::NoCertificate { .. }
        | E::BadCertificate { .. }
        | E::BadList { .. }
        | E::Bundle { .. }
        | E::Svid { .. } => HelperCounter::RefusedFile,
    }
}

const fn of_refusal(refusal: &Refusal) -> Option<HelperCounter> {
    Some(match refusal {
        Refusal::Expired => HelperCounter::RefusedExpired,
        Refusal::NotYetValid => HelperCounter::RefusedNotYetValid,
        Refusal::UnknownAuthority | Refusal::BadSignature => HelperCounter::RefusedUnknownCa,
        Refusal::WrongTrustDomain { .. } | Refusal::UntrustedDomain(_) => {
            HelperCounter::RefusedTrustDomain
        }
        Refusal::NotAllowed { .. } | Refusal::Svid(_) => HelperCounter::RefusedId,
        Refusal::NameMissing(_) => HelperCounter::RefusedDnsName,
        Refusal::Revoked | Refusal::ListExpired | Refusal::BadList(_) => {
            HelperCounter::RefusedRevoked
        }
        Refusal::NoCertificate | Refusal::WrongUsage | Refusal::Other(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;
    use crate::Role;

    #[test]
    fn the_reason_is_found_below_what_was_attempted() {
        let refused = |refusal| {
            let by = Role::Server;
            let error = Err::<(), _>(HandshakeError::Refused { by, refusal });
            counter(&error.context("handshake").unwrap_err())
        };
        assert_eq!(
            refused(Refusal::Revoked),
            Some(HelperCounter::RefusedRevoked)
        );
        assert_eq!(
            refused(Refusal::NameMissing("cart".to_owned())),
            Some(HelperCounter::RefusedDnsName)
        );
        assert_eq!(refused(Refusal::WrongUsage), None);
        let path = "/f/tls.key".into();
        let error = Err::<(), _>(IdentityError::KeyMismatch { path });
        let error = error.context("identity of shop/cart").unwrap_err();
        assert_eq!(counter(&error), Some(HelperCounter::RefusedKey));
        assert_eq!(counter(&anyhow::anyhow!("something else")), None);
    }
}
