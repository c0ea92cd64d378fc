//! Kafka: the jars by Maven, and two things that make each later start cheap.
//!
//! - The storage of a new broker is normally formatted by a JVM of its own. Its only content that we cannot write ourselves is
//!   `bootstrap.checkpoint`, the same for every cluster of a version, so it is made once and copied.
//! - A class data sharing archive (JEP 350) cuts the start of a broker from 4.0 to 2.2 seconds (2 cores, Java 17).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{fingerprint, lock, once, suffixed, tool};
use crate::kafka::warm_up_for_archive;
use crate::{Error, Progress, Result};

/// The version that is downloaded.
const VERSION: &str = "4.1.0";
/// An installed Kafka must be of this major version and at least this minor one.
const ACCEPTED: [u32; 2] = [4, 1];
const MIN_JAVA: u32 = 17;
const POM: &str = include_str!("../../obtain/kafka/pom.xml");
const TIERED_POM: &str = include_str!("../../obtain/kafka/tiered.xml");

/// Where Kafka's jars are and how to run them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaInstall {
    /// `java`, version 17 or newer.
    pub java: PathBuf,
    /// Kafka's version.
    pub version: String,
    /// Every jar, separated by `:`, in a fixed order (class data sharing insists on it).
    pub class_path: String,
    /// A formatted broker's `bootstrap.checkpoint`.
    pub(crate) checkpoint: PathBuf,
    /// Class data sharing archive; absent if it could not be made.
    pub(crate) archive: Option<PathBuf>,
}

impl KafkaInstall {
    /// `java -cp … main_class args`.
    #[must_use]
    pub fn tool_command(&self, main_class: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.java);
        command
            .args(["-cp", &self.class_path, main_class])
            .args(args);
        command
    }
}

pub(super) fn obtain(cache: &Path, progress: &dyn Progress) -> Result<KafkaInstall> {
    let (java, java_version) = find_java()?;
    let (libs, version) = match installed() {
        Some(found) => found,
        None => (download(cache, progress)?, VERSION.to_owned()),
    };
    let prepared = cache.join(format!(
        "kafka-{version}-prepared-{}",
        fingerprint(&[&libs.to_string_lossy()])
    ));
    let mut install = KafkaInstall {
        java,
        version,
        class_path: class_path(&libs)?,
        checkpoint: prepared.join("bootstrap.checkpoint"),
        archive: None,
    };
    once(&prepared, "Kafka", progress, |folder| {
        format_template(&install, folder)
    })?;
    let archive = prepared.join(format!("classes-{}.jsa", fingerprint(&[&java_version])));
    install.archive = make_archive(&install, &archive, progress)?;
    Ok(install)
}

fn find_java() -> Result<(PathBuf, String)> {
    let missing = || Error::MissingTool {
        tool: "java (17 or newer)",
        needed_for: "to run Kafka",
        install: "apt-get install openjdk-17-jre-headless, or set JAVA_HOME",
    };
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin/java"));
    let java = home
        .filter(|java| java.is_file())
        .or_else(|| tool::find("java"))
        .ok_or_else(missing)?;
    let text = tool::output(&java, &["-version"]).ok_or_else(missing)?;
    let major = text
        .split('"')
        .nth(1)
        .and_then(|version| version.split(['.', '-', '+']).next()?.parse::<u32>().ok());
    if major.is_none_or(|major| major < MIN_JAVA) {
        return Err(missing());
    }
    Ok((java, text))
}

/// A Kafka distribution whose start script is on PATH: its jars and version.
fn installed() -> Option<(PathBuf, String)> {
    let script =
        tool::find("kafka-server-start.sh").or_else(|| tool::find("kafka-server-start"))?;
    let libs = fs::canonicalize(script)
        .ok()?
        .parent()?
        .parent()?
        .join("libs");
    let version = fs::read_dir(&libs).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(
            name.strip_prefix("kafka-clients-")?
                .strip_suffix(".jar")?
                .to_owned(),
        )
    })?;
    let number = tool::version_in(&version)?;
    let complete = libs.join(format!("connect-mirror-{version}.jar")).is_file();
    let recent = number.first() == ACCEPTED.first() && number.get(1) >= ACCEPTED.get(1);
    (complete && recent).then_some((libs, version))
}

