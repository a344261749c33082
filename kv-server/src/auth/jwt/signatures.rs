//! What `jsonwebtoken` signs and verifies with: `ring`, which needs a C compiler and nothing else to be built.

use std::sync::Once;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result, new_error};
use jsonwebtoken::signature::{Error, Signer, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{
    self as ring_signature, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair,
    RsaEncoding, RsaKeyPair, UnparsedPublicKey, VerificationAlgorithm,
};
use ring::{error::Unspecified, hmac};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |algorithm, key| {
        Ok(Box::new(Signing {
            algorithm: of_family(*algorithm, key.family())?,
            key: key.clone(),
        }))
    },
    verifier_factory: |algorithm, key| {
        Ok(Box::new(Verifying {
            algorithm: of_family(*algorithm, key.family())?,
            key: key.clone(),
        }))
    },
    // For JWKs, which nobody gives us.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Lets `jsonwebtoken` use this, once in a process.
pub(super) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // Fails when somebody else in the process came first; theirs does as well.
        let _ = PROVIDER.install_default();
    });
}

fn of_family(algorithm: Algorithm, family: AlgorithmFamily) -> Result<Algorithm> {
    match algorithm.family() == family {
        true => Ok(algorithm),
        false => Err(new_error(ErrorKind::InvalidKeyFormat)),
    }
}

struct Signing {
    algorithm: Algorithm,
    key: EncodingKey,
}

struct Verifying {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtSigner for Signing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl JwtVerifier for Verifying {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn hmac_of(algorithm: Algorithm) -> hmac::Algorithm {
    match algorithm {
        Algorithm::HS384 => hmac::HMAC_SHA384,
        Algorithm::HS512 => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    }
}

fn ecdsa_of(algorithm: Algorithm) -> &'static EcdsaSigningAlgorithm {
    match algorithm {
        Algorithm::ES384 => &ring_signature::ECDSA_P384_SHA384_FIXED_SIGNING,
        _ => &ring_signature::ECDSA_P256_SHA256_FIXED_SIGNING,
    }
}

fn rsa_of(algorithm: Algorithm) -> &'static dyn RsaEncoding {
    match algorithm {
        Algorithm::RS384 => &ring_signature::RSA_PKCS1_SHA384,
        Algorithm::RS512 => &ring_signature::RSA_PKCS1_SHA512,
        Algorithm::PS256 => &ring_signature::RSA_PSS_SHA256,
        Algorithm::PS384 => &ring_signature::RSA_PSS_SHA384,
        Algorithm::PS512 => &ring_signature::RSA_PSS_SHA512,
        _ => &ring_signature::RSA_PKCS1_SHA256,
    }
}

/// For all but those with a secret.
fn verification_of(algorithm: Algorithm) -> &'static dyn VerificationAlgorithm {
    match algorithm {
        Algorithm::RS384 => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
        Algorithm::RS512 => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
        Algorithm::PS256 => &ring_signature::RSA_PSS_2048_8192_SHA256,
        Algorithm::PS384 => &ring_signature::RSA_PSS_2048_8192_SHA384,
        Algorithm::PS512 => &ring_signature::RSA_PSS_2048_8192_SHA512,
        Algorithm::ES256 => &ring_signature::ECDSA_P256_SHA256_FIXED,
        Algorithm::ES384 => &ring_signature::ECDSA_P384_SHA384_FIXED,
        Algorithm::EdDSA => &ring_signature::ED25519,
        _ => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
    }
}

fn rsa_pair(key: &EncodingKey) -> Result<RsaKeyPair> {
    let refused = |error: ring::error::KeyRejected| ErrorKind::InvalidRsaKey(error.to_string());
    Ok(RsaKeyPair::from_der(key.as_bytes()).map_err(refused)?)
}

fn ecdsa_pair(key: &EncodingKey, algorithm: Algorithm) -> Result<EcdsaKeyPair> {
    let pair = EcdsaKeyPair::from_pkcs8(ecdsa_of(algorithm), key.as_bytes(), &SystemRandom::new());
    Ok(pair.map_err(|_| ErrorKind::InvalidEcdsaKey)?)
}

/// The public half may be missing, as in what openssl makes.
fn ed25519_pair(key: &EncodingKey) -> Result<Ed25519KeyPair> {
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.as_bytes());
    Ok(pair.map_err(|_| ErrorKind::InvalidEddsaKey)?)
}

/// The key that verifies what a private one signs.
pub(super) fn public_of(key: &EncodingKey, algorithm: Algorithm) -> Result<DecodingKey> {
    Ok(match key.family() {
        AlgorithmFamily::Hmac => DecodingKey::from_secret(key.as_bytes()),
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_der(rsa_pair(key)?.public().as_ref()),
        AlgorithmFamily::Ec => {
            DecodingKey::from_ec_der(ecdsa_pair(key, algorithm)?.public_key().as_ref())
        }
        AlgorithmFamily::Ed => DecodingKey::from_ed_der(ed25519_pair(key)?.public_key().as_ref()),
    })
}

fn failed(_: Unspecified) -> Error {
    Error::new()
}

impl Signer<Vec<u8>> for Signing {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        let random = SystemRandom::new();
        match self.key.family() {
            AlgorithmFamily::Hmac => {
                let key = hmac::Key::new(hmac_of(self.algorithm), self.key.as_bytes());
                Ok(hmac::sign(&key, message).as_ref().to_vec())
            }
            AlgorithmFamily::Rsa => {
                let pair = rsa_pair(&self.key).map_err(Error::from_source)?;
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(rsa_of(self.algorithm), &random, message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
            AlgorithmFamily::Ec => {
                let pair = ecdsa_pair(&self.key, self.algorithm).map_err(Error::from_source)?;
                let signature = pair.sign(&random, message).map_err(failed)?;
                Ok(signature.as_ref().to_vec())
            }
            AlgorithmFamily::Ed => {
                let pair = ed25519_pair(&self.key).map_err(Error::from_source)?;
                Ok(pair.sign(message).as_ref().to_vec())
            }
        }
    }
}

impl Verifier<Vec<u8>> for Verifying {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let key = self.key.try_get_as_bytes().map_err(Error::from_source)?;
        if self.key.family() == AlgorithmFamily::Hmac {
            let key = hmac::Key::new(hmac_of(self.algorithm), key);
            return hmac::verify(&key, message, signature).map_err(failed);
        }
        let key = UnparsedPublicKey::new(verification_of(self.algorithm), key);
        key.verify(message, signature).map_err(failed)
    }
}
