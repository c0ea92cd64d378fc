//! A Consul server.

use std::fs;
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
use crate::{Error, Result, Server, Terminal, obtain};

const READY_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
const TOKEN_HEADER: &str = "X-Consul-Token";
/// Any UUID does: the server knows nothing but what one test puts there.
const MANAGEMENT_TOKEN: &str = "6d0c0f0e-57af-4a0d-8a5e-000000000001";

/// What a Consul server is to be like. Made by [`Consul::builder`].
#[derive(Debug, Clone, Default)]
pub struct ConsulBuilder {
    acl: bool,
    session_ttl_min: Option<String>,
    data_center: Option<String>,
}

impl ConsulBuilder {
    /// Turns ACLs on with default policy `deny`; see [`Consul::management_token`].
    #[must_use]
    pub fn acl(mut self, on: bool) -> Self {
        self.acl = on;
        self
    }

    /// The shortest session TTL that the server accepts, as `2s`. Consul's default is 10 s.
    #[must_use]
    pub fn session_ttl_min(mut self, ttl: &str) -> Self {
        self.session_ttl_min = Some(ttl.to_owned());
        self
    }

    /// The data center's name; default `dc1`.
    #[must_use]
    pub fn data_center(mut self, name: &str) -> Self {
        self.data_center = Some(name.to_owned());
        self
    }

    /// Obtains Consul if need be and starts it; returns when it has a leader and serves the KV store.
    pub fn start(self) -> Result<Consul> {
        let program = obtain(&[Server::Consul], &Terminal::new())?
            .consul
            .unwrap_or_default();
        let scratch = Scratch::new("consul")?;
        let ports = [Port::reserve()?, Port::reserve()?, Port::reserve()?];
        let mut consul = Consul {
            process: None,
            program,
            settings: self,
            ports,
            scratch,
        };
        consul.configure()?;
        consul.restart()?;
        Ok(consul)
    }
}

/// A single Consul server on loopback. Its data survive [`kill`](Self::kill) and [`restart`](Self::restart); dropping it removes them.
#[derive(Debug)]
pub struct Consul {
    process: Option<ServerProcess>,
    program: PathBuf,
    settings: ConsulBuilder,
    /// HTTP, server RPC, Serf.
    ports: [Port; 3],
    scratch: Scratch,
}

impl Consul {
    /// Starts a server without ACLs.
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// A server with other than the default settings.
    #[must_use]
    pub fn builder() -> ConsulBuilder {
        ConsulBuilder::default()
    }

    /// `http://127.0.0.1:port`. The same after a restart.
    #[must_use]
    pub fn addr(&self) -> String {
        format!("http://{}", self.ports[0].address())
    }

    /// The token that may do everything, if ACLs are on.
    #[must_use]
    pub fn management_token(&self) -> Option<&str> {
        self.settings.acl.then_some(MANAGEMENT_TOKEN)
    }

    /// Makes a token whose policy has these rules (HCL, as `key_prefix "standfast/" { policy = "write" }`); its secret id.
    pub fn create_token(&self, name: &str, rules: &str) -> Result<String> {
        self.api(
            "PUT",
            "/v1/acl/policy",
            Some(&json!({"Name": name, "Rules": rules})),
        )?;
        let token = self.api(
            "PUT",
            "/v1/acl/token",
            Some(&json!({"Policies": [{"Name": name}]})),
        )?;
        Ok(token["SecretID"].as_str().unwrap_or_default().to_owned())
    }

