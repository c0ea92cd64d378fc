//! A Vault server.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::http::Api;
use crate::ports::Port;
use crate::process::ServerProcess;
use crate::scratch::Scratch;
use crate::{Error, Result, Server, Terminal, VaultInstall, VaultKind, obtain};

const READY_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
const TOKEN_HEADER: &str = "X-Vault-Token";

/// A Vault server on loopback: initialised, unsealed, KV v2 at `secret/`, AppRole at `auth/approle`, storage in memory.
///
/// Because of the storage, [`restart`](Self::restart) after [`kill`](Self::kill) gives an **empty** Vault on the same port
/// with a **new** root token. To take a Vault away and bring it back with its content, use [`seal`](Self::seal) or
/// [`pause`](Self::pause).
#[derive(Debug)]
pub struct Vault {
    process: Option<ServerProcess>,
    install: VaultInstall,
    port: Port,
    root_token: String,
    unseal_key: String,
    starts: u32,
    scratch: Scratch,
}

impl Vault {
    /// Obtains Vault if need be and starts it.
    pub fn start() -> Result<Self> {
        let install = obtain(&[Server::Vault], &Terminal::new())?
            .vault
            .ok_or_else(|| Error::Obtain {
                server: "Vault".to_owned(),
                detail: "nothing was installed".to_owned(),
            })?;
        let mut vault = Self {
            process: None,
            install,
            port: Port::reserve()?,
            root_token: String::new(),
            unseal_key: String::new(),
            starts: 0,
            scratch: Scratch::new("vault")?,
        };
        vault.restart()?;
        Ok(vault)
    }

    /// `http://127.0.0.1:port`. The same after a restart.
    #[must_use]
    pub fn addr(&self) -> String {
        format!("http://{}", self.port.address())
    }

    /// The token that may do everything. A restart changes it.
    #[must_use]
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Writes a secret to `secret/<path>` in KV v2; its version.
    pub fn put_secret(&self, path: &str, fields: &[(&str, &str)]) -> Result<u64> {
        let data: serde_json::Map<String, Value> = fields
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        let answer = self.api(
            "POST",
            &format!("/v1/secret/data/{path}"),
            Some(&json!({"data": data})),
        )?;
        Ok(answer["data"]["version"].as_u64().unwrap_or_default())
    }

