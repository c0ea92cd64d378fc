//! A source that wants OAUTHBEARER, and ACLs that the agent's link carries over, on two real Kafka clusters.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use standfast_servers::KafkaCluster;
use standfast_wire::admin::{AclBinding, AclOperation, AclPattern, AclResource};
use support::{Agent, file_discovery, produce, with_cluster};

const TOPIC: &str = "orders";
/// `link:right`, as basic authentication writes it.
const RIGHT: &str = "bGluazpyaWdodA==";

/// URL-safe base64 without padding.
fn base64(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..=chunk.len() {
            out.push(char::from(ALPHABET[(bits >> (18 - 6 * n) & 63) as usize]));
        }
    }
    out
}

/// Nobody signed it; Kafka's own validator for tests takes it.
fn token() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let claims = format!(
        r#"{{"sub":"link","iat":{},"exp":{}}}"#,
        now - 10,
        now + 3600
    );
    format!("{}.{}.", base64(r#"{"alg":"none"}"#), base64(&claims))
}

/// Gives tokens to whom it knows. Ends with the process.
fn token_endpoint() -> (String, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    let given = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&given);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, &count);
        }
    });
    (url, given)
}

fn answer(mut stream: TcpStream, given: &AtomicU32) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = text.trim().parse().unwrap();
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let known = head.contains(RIGHT)
        && String::from_utf8_lossy(&body).contains("grant_type=client_credentials");
    let (status, text) = if known {
        given.fetch_add(1, Ordering::Relaxed);
        (
            "200 OK",
            format!(r#"{{"access_token":"{}","expires_in":3600}}"#, token()),
        )
    } else {
        (
            "401 Unauthorized",
            r#"{"error":"invalid_client"}"#.to_owned(),
        )
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    );
}

#[test]
fn a_link_logs_in_with_a_token_and_carries_acls_over() {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let identity = key.serialize_pem() + &certificate.pem();
    let (west, east) = std::thread::scope(|scope| {
        let west = scope.spawn(|| {
            KafkaCluster::builder("west")
                .tls(&identity)
                .oauth_unsigned()
                .authorizer()
                .start()
                .expect("west")
        });
        let east = scope.spawn(|| {
            KafkaCluster::builder("east")
                .authorizer()
                .start()
                .expect("east")
        });
        (west.join().expect("west"), east.join().expect("east"))
    });
    west.create_topic(TOPIC, 1, &[]).unwrap();
    produce(&west.bootstrap(), TOPIC, 0, 10);
    let acl = |operation| {
        AclBinding::allow(
            "User:app",
            operation,
            AclResource::Topic,
            AclPattern::Literal,
            TOPIC,
        )
    };
    let (read, write) = (acl(AclOperation::Read), acl(AclOperation::Write));
    let of_the_link = |operation, resource, name| {
        AclBinding::allow("User:link", operation, resource, AclPattern::Literal, name)
    };
    let all = [
        read.clone(),
        write.clone(),
        of_the_link(AclOperation::Read, AclResource::Topic, TOPIC),
        of_the_link(AclOperation::DescribeConfigs, AclResource::Topic, TOPIC),
        of_the_link(
            AclOperation::Describe,
            AclResource::Cluster,
            "kafka-cluster",
        ),
    ];
    with_cluster(&west.bootstrap(), async |west| {
        west.create_acls(&all).await.map(drop)
    });
    let on_the_mirror = || with_cluster(&east.bootstrap(), async |east| east.describe_acls().await);

    let (endpoint, given) = token_endpoint();
    let agent = Agent::prepare("");
    agent.configure(&format!(
        "[fleet]\nname = \"oauth\"\n[discovery]\n{}\n[secrets]\nbackend = \"file\"\npath = \"FOLDER/secrets.toml\"\n\
         [clusters.west]\nbootstrap = \"{}\"\nsecret = \"kafka/west\"\nsecurity_protocol = \"SASL_SSL\"\nsasl_mechanism = \"OAUTHBEARER\"\n\
         [clusters.east]\nbootstrap = \"{}\"\n\
         [[links]]\nname = \"west-to-east\"\nsource = \"west\"\ndestination = \"east\"\ntopics = [{TOPIC:?}]\n\
         [links.acl_sync]\ninterval = \"1s\"\nfilters = [{{ principal = \"User:app\" }}]\n\
         [health]\ninterval = \"200ms\"\ntimeout = \"1s\"\n",
        file_discovery(agent.folder.path()),
        west.tls_bootstrap().unwrap(),
        east.bootstrap()
    ));
    let secret = |password: &str| {
        format!(
            "[\"kafka/west\"]\nusername = \"link\"\npassword = {password:?}\noauth_token_endpoint = {endpoint:?}\nssl_ca = '''\n{}'''\n",
            authority.pem()
        )
    };
    write_secret(&agent, &secret("wr0ng-pass"));
    assert_eq!(agent.init_fleet("west").code, 0);
    let mut agent = agent;
    agent.spawn();
    agent.until("the refusal of the token endpoint is shown", |agent| {
        let error = agent.json(&["link", "list"])["data"][0]["link_error"].to_string();
        error.contains("AUTHENTICATION_ERROR") && error.contains("invalid_client")
    });
    assert_eq!(given.load(Ordering::Relaxed), 0);
    write_secret(&agent, &secret("right"));
    agent.until("with the right one everything is mirrored", |agent| {
        agent.mirrored(TOPIC) == [10]
    });
    agent.until(
        "ACLs are carried over, and the one to write is withheld",
        |agent| {
            let link = agent.json(&["link", "describe", "west-to-east"])["data"][0].clone();
            link["acl_sync"]["withheld_acls"] == 1
                && link["tasks"]
                    .to_string()
                    .contains(r#""state":"ACTIVE","task_name":"AclSync""#)
        },
    );
    let acls = on_the_mirror();
    assert!(acls.contains(&read) && !acls.contains(&write), "{acls:?}");
    assert_eq!(agent.cli(&["mirror", "promote", TOPIC, "--yes"]).code, 0);
    agent.until("it is given with the topic", |_| {
        on_the_mirror().contains(&write)
    });
    // One token serves all connections.
    assert!(given.load(Ordering::Relaxed) <= 3, "{given:?}");
    let log = agent.log();
    assert!(
        !log.contains("wr0ng-pass") && !log.contains(&base64(r#"{"alg":"none"}"#)),
        "{log}"
    );
}

fn write_secret(agent: &Agent, text: &str) {
    let folder = agent.folder.path();
    let new = folder.join("secrets.new.toml");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&new, folder.join("secrets.toml")).unwrap();
}