    /// Calls the HTTP API (with the management token if ACLs are on); the JSON of a successful answer.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        self.http().json(method, path, body)
    }

    /// Writes bytes to a key, past any check-and-set.
    pub fn kv_put(&self, key: &str, value: &[u8]) -> Result<()> {
        let answer = self.http().send("PUT", &format!("/v1/kv/{key}"), value)?;
        if answer.status == 200 && answer.body.trim() == "true" {
            return Ok(());
        }
        Err(self.unexpected(format!(
            "PUT /v1/kv/{key}: status {}: {}",
            answer.status, answer.body
        )))
    }

    /// A key's value; `None` if it does not exist.
    pub fn kv_get(&self, key: &str) -> Result<Option<String>> {
        let answer = self
            .http()
            .send("GET", &format!("/v1/kv/{key}?raw&consistent"), b"")?;
        match answer.status {
            200 => Ok(Some(answer.body)),
            404 => Ok(None),
            status => Err(self.unexpected(format!(
                "GET /v1/kv/{key}: status {status}: {}",
                answer.body
            ))),
        }
    }

    /// Process id, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(ServerProcess::pid)
    }

    /// The folder with the data and `log`.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Ends the server in order (SIGTERM).
    pub fn stop_gracefully(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop(STOP_DEADLINE);
        }
    }

    /// Starts the server if it does not run, on the same port and data; returns when it serves.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_none() {
            let mut command = Command::new(&self.program);
            command
                .arg("agent")
                .arg("-config-file")
                .arg(self.scratch.path().join("consul.json"));
            let log = self.scratch.path().join("log");
            self.process = Some(ServerProcess::spawn(
                command,
                &log,
                self.scratch.disposable(),
            )?);
        }
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

    fn http(&self) -> Api<'_> {
        let token = self.management_token().map(|token| (TOKEN_HEADER, token));
        Api {
            server: "Consul",
            port: self.ports[0].number(),
            token,
        }
    }

    fn unexpected(&self, detail: String) -> Error {
        Error::Answer {
            server: "Consul",
            address: self.ports[0].address(),
            detail,
        }
    }

    fn configure(&self) -> Result<()> {
        let [http, server, serf] = &self.ports;
        let mut config = json!({
            "server": true,
            "bootstrap_expect": 1,
            "node_name": "standfast",
            "datacenter": self.settings.data_center.as_deref().unwrap_or("dc1"),
            "data_dir": self.scratch.path().join("data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "disable_update_check": true,
            "leave_on_terminate": false,
            // The quickest elections that Consul allows.
            "performance": {"raft_multiplier": 1},
            "ports": {
                "http": http.number(), "server": server.number(), "serf_lan": serf.number(),
                "serf_wan": -1, "dns": -1, "grpc": -1, "grpc_tls": -1, "https": -1,
            },
        });
        if self.settings.acl {
            config["acl"] = json!({
                "enabled": true,
                "default_policy": "deny",
                "tokens": {"initial_management": MANAGEMENT_TOKEN, "agent": MANAGEMENT_TOKEN},
            });
        }
        if let Some(ttl) = &self.settings.session_ttl_min {
            config["session_ttl_min"] = json!(ttl);
        }
        let path = self.scratch.path().join("consul.json");
        fs::write(&path, config.to_string()).map_err(Error::path("write", &path))
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + READY_DEADLINE;
        loop {
            // A consistent read needs a leader, and with ACLs on a token that is known already.
            let seen = match self.kv_get("standfast-servers/ready") {
                Ok(_) => return Ok(()),
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
                server: format!("Consul on {}", self.ports[0].address()),
                detail,
                log,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_survive_a_kill() {
        let mut consul = Consul::start().unwrap();
        let addr = consul.addr();
        consul.kv_put("standfast/payments/active", b"west").unwrap();
        consul.kill();
        assert!(consul.kv_get("standfast/payments/active").is_err());
        consul.restart().unwrap();
        assert_eq!(consul.addr(), addr);
        assert_eq!(
            consul
                .kv_get("standfast/payments/active")
                .unwrap()
                .as_deref(),
            Some("west")
        );
        assert_eq!(consul.kv_get("standfast/none").unwrap(), None);
    }

    #[test]
    fn acls_deny_by_default_and_short_sessions_can_be_allowed() {
        let consul = Consul::builder()
            .acl(true)
            .session_ttl_min("1s")
            .start()
            .unwrap();
        let anonymous = Api {
            server: "Consul",
            port: consul.ports[0].number(),
            token: None,
        };
        assert_eq!(
            anonymous
                .send("PUT", "/v1/kv/standfast/a", b"x")
                .unwrap()
                .status,
            403
        );
        let token = consul
            .create_token("kv", r#"key_prefix "standfast/" { policy = "write" }"#)
            .unwrap();
        let api = Api {
            token: Some((TOKEN_HEADER, &token)),
            ..anonymous
        };
        assert_eq!(
            api.send("PUT", "/v1/kv/standfast/a", b"x").unwrap().status,
            200
        );
        assert_eq!(api.send("PUT", "/v1/kv/other", b"x").unwrap().status, 403);
        consul
            .api("PUT", "/v1/session/create", Some(&json!({"TTL": "1s"})))
            .unwrap();
    }
}
