//! Every record has the same offset, key, value, headers and timestamp on both sides, and the bytes of a batch are the same.

use std::time::Duration;

use standfast_tests::agent::{Agent, AgentConfig};
use standfast_tests::compare::{assert_same_batches, assert_same_records};
use standfast_tests::load::{self, Seen};
use standfast_tests::wait;

use crate::shared_pair;

const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
/// The whole agent in a debug build; the records alone are more than this.
const MEMORY_KIB: u64 = 64 << 10;
const MIRRORED: Duration = Duration::from_secs(60);

/// Records with everything that a copier can get wrong.
fn odd_records(seed: u64) -> Vec<Seen> {
    let record = |key: Option<&[u8]>,
                  value: Option<Vec<u8>>,
                  headers: &[(&str, Option<&[u8]>)],
                  at: i64| Seen {
        offset: 0,
        key: key.map(<[u8]>::to_vec),
        value,
        headers: headers
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.map(<[u8]>::to_vec)))
            .collect(),
        timestamp: 1_700_000_000_000 + at,
    };
    let noise = |len: usize| {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_be_bytes()[3]
            })
            .collect::<Vec<u8>>()
    };
    let mut records = vec![
        record(None, Some(vec![7]), &[], 0),
        record(Some(b""), Some(Vec::new()), &[], 5),
        record(Some(b"tombstone"), None, &[], 3),
        record(None, None, &[("only", None)], 9),
        record(
            Some(b"k"),
            Some(b"v".to_vec()),
            &[
                ("h", Some(b"1")),
                ("h", Some(b"2")),
                ("h", Some(b"")),
                ("other", None),
            ],
            1,
        ),
        record(
            Some(b"big"),
            Some(noise(900_000)),
            &[("size", Some(b"900000"))],
            2,
        ),
    ];
    records.extend((0..300).map(|index| {
        record(
            Some(format!("key-{index}").as_bytes()),
            Some(noise(1 + index * 7 % 2000)),
            &[],
            10 + index as i64,
        )
    }));
    records
}

#[test]
fn records_and_batches_are_the_same_with_every_codec() {
    let pair = shared_pair();
    let topics: Vec<(String, i32)> = CODECS
        .iter()
        .map(|codec| (format!("identity-{codec}"), 1))
        .chain([("identity-wide".to_owned(), 50)])
        .collect();
    for (topic, partitions) in &topics {
        pair.west
            .create_topic(topic, *partitions, &[("max.message.bytes", "2000000")])
            .expect("topic");
    }
    let names: Vec<&str> = topics.iter().map(|(topic, _)| topic.as_str()).collect();
    let mut config = AgentConfig::of(pair, &names);
    config.name = "identity".to_owned();
    let agent = Agent::start(pair, &config);

    for (seed, codec) in (1..).zip(CODECS) {
        load::write(
            &pair.west.bootstrap(),
            codec,
            &format!("identity-{codec}"),
            0,
            &odd_records(seed),
        );
    }
    for partition in 0..50 {
        let codec = CODECS[partition as usize % CODECS.len()];
        load::write(
            &pair.west.bootstrap(),
            codec,
            "identity-wide",
            partition,
            &odd_records(100 + partition as u64),
        );
    }

    for (topic, partitions) in &topics {
        let ends = pair.west.log_end_offsets(topic).expect("log ends");
        wait::until(&format!("{topic} is mirrored"), MIRRORED, || {
            match pair.east.log_end_offsets(topic) {
                Ok(east) if east == ends => Ok(()),
                other => Err(format!("{other:?}\n{}", agent.mirror(topic))),
            }
        });
        let compared = assert_same_batches(
            &pair.west.bootstrap(),
            &pair.east.bootstrap(),
            topic,
            *partitions,
        );
        assert_eq!(
            compared.records,
            306 * i64::from(*partitions),
            "{topic}: every record was compared"
        );
        assert_same_records(&pair.west.bootstrap(), &pair.east.bootstrap(), topic, &ends);
    }
    let peak = agent.peak_memory_kib();
    println!("identity: peak memory of the agent {peak} KiB");
    assert!(peak < MEMORY_KIB, "{peak} KiB");
    let mirror = agent.mirror("identity-wide");
    assert_eq!(mirror["mirror_status"], "ACTIVE", "{mirror}");
    assert_eq!(mirror["num_partitions"], 50);
    assert_eq!(
        pair.east
            .log_end_offsets("identity-wide")
            .expect("log ends")
            .len(),
        50
    );
}
