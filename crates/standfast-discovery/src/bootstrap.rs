//! Bootstrap lists: `host:port,host:port`.

use crate::record::RecordError;

/// Most brokers accepted in one bootstrap list.
pub const MAX_BOOTSTRAP_BROKERS: usize = 256;
/// Longest host name accepted, in bytes (RFC 1035, section 2.3.4).
const MAX_HOST_BYTES: usize = 253;

/// Splits `host:port,host:port` into its brokers; IPv6 addresses are written `[::1]:9092`.
///
/// Stricter than librdkafka, which fills in port 9092 and takes a URL scheme: a port that everyone can see is
/// worth more here than a default.
///
/// # Errors
/// [`RecordError`] that quotes the broken entry.
pub fn parse_bootstrap(bootstrap: &str) -> Result<Vec<(&str, u16)>, RecordError> {
    let entries: Vec<&str> = bootstrap
        .split(',')
        .take(MAX_BOOTSTRAP_BROKERS + 1)
        .collect();
    if entries.len() > MAX_BOOTSTRAP_BROKERS {
        return Err(RecordError::new(format!(
            "bootstrap lists more than {MAX_BOOTSTRAP_BROKERS} brokers"
        )));
    }
    entries
        .into_iter()
        .map(|entry| parse_broker(entry.trim()))
        .collect()
}

fn parse_broker(entry: &str) -> Result<(&str, u16), RecordError> {
    let refuse = || {
        let quoted: String = entry.chars().take(80).collect();
        RecordError::new(format!(
            "bootstrap entry {quoted:?} is not host:port (for example k1.east:9092 or [::1]:9092)"
        ))
    };
    let (host, port) = entry.rsplit_once(':').ok_or_else(refuse)?;
    // `+9092` parses as a number, but nothing else reads it as a port.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    let port: u16 = port.parse().map_err(|_| refuse())?;
    let valid = port != 0 && is_host(host);
    valid.then_some((host, port)).ok_or_else(refuse)
}

fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    !host.is_empty()
        && host.len() <= MAX_HOST_BYTES
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && !host.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_names_and_addresses() {
        assert_eq!(
            parse_bootstrap("k1.east:9092, 10.0.0.1:1,[::1]:65535").unwrap(),
            [("k1.east", 9092), ("10.0.0.1", 1), ("[::1]", 65535)]
        );
    }

    #[test]
    fn refuses_half_written_lists_and_quotes_the_entry() {
        for bad in [
            "",
            "k1",
            "k1:",
            ":9092",
            "k1:0",
            "k1:65536",
            "k1:9092,",
            "k1:+9",
            "a b:1",
            "::1:9092",
            "http://k1:9092",
            "k1:9092;k2:9092",
            "<html>:1",
            "[::1:9092",
        ] {
            assert!(parse_bootstrap(bad).is_err(), "{bad:?}");
        }
        let error = parse_bootstrap("k1:9092,k2").unwrap_err().to_string();
        assert!(error.contains("\"k2\""), "{error}");
        assert!(parse_bootstrap(&"k:1,".repeat(10_000)).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,200}") {
            let _ = parse_bootstrap(&text);
        }
    }
}