fn download(cache: &Path, progress: &dyn Progress) -> Result<PathBuf> {
    let target = cache.join(format!("kafka-{VERSION}-{}", fingerprint(&[POM])));
    once(&target, "Kafka", progress, |folder| {
        let what = format!("downloading Kafka {VERSION} (54 MB)");
        maven(POM, folder, &what, &suffixed(&target, "log"), progress)
    })?;
    Ok(target.join("libs"))
}

/// The jar with `LocalTieredStorage`, which keeps remote segments (KIP-405) in a folder. Kafka publishes it with its tests.
pub(super) fn tiered_storage(
    cache: &Path,
    version: &str,
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let pom = TIERED_POM.replace("VERSION", version);
    let target = cache.join(format!("kafka-tiered-{version}-{}", fingerprint(&[&pom])));
    once(&target, "Kafka's storage tests", progress, |folder| {
        let what = format!("downloading Kafka's storage tests {version} (0.5 MB)");
        maven(&pom, folder, &what, &suffixed(&target, "log"), progress)
    })?;
    Ok(target.join(format!("libs/kafka-storage-{version}-test.jar")))
}

/// Copies what `pom` depends on to `folder/libs`.
fn maven(pom: &str, folder: &Path, what: &str, log: &Path, progress: &dyn Progress) -> Result<()> {
    let maven = tool::find("mvn").ok_or(Error::MissingTool {
        tool: "mvn",
        needed_for: "to download Kafka",
        install: "apt-get install maven (or put Kafka 4.1's bin folder on PATH)",
    })?;
    let file = folder.join("pom.xml");
    fs::write(&file, pom).map_err(Error::path("write", &file))?;
    let mut command = Command::new(maven);
    command
        .args([
            "-B",
            "dependency:copy-dependencies",
            "-DoutputDirectory=libs",
        ])
        .current_dir(folder);
    tool::run(what, command, log, progress)
}

fn class_path(libs: &Path) -> Result<String> {
    let mut jars: Vec<String> = fs::read_dir(libs)
        .map_err(Error::path("read", libs))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jar"))
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    jars.sort();
    Ok(jars.join(":"))
}

fn format_template(install: &KafkaInstall, folder: &Path) -> Result<()> {
    let data = folder.join("data");
    let properties = folder.join("server.properties");
    let text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:1\n\
         listeners=PLAINTEXT://127.0.0.1:2,CONTROLLER://127.0.0.1:1\ncontroller.listener.names=CONTROLLER\nlog.dirs={}\n",
        data.display()
    );
    fs::write(&properties, text).map_err(Error::path("write", &properties))?;
    let config = properties.to_string_lossy().into_owned();
    let args = ["format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", &config];
    let output = install
        .tool_command("kafka.tools.StorageTool", &args)
        .output()
        .map_err(Error::io("run Kafka's StorageTool"))?;
    let made = data.join("bootstrap.checkpoint");
    if !output.status.success() || !made.is_file() {
        return Err(Error::Obtain {
            server: format!("Kafka {}", install.version),
            detail: format!(
                "its StorageTool failed: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
        });
    }
    let kept = folder.join("bootstrap.checkpoint");
    fs::rename(&made, &kept).map_err(Error::path("rename to", &kept))
}

/// Makes the archive by running a broker once. A JVM that cannot do it is no reason to fail: starts are then slower.
fn make_archive(
    install: &KafkaInstall,
    archive: &Path,
    progress: &dyn Progress,
) -> Result<Option<PathBuf>> {
    if archive.is_file() {
        return Ok(Some(archive.to_owned()));
    }
    let _lock = lock(&suffixed(archive, "lock"), "Kafka", progress)?;
    if archive.is_file() {
        return Ok(Some(archive.to_owned()));
    }
    progress.begin("preparing Kafka for quick starts");
    let partial = suffixed(archive, "partial");
    let made = warm_up_for_archive(install, &partial).is_ok() && partial.is_file();
    progress.end(if made {
        "done"
    } else {
        "not possible with this JVM; starts will be slower"
    });
    if !made {
        return Ok(None);
    }
    fs::rename(&partial, archive).map_err(Error::path("rename to", archive))?;
    Ok(Some(archive.to_owned()))
}
