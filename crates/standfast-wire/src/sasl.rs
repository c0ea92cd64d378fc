//! SASL client exchanges, by rsasl.

use std::io::Cursor;

use rsasl::prelude::{Mechname, SASLClient, SASLConfig, Session, State};
use secrecy::{ExposeSecret, SecretString};

use crate::options::{SaslMechanism, SaslOptions};

/// Most rounds of one exchange. SCRAM takes two; anything longer is a broker that leads us round in circles.
pub(crate) const ROUNDS_MAX: usize = 8;
/// Most PBKDF2 iterations that a broker may ask for. Kafka's default is 4096, its maximum 16384; each costs CPU here.
const ITERATIONS_MAX: u32 = 1 << 20;
/// Most characters of a broker's refusal that are shown.
const REFUSAL_CHARS_MAX: usize = 200;

/// One authentication, from this side.
pub(crate) struct Exchange {
    way: Way,
    finished: bool,
}

enum Way {
    Password { session: Session, scram: bool },
    Token(SecretString),
}

impl Exchange {
    pub(crate) async fn new(options: &SaslOptions) -> Result<Self, String> {
        if options.mechanism == SaslMechanism::OAuthBearer {
            let source = options
                .token
                .as_ref()
                .ok_or("no source of tokens is given")?;
            let token = source.token().await?;
            if !token.expose_secret().bytes().all(|b| b.is_ascii_graphic()) {
                return Err("the token holds characters that no token can have".to_owned());
            }
            return Ok(Self {
                way: Way::Token(token),
                finished: false,
            });
        }
        let config = SASLConfig::with_credentials(
            None,
            options.username.clone(),
            options.password.expose_secret().to_owned(),
        )
        .map_err(|error| error.to_string())?;
        let mechanism = Mechname::parse(options.mechanism.name().as_bytes())
            .map_err(|error| error.to_string())?;
        let session = SASLClient::new(config)
            .start_suggested(&[mechanism])
            .map_err(|error| error.to_string())?;
        Ok(Self {
            way: Way::Password {
                session,
                scram: options.mechanism != SaslMechanism::Plain,
            },
            finished: false,
        })
    }

    /// Takes the broker's message (`None` to begin) and returns ours. After the last one it may be empty.
    pub(crate) fn step(&mut self, challenge: Option<&[u8]>) -> Result<Vec<u8>, String> {
        let (session, scram) = match &mut self.way {
            Way::Password { session, scram } => (session, *scram),
            Way::Token(token) => {
                let answer = bearer(token, challenge)?;
                self.finished = challenge.is_some();
                return Ok(answer);
            }
        };
        if let Some(challenge) = challenge.filter(|_| scram) {
            check_iterations(challenge)?;
        }
        let mut answer = Cursor::new(Vec::new());
        let state = session
            .step(challenge, &mut answer)
            .map_err(|error| error.to_string())?;
        self.finished = matches!(state, State::Finished(_));
        Ok(answer.into_inner())
    }

    /// Whether this side is satisfied: with SCRAM, that the broker has proven to know the password too.
    pub(crate) fn is_finished(&self) -> bool {
        self.finished
    }
}

/// RFC 7628: the token first; an empty challenge accepts it, any other says in JSON why not.
fn bearer(token: &SecretString, challenge: Option<&[u8]>) -> Result<Vec<u8>, String> {
    match challenge {
        None => Ok(format!("n,,\u{1}auth=Bearer {}\u{1}\u{1}", token.expose_secret()).into_bytes()),
        Some([]) => Ok(Vec::new()),
        Some(refusal) => {
            let words: String = String::from_utf8_lossy(refusal)
                .chars()
                .filter(|c| !c.is_control())
                .take(REFUSAL_CHARS_MAX)
                .collect();
            Err(format!("the broker refuses the token: {words}"))
        }
    }
}

/// The first SCRAM challenge is `r=…,s=…,i=4096`.
fn check_iterations(challenge: &[u8]) -> Result<(), String> {
    let stated = challenge
        .split(|byte| *byte == b',')
        .find_map(|attribute| attribute.strip_prefix(b"i="));
    match stated.map(|digits| {
        std::str::from_utf8(digits)
            .ok()
            .and_then(|text| text.parse::<u32>().ok())
    }) {
        None => Ok(()),
        Some(Some(iterations)) if iterations <= ITERATIONS_MAX => Ok(()),
        Some(_) => Err(format!(
            "the broker asks for more than {ITERATIONS_MAX} iterations"
        )),
    }
}
