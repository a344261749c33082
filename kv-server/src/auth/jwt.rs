//! JSON web tokens: signed by the member that checked a password, verified by every member that has the key. Nothing of
//! them is kept, and what they say of a user's revision is what it was when they were made.

mod signatures;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation, decode, encode,
    get_current_timestamp,
};
use serde::{Deserialize, Serialize};
use tonic::Code;

use super::Identity;
use crate::ApiError;

/// How long a token counts, unless the options say otherwise.
const TTL_DEFAULT: Duration = Duration::from_secs(300);

/// What a token says, as etcd's does.
#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    /// The revision of users and roles when it was made.
    revision: u64,
    /// Seconds of the epoch.
    exp: u64,
    /// Of which keyspace the user is; nothing for the default one, as in etcd.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    keyspace: String,
}

/// How tokens are made and verified, with the content of the key files.
#[derive(Clone, Default)]
pub struct JwtOptions {
    /// For example `RS256`.
    pub sign_method: String,
    /// PEM; not needed beside a private key, and of no use with `HS...`.
    pub public_key: Option<Vec<u8>>,
    /// PEM, or the secret of `HS...`. Without it tokens of others are verified, and none are made.
    pub private_key: Option<Vec<u8>>,
    /// Five minutes unless given.
    pub ttl: Option<Duration>,
}

/// Makes and verifies tokens.
#[derive(Clone)]
pub struct Jwt {
    algorithm: Algorithm,
    signing: Option<EncodingKey>,
    verifying: DecodingKey,
    validation: Validation,
    ttl: Duration,
    /// Empty for the default one.
    keyspace: String,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwt")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Jwt {
    /// The same keys, for the users of a keyspace beside the default one.
    #[must_use]
    pub fn of_keyspace(&self, name: &str) -> Self {
        Self {
            keyspace: name.to_owned(),
            ..self.clone()
        }
    }

    /// Reads the keys, and makes a token to see that they belong together.
    ///
    /// # Errors
    /// In words: an unknown method, a missing key, one of another kind, two that do not match.
    pub fn new(options: &JwtOptions) -> Result<Self, String> {
        signatures::install();
        let algorithm = algorithm(&options.sign_method)?;
        let (signing, verifying) = keys(algorithm, options)?;
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp"]);
        let jwt = Self {
            algorithm,
            signing,
            verifying,
            validation,
            ttl: options.ttl.unwrap_or(TTL_DEFAULT),
            keyspace: String::new(),
        };
        if jwt.signing.is_some() {
            let token = jwt.sign("", 1);
            let token = token.map_err(|error| format!("priv-key: {error}"))?;
            if jwt.claims(&token).is_none() {
                return Err("pub-key and priv-key do not belong together".to_owned());
            }
        }
        Ok(jwt)
    }

    /// A token for a user whose password was right.
    pub fn sign(&self, user: &str, revision: u64) -> Result<String, ApiError> {
        let Some(key) = &self.signing else {
            // As etcd, which has no code for it.
            let text = "auth: token signing attempted with verify-only key".to_owned();
            return Err(ApiError::Other(Code::Unknown, text));
        };
        let claims = Claims {
            username: user.to_owned(),
            revision,
            // At least a second, so that a token that was just made counts.
            exp: get_current_timestamp() + self.ttl.as_secs().max(1),
            keyspace: self.keyspace.clone(),
        };
        encode(&Header::new(self.algorithm), &claims, key).map_err(|error| {
            let text = format!("flotilla: the token cannot be signed: {error}");
            ApiError::Other(Code::Internal, text)
        })
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        let token = decode::<Claims>(token, &self.verifying, &self.validation);
        token.ok().map(|token| token.claims)
    }

    /// Whom a token is for; none for one that is not right, or over.
    #[must_use]
    pub fn verify(&self, token: &str) -> Option<Identity> {
        let claims = self.claims(token)?;
        // A user of another keyspace is somebody else, whatever the name.
        if claims.keyspace != self.keyspace {
            return None;
        }
        Some(Identity {
            user: Arc::from(claims.username),
            revision: claims.revision,
        })
    }
}

fn algorithm(method: &str) -> Result<Algorithm, String> {
    match method {
        "" => Err("sign-method is missing".to_owned()),
        "EdDSA" => Ok(Algorithm::EdDSA),
        "ES512" => Err("sign-method ES512 is not supported; take ES256 or ES384".to_owned()),
        _ => method.parse().map_err(|_| {
            format!("sign-method {method:?} is not one of RS, PS, HS with 256, 384 or 512, ES256, ES384, EdDSA")
        }),
    }
}

type Keys = (Option<EncodingKey>, DecodingKey);

fn keys(algorithm: Algorithm, options: &JwtOptions) -> Result<Keys, String> {
    let private = options.private_key.as_deref();
    let public = options.public_key.as_deref();
    let family = algorithm.family();
    if family == AlgorithmFamily::Hmac {
        let secret = private.filter(|secret| !secret.is_empty());
        let secret = secret.ok_or("priv-key, the file with the secret, is missing or empty")?;
        let (signing, verifying) = (
            EncodingKey::from_secret(secret),
            DecodingKey::from_secret(secret),
        );
        return Ok((Some(signing), verifying));
    }
    let unreadable = |which, error| {
        format!(
            "{which} is no PEM of a key for {algorithm:?}, where private ones are PKCS#8: {error}"
        )
    };
    let signing = private
        .map(|pem| match family {
            AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(pem),
            AlgorithmFamily::Ec => EncodingKey::from_ec_pem(pem),
            _ => EncodingKey::from_ed_pem(pem),
        })
        .transpose()
        .map_err(|error| unreadable("priv-key", error))?;
    let verifying = match (public, &signing) {
        (Some(pem), _) => match family {
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem),
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem),
            _ => DecodingKey::from_ed_pem(pem),
        }
        .map_err(|error| unreadable("pub-key", error))?,
        (None, Some(signing)) => signatures::public_of(signing, algorithm)
            .map_err(|error| unreadable("priv-key", error))?,
        (None, None) => return Err("pub-key and priv-key are both missing".to_owned()),
    };
    Ok((signing, verifying))
}

#[cfg(test)]
mod tests;
