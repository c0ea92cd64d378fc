//! SASL client exchanges, by rsasl.

use std::io::Cursor;

use rsasl::prelude::{Mechname, SASLClient, SASLConfig, Session, State};
use secrecy::ExposeSecret;

use crate::options::{SaslMechanism, SaslOptions};

/// Most rounds of one exchange. SCRAM takes two; anything longer is a broker that leads us round in circles.
pub(crate) const ROUNDS_MAX: usize = 8;
/// Most PBKDF2 iterations that a broker may ask for. Kafka's default is 4096, its maximum 16384; each costs CPU here.
const ITERATIONS_MAX: u32 = 1 << 20;

/// One authentication, from this side.
pub(crate) struct Exchange {
    session: Session,
    scram: bool,
    finished: bool,
}

impl Exchange {
    pub(crate) fn new(options: &SaslOptions) -> Result<Self, String> {
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
            session,
            scram: options.mechanism != SaslMechanism::Plain,
            finished: false,
        })
    }

    /// Takes the broker's message (`None` to begin) and returns ours. After the last one it may be empty.
    pub(crate) fn step(&mut self, challenge: Option<&[u8]>) -> Result<Vec<u8>, String> {
        if let Some(challenge) = challenge.filter(|_| self.scram) {
            check_iterations(challenge)?;
        }
        let mut answer = Cursor::new(Vec::new());
        let state = self
            .session
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
