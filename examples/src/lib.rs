//! Small applications on the wrapper: `order-producer`, `order-consumer` and `order-service`. What they share is the command line.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use standfast::discovery::{ConsulOptions, DiscoveryOptions};
use standfast::secrets::{SecretsOptions, VaultAuth, VaultOptions};
use standfast::{Fleet, FleetBuilder, FleetEvent, FleetOptions};

/// How the fleet is found. Without any option, by the `STANDFAST_*` variables alone.
#[derive(Debug, Args)]
pub struct FleetArgs {
    /// Name of the fleet.
    #[arg(long, env = "FLEET", default_value = "payments")]
    fleet: String,
    /// Folder of the file discovery backend.
    #[arg(long, conflicts_with = "consul")]
    discovery_dir: Option<PathBuf>,
    /// Consul address; may be repeated.
    #[arg(long)]
    consul: Vec<String>,
    /// File with credentials.
    #[arg(long, conflicts_with = "vault")]
    secrets_file: Option<PathBuf>,
    /// Vault address.
    #[arg(long)]
    vault: Option<String>,
    /// File with Vault's token; without it the variable `VAULT_TOKEN` is used.
    #[arg(long, requires = "vault")]
    vault_token_file: Option<PathBuf>,
}

impl FleetArgs {
    /// Connects to the fleet. What happens in it is written to stderr.
    ///
    /// # Errors
    /// Those of [`FleetBuilder::build`].
    pub async fn connect(self) -> standfast::Result<Fleet> {
        let fleet = self.builder()?.build().await?;
        tokio::spawn(report(fleet.events()));
        Ok(fleet)
    }

    fn builder(self) -> standfast::Result<FleetBuilder> {
        let mut builder = FleetOptions::from_env()?.builder(&self.fleet);
        if let Some(folder) = self.discovery_dir {
            builder = builder.discovery(DiscoveryOptions::file(folder));
        }
        if !self.consul.is_empty() {
            builder = builder.discovery(DiscoveryOptions::Consul(ConsulOptions {
                addresses: self.consul,
                ..ConsulOptions::default()
            }));
        }
        if let Some(file) = self.secrets_file {
            builder = builder.secrets(SecretsOptions::file(file));
        }
        if let Some(address) = self.vault {
            let auth = VaultAuth::Token {
                token_file: self.vault_token_file,
                env: None,
            };
            builder = builder.secrets(SecretsOptions::Vault(VaultOptions::new(address, auth)));
        }
        Ok(builder)
    }
}

/// Logs to stderr, as `RUST_LOG` says; warnings and errors by default.
pub fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}

async fn report(mut events: tokio::sync::broadcast::Receiver<FleetEvent>) {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        match events.recv().await {
            Ok(event) => tracing::info!(?event, "fleet"),
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return,
        }
    }
}
