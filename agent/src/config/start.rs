//! `start` of a link: where new mirrors begin.

use jiff::Timestamp;
use serde::Deserialize;
use standfast_link::MirrorStart;

/// `"earliest"`, `"latest"`, or a time such as `"2026-11-23T08:00:00Z"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct StartSetting(pub(crate) MirrorStart);

impl TryFrom<String> for StartSetting {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "earliest" => Ok(Self(MirrorStart::Earliest)),
            "latest" => Ok(Self(MirrorStart::Latest)),
            time => time
                .parse::<Timestamp>()
                .map(|at| Self(MirrorStart::Timestamp(at.as_millisecond())))
                .map_err(|_| {
                    format!(
                        "\"{text}\" is neither \"earliest\" nor \"latest\" nor a time like \"2026-11-23T08:00:00Z\""
                    )
                }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_a_word_or_a_time() {
        let read = |text: &str| StartSetting::try_from(text.to_owned()).map(|s| s.0);
        assert_eq!(read("latest"), Ok(MirrorStart::Latest));
        let at = MirrorStart::Timestamp(1_000);
        assert_eq!(read("1970-01-01T00:00:01Z"), Ok(at));
        assert!(read("yesterday").is_err());
    }
}
