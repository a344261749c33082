//! `--user` of the commands that are clients: whose permissions they use while authentication is enabled.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use kv_server::pb::etcdserverpb::AuthenticateRequest;
use kv_server::pb::etcdserverpb::auth_client::AuthClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::failure::Failure;

/// The variables of the environment that these flags can come from.
pub(crate) const VARIABLES: [&str; 2] = ["FLOTILLA_USER", "FLOTILLA_PASSWORD"];

/// Text that is not shown.
#[derive(Clone)]
struct Secret(String);

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Flags of who asks.
#[derive(Args, Clone, Debug)]
pub(crate) struct UserArgs {
    /// The user, as NAME or NAME:PASSWORD; a password that is not given is asked for
    #[arg(
        long,
        env = VARIABLES[0],
        hide_env_values = true,
        value_name = "NAME[:PASSWORD]"
    )]
    user: Option<Secret>,
    /// The password; then all of --user is the name
    #[arg(long, env = VARIABLES[1], hide_env_values = true, requires = "user")]
    password: Option<Secret>,
}

/// Who logs in.
#[derive(Clone)]
pub(crate) struct User {
    name: String,
    password: Arc<Secret>,
}

/// Adds a token to each request, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Token(Option<MetadataValue<Ascii>>);

impl Token {
    /// As it is sent, if there is one.
    pub(crate) fn text(&self) -> Option<&[u8]> {
        self.0.as_ref().map(MetadataValue::as_encoded_bytes)
    }
}

/// A connection whose requests carry a token.
pub(crate) type Caller = InterceptedService<Channel, Token>;

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

impl UserArgs {
    /// The user, if one is named; asks for the password if none is given.
    pub(crate) fn user(&self) -> Result<Option<User>, Failure> {
        let Some(Secret(text)) = &self.user else {
            return Ok(None);
        };
        let (name, password) = match (&self.password, text.split_once(':')) {
            (Some(Secret(password)), _) => (text.as_str(), password.clone()),
            (None, Some((name, password))) => (name, password.to_owned()),
            (None, None) => (text.as_str(), ask_password()?),
        };
        if name.is_empty() {
            return Err(Failure::Usage("--user: the name is empty".to_owned()));
        }
        Ok(Some(User {
            name: name.to_owned(),
            password: Arc::new(Secret(password)),
        }))
    }
}

/// Asks at the terminal, where it is not shown.
fn ask_password() -> Result<String, Failure> {
    rpassword::prompt_password("password: ").map_err(|error| {
        Failure::Usage(format!(
            "--user: no password is given, and none can be asked for: {error}; use --user NAME:PASSWORD or {}",
            VARIABLES[1]
        ))
    })
}

/// Logs in at a server, if there is a user. Where no call needs one the token is none, as etcdctl has it.
pub(crate) async fn log_in(channel: &Channel, user: Option<&User>) -> Result<Token, Status> {
    let Some(user) = user else {
        return Ok(Token::default());
    };
    let request = AuthenticateRequest {
        name: user.name.clone(),
        password: user.password.0.clone(),
    };
    let token = match AuthClient::new(channel.clone()).authenticate(request).await {
        Ok(answer) => answer.into_inner().token,
        Err(status)
            if status.code() == Code::FailedPrecondition
                && status.message().ends_with("authentication is not enabled") =>
        {
            return Ok(Token::default());
        }
        Err(status) => return Err(status),
    };
    let token = token
        .parse()
        .map_err(|_| Status::internal("the server's token is no metadata"))?;
    Ok(Token(Some(token)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(user: &str, password: Option<&str>) -> UserArgs {
        UserArgs {
            user: Some(Secret(user.to_owned())),
            password: password.map(|password| Secret(password.to_owned())),
        }
    }

    #[test]
    fn name_and_password_are_told_apart_as_etcdctl_does() {
        let of = |user, password| {
            let user = args(user, password).user().unwrap().unwrap();
            (user.name, user.password.0.clone())
        };
        assert_eq!(of("root:a:b", None), ("root".to_owned(), "a:b".to_owned()));
        assert_eq!(of("root:", None), ("root".to_owned(), String::new()));
        let whole = ("a:b".to_owned(), "c".to_owned());
        assert_eq!(of("a:b", Some("c")), whole);
        assert!(matches!(args(":x", None).user(), Err(Failure::Usage(_))));
    }

    #[test]
    fn password_is_not_shown() {
        let shown = format!("{:?}", args("root:secret", Some("secret")));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
