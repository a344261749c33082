//! The options of authentication: what tokens are, and how passwords are hashed.

use std::time::Duration;

use kv_server::auth::{COST_MAX, COST_MIN};

use super::Reader;

/// What tokens are, as `--auth-token` says; files are read when the server starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuthToken {
    /// Words that members remember.
    Simple,
    /// Signed.
    Jwt {
        /// For example `RS256`.
        sign_method: String,
        /// A file.
        public_key: Option<String>,
        /// A file.
        private_key: Option<String>,
        /// Five minutes unless given.
        ttl: Option<Duration>,
    },
}

/// Reads `simple`, or `jwt` with options behind it; the error says what was expected.
fn parse(text: &str) -> Result<AuthToken, String> {
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default();
    if kind == "simple" {
        return match parts.next() {
            None => Ok(AuthToken::Simple),
            Some(_) => Err("`simple` without options".to_owned()),
        };
    }
    if kind != "jwt" {
        return Err("`simple` or `jwt,...`".to_owned());
    }
    let names = ["sign-method", "pub-key", "priv-key", "ttl"];
    let mut values: [Option<String>; 4] = [const { None }; 4];
    for part in parts {
        let pair = part
            .split_once('=')
            .filter(|(_, value)| !value.contains('='));
        let (name, value) = pair.ok_or("options as name=value")?;
        let at = names.iter().position(|known| *known == name);
        let at = at.ok_or("sign-method, pub-key, priv-key and ttl as options")?;
        if values[at].replace(value.to_owned()).is_some() {
            return Err("each option once".to_owned());
        }
    }
    let [sign_method, public_key, private_key, ttl] = values;
    let ttl = ttl.map(|text| crate::bench::parse_duration(&text));
    Ok(AuthToken::Jwt {
        sign_method: sign_method.ok_or("a sign-method")?,
        public_key,
        private_key,
        ttl: ttl.transpose().map_err(|_| "a ttl such as 10m")?,
    })
}

impl Reader<'_> {
    pub(super) fn auth_token(&self) -> Result<AuthToken, String> {
        let text = &self.settings.get("auth-token").value;
        parse(text).map_err(|expected| self.wrong("auth-token", &expected))
    }

    pub(super) fn bcrypt_cost(&self) -> Result<u32, String> {
        let cost = self.number("bcrypt-cost", COST_MIN.into(), COST_MAX.into())?;
        Ok(u32::try_from(cost).expect("it is within its bounds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_etcd_writes_them() {
        assert_eq!(parse("simple"), Ok(AuthToken::Simple));
        let jwt = parse("jwt,pub-key=a.pem,priv-key=b.pem,sign-method=RS256,ttl=10m");
        assert_eq!(
            jwt,
            Ok(AuthToken::Jwt {
                sign_method: "RS256".to_owned(),
                public_key: Some("a.pem".to_owned()),
                private_key: Some("b.pem".to_owned()),
                ttl: Some(Duration::from_secs(600)),
            })
        );
        for bad in [
            "",
            "simple,ttl=1s",
            "jwt",
            "jwt,pub-key=a",
            "jwt,sign-method",
            "jwt,sign-method=a=b",
            "jwt,sign-method=RS256,sign-method=RS256",
            "jwt,sign-method=RS256,ttl=soon",
            "jwt,sign-method=RS256,color=red",
            "paseto",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
