//! Tokens of each family of methods, and what must not pass for one.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::*;

const RSA: (&[u8], &[u8]) = (
    include_bytes!("../../../testdata/jwt/rsa.pem"),
    include_bytes!("../../../testdata/jwt/rsa.pub.pem"),
);
const EC: (&[u8], &[u8]) = (
    include_bytes!("../../../testdata/jwt/ec.pem"),
    include_bytes!("../../../testdata/jwt/ec.pub.pem"),
);
const ED: (&[u8], &[u8]) = (
    include_bytes!("../../../testdata/jwt/ed.pem"),
    include_bytes!("../../../testdata/jwt/ed.pub.pem"),
);

fn options(method: &str, private: Option<&[u8]>, public: Option<&[u8]>) -> JwtOptions {
    JwtOptions {
        sign_method: method.to_owned(),
        public_key: public.map(<[u8]>::to_vec),
        private_key: private.map(<[u8]>::to_vec),
        ttl: None,
    }
}

fn known(user: &str, revision: u64) -> Option<Identity> {
    let user = user.into();
    Some(Identity { user, revision })
}

#[test]
fn token_of_each_method_is_verified_with_the_public_key_alone() {
    let cases = [
        ("RS256", RSA),
        ("RS384", RSA),
        ("RS512", RSA),
        ("PS256", RSA),
        ("PS384", RSA),
        ("PS512", RSA),
        ("ES256", EC),
        ("EdDSA", ED),
    ];
    for (method, (private, public)) in cases {
        let signs = Jwt::new(&options(method, Some(private), Some(public))).unwrap();
        let token = signs.sign("alice", 7).unwrap();
        let verifies = Jwt::new(&options(method, None, Some(public))).unwrap();
        assert_eq!(verifies.verify(&token), known("alice", 7), "{method}");
        let refused = verifies.sign("alice", 7).unwrap_err();
        assert_eq!(refused.code(), Code::Unknown, "{method}");
        // The public half is that of the private key where it is not given.
        let alone = Jwt::new(&options(method, Some(private), None)).unwrap();
        assert_eq!(alone.verify(&token), known("alice", 7), "{method}");
    }
    for method in ["HS256", "HS384", "HS512"] {
        let jwt = Jwt::new(&options(method, Some(b"a secret"), None)).unwrap();
        let token = jwt.sign("alice", 7).unwrap();
        assert_eq!(jwt.verify(&token), known("alice", 7), "{method}");
        let other = Jwt::new(&options(method, Some(b"another"), None)).unwrap();
        assert_eq!(other.verify(&token), None, "{method}");
    }
}

#[test]
fn token_that_was_changed_or_is_of_another_method_is_refused() {
    let (private, public) = RSA;
    let jwt = Jwt::new(&options("RS256", Some(private), Some(public))).unwrap();
    let token = jwt.sign("alice", 7).unwrap();
    let [header, claims, signature]: [&str; 3] =
        token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let root = URL_SAFE_NO_PAD.encode(br#"{"username":"root","revision":7,"exp":99999999999}"#);
    let none = URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
    // The public key as a shared secret: whoever takes the method from the token falls for it.
    let confused = Jwt::new(&options("HS256", Some(public), None)).unwrap();
    for bad in [
        String::new(),
        "a.b.c".to_owned(),
        format!("{header}.{root}.{signature}"),
        format!("{header}.{claims}."),
        format!("{none}.{root}."),
        confused.sign("root", 7).unwrap(),
    ] {
        assert_eq!(jwt.verify(&bad), None, "{bad}");
    }
    assert_eq!(jwt.verify(&token), known("alice", 7));
}

#[test]
fn token_of_a_keyspace_is_none_of_another() {
    let default = Jwt::new(&options("HS256", Some(b"a secret"), None)).unwrap();
    let [one, other] = ["one", "other"].map(|name| default.of_keyspace(name));
    let token = one.sign("root", 3).unwrap();
    assert!(one.verify(&token).is_some());
    assert!(other.verify(&token).is_none() && default.verify(&token).is_none());
    let token = default.sign("root", 3).unwrap();
    assert!(default.verify(&token).is_some() && one.verify(&token).is_none());
}

#[test]
fn token_without_an_end_or_past_it_is_refused() {
    let jwt = Jwt::new(&options("HS256", Some(b"a secret"), None)).unwrap();
    let key = EncodingKey::from_secret(b"a secret");
    let header = Header::new(Algorithm::HS256);
    let sign = |claims: serde_json::Value| encode(&header, &claims, &key).unwrap();
    let now = get_current_timestamp();
    let claims =
        |exp: serde_json::Value| serde_json::json!({"username": "a", "revision": 1, "exp": exp});
    assert!(jwt.verify(&sign(claims((now + 60).into()))).is_some());
    for bad in [
        claims((now - 1).into()),
        claims("tomorrow".into()),
        serde_json::json!({"username": "a", "revision": 1}),
        serde_json::json!({"revision": 1, "exp": now + 60}),
        serde_json::json!({"username": "a", "exp": now + 60}),
    ] {
        assert_eq!(jwt.verify(&sign(bad.clone())), None, "{bad}");
    }
}

#[test]
fn keys_that_do_not_fit_are_refused_in_words() {
    let cases = [
        (options("", None, None), "sign-method is missing"),
        (
            options("none", Some(RSA.0), None),
            "sign-method \"none\" is not one of",
        ),
        (options("ES512", Some(EC.0), None), "ES512 is not supported"),
        (options("RS256", None, None), "both missing"),
        (
            options("HS256", None, Some(RSA.1)),
            "the secret, is missing",
        ),
        (options("HS256", Some(b""), None), "the secret, is missing"),
        (
            options("RS256", Some(b"no key"), None),
            "priv-key is no PEM",
        ),
        (options("RS256", Some(EC.0), Some(RSA.1)), "priv-key"),
        (options("ES256", None, Some(ED.1)), "pub-key is no PEM"),
        (
            options("EdDSA", Some(ED.0), Some(EC.1)),
            "pub-key is no PEM",
        ),
    ];
    for (options, expected) in cases {
        let refused = Jwt::new(&options).unwrap_err();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    // A private key of one pair with the public one of another.
    let confused = Jwt {
        verifying: DecodingKey::from_ed_der(&[7; 32]),
        ..Jwt::new(&options("EdDSA", Some(ED.0), None)).unwrap()
    };
    assert_eq!(confused.verify(&confused.sign("a", 1).unwrap()), None);
}