    /// Makes a token with these rules (HCL) that lives for `ttl`, as `5s`, and may be renewed.
    pub fn create_token(&self, name: &str, rules: &str, ttl: &str) -> Result<String> {
        self.put_policy(name, rules)?;
        let body =
            json!({"policies": [name], "ttl": ttl, "renewable": true, "no_default_policy": false});
        let answer = self.api("POST", "/v1/auth/token/create", Some(&body))?;
        Ok(answer["auth"]["client_token"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    }

    /// Makes an AppRole with these rules (HCL) whose tokens live for `token_ttl`: role id and secret id.
    pub fn create_app_role(
        &self,
        name: &str,
        rules: &str,
        token_ttl: &str,
    ) -> Result<(String, String)> {
        self.put_policy(name, rules)?;
        let role = format!("/v1/auth/approle/role/{name}");
        self.api(
            "POST",
            &role,
            Some(&json!({"token_policies": [name], "token_ttl": token_ttl})),
        )?;
        let role_id = self.api("GET", &format!("{role}/role-id"), None)?;
        let secret_id = self.api("POST", &format!("{role}/secret-id"), None)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok((
            text(&role_id["data"]["role_id"]),
            text(&secret_id["data"]["secret_id"]),
        ))
    }

    /// Calls the HTTP API with the root token; the JSON of a successful answer.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let token = Some((TOKEN_HEADER, self.root_token.as_str()));
        Api {
            server: "Vault",
            port: self.port.number(),
            token,
        }
        .json(method, path, body)
    }

    /// Seals the server: it answers 503 to everything, its content is kept.
    pub fn seal(&self) -> Result<()> {
        self.api("PUT", "/v1/sys/seal", None).map(drop)
    }

    /// Unseals a sealed server; returns when it serves secrets again.
    pub fn unseal(&self) -> Result<()> {
        self.api(
            "PUT",
            "/v1/sys/unseal",
            Some(&json!({"key": self.unseal_key})),
        )?;
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            match self.api("GET", "/v1/secret/config", None) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(POLL),
            }
        }
    }

    /// Process id, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ServerProcess::pid)
    }

    /// The folder with the logs (`log-N`, one per start).
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Kills the server with SIGKILL. Its content is gone.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the server if it does not run, on the same port, empty and with a new root token.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            return Ok(());
        }
        self.starts += 1;
        let log = self.log();
        let mut command = Command::new(&self.install.program);
        match self.install.kind {
            VaultKind::Core => command.arg("-listen").arg(self.port.address()),
            VaultKind::Official => command
                .args([
                    "server",
                    "-dev",
                    "-dev-no-store-token",
                    "-dev-listen-address",
                ])
                .arg(self.port.address())
                .env("VAULT_DISABLE_MLOCK", "true"),
        };
        self.process = Some(ServerProcess::spawn(
            command,
            &log,
            self.scratch.disposable(),
        )?);
        self.wait_until_ready()
    }

    /// Freezes the server (SIGSTOP): connections stay open, nothing is answered.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets a frozen server go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join(format!("log-{}", self.starts))
    }

    fn put_policy(&self, name: &str, rules: &str) -> Result<()> {
        self.api(
            "PUT",
            &format!("/v1/sys/policies/acl/{name}"),
            Some(&json!({"policy": rules})),
        )
        .map(drop)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            let seen = match self.try_set_up() {
                Ok(()) => return Ok(()),
                Err(error) => error.to_string(),
            };
            let Some(process) = &mut self.process else {
                return Ok(());
            };
            let detail = match process.exited() {
                Some(status) => format!("it ended with {status}"),
                None if Instant::now() > deadline => format!("it is not ready in time ({seen})"),
                None => {
                    thread::sleep(POLL);
                    continue;
                }
            };
            let log = process.log_tail();
            self.process = None;
            return Err(Error::Start {
                server: format!("Vault on {}", self.port.address()),
                detail,
                log,
            });
        }
    }

    /// Each step may be repeated: what is there already is left alone.
    fn try_set_up(&mut self) -> Result<()> {
        let log = self.log();
        let text = std::fs::read_to_string(&log).map_err(Error::path("read", &log))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            line.map(|value| value.trim().to_owned())
                .ok_or_else(|| Error::Answer {
                    server: "Vault",
                    address: self.port.address(),
                    detail: format!("it has not printed `{name}`"),
                })
        };
        let (root_token, unseal_key) = (field("Root Token:")?, field("Unseal Key:")?);
        (self.root_token, self.unseal_key) = (root_token, unseal_key);
        let mounts = self.api("GET", "/v1/sys/mounts", None)?;
        if mounts["data"].get("secret/").is_none() {
            self.api(
                "POST",
                "/v1/sys/mounts/secret",
                Some(&json!({"type": "kv", "options": {"version": "2"}})),
            )?;
        }
        let auths = self.api("GET", "/v1/sys/auth", None)?;
        if auths["data"].get("approle/").is_none() {
            self.api(
                "POST",
                "/v1/sys/auth/approle",
                Some(&json!({"type": "approle"})),
            )?;
        }
        // A new KV v2 mount refuses everything while it prepares itself.
        self.api("GET", "/v1/secret/config", None).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ_KAFKA: &str = r#"path "secret/data/kafka/*" { capabilities = ["read"] }"#;

    #[test]
    fn secrets_survive_a_seal_but_not_a_restart() {
        let mut vault = Vault::start().unwrap();
        assert_eq!(
            vault
                .put_secret("kafka/east", &[("username", "app"), ("password", "one")])
                .unwrap(),
            1
        );
        assert_eq!(
            vault
                .put_secret("kafka/east", &[("username", "app"), ("password", "two")])
                .unwrap(),
            2
        );
        vault.seal().unwrap();
        let sealed = vault
            .api("GET", "/v1/secret/data/kafka/east", None)
            .unwrap_err()
            .to_string();
        assert!(sealed.contains("503"), "{sealed}");
        vault.unseal().unwrap();
        let read = vault
            .api("GET", "/v1/secret/data/kafka/east", None)
            .unwrap();
        assert_eq!(read["data"]["data"]["password"], "two");

        let (addr, token) = (vault.addr(), vault.root_token().to_owned());
        vault.kill();
        vault.restart().unwrap();
        assert_eq!(vault.addr(), addr);
        assert_ne!(vault.root_token(), token);
        assert!(
            vault
                .api("GET", "/v1/secret/data/kafka/east", None)
                .is_err()
        );
    }

    #[test]
    fn app_role_and_token_may_do_what_their_policy_says() {
        let vault = Vault::start().unwrap();
        vault
            .put_secret("kafka/west", &[("password", "pw")])
            .unwrap();
        vault.put_secret("other", &[("password", "pw")]).unwrap();
        let (role_id, secret_id) = vault.create_app_role("agent", READ_KAFKA, "1m").unwrap();
        let login = json!({"role_id": role_id, "secret_id": secret_id});
        let auth = vault
            .api("POST", "/v1/auth/approle/login", Some(&login))
            .unwrap();
        let role_token = auth["auth"]["client_token"].as_str().unwrap().to_owned();
        let token = vault.create_token("app", READ_KAFKA, "1m").unwrap();
        for token in [role_token, token] {
            let api = Api {
                server: "Vault",
                port: vault.port.number(),
                token: Some((TOKEN_HEADER, &token)),
            };
            assert!(api.json("GET", "/v1/secret/data/kafka/west", None).is_ok());
            assert_eq!(
                api.send("GET", "/v1/secret/data/other", b"")
                    .unwrap()
                    .status,
                403
            );
        }
    }
}
