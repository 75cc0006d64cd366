//! From flags, environment and user to a configuration: the one place where defaults that depend on
//! the surroundings are made.
//!
//! Pure: what it knows of the machine comes in as [`Surroundings`]. Does not check that anything
//! exists.

use std::path::{Path, PathBuf};

use crate::bucket::azure;
use crate::checkpoint::protocol::lease::{LEASE_MAX, LEASE_MIN};
use crate::checkpoint::rules::{RuleError, rule_from_flag, rules_from_file};
use crate::config::{
    self, CheckpointOptions, CountLimits, Location, MountConfig, Secret, StoreOptions, origin,
};
use crate::mount::point::Covering;
use crate::mount::registry::hash;
use crate::mount::{Launch, Stay};

use super::args::{CheckpointArgs, Durability, LogLevel, MountArgs, StoreArgs};
use super::location::{MountUrl, redact};

pub const WEBDAV_USER_ENV: &str = "TRIALFS_WEBDAV_USER";
pub const WEBDAV_PASSWORD_ENV: &str = "TRIALFS_WEBDAV_PASSWORD";
/// Where Google's libraries look for an emulator: a URL, or a host and port.
const GCS_EMULATOR_ENV: &str = "STORAGE_EMULATOR_HOST";

/// What a command line means depends on who says it where.
pub struct Surroundings<'a> {
    pub uid: u32,
    pub gid: u32,
    pub umask: u32,
    /// What stands in the file of `--rules`.
    pub rules: Option<String>,
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Surroundings<'_> {
    /// The first of these variables that is set and not empty.
    fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| (self.env)(name).filter(|value| !value.is_empty()))
    }
}

/// `mount_point` is absolute and without links. The error is one line for the user.
pub fn resolve(
    args: &MountArgs,
    url: MountUrl,
    mount_point: &Path,
    around: &Surroundings<'_>,
) -> Result<(MountConfig, Launch), String> {
    let store = store_options(&args.store, &url, around)?;
    let cache_dir = match &args.limits.cache_dir {
        Some(dir) => std::path::absolute(dir).map_err(|e| format!("--cache-dir: {e}"))?,
        None => default_cache_dir(&url, &store, mount_point, around)?,
    };
    let log_file = args.log.log_file.as_ref().map(std::path::absolute).transpose();
    let launch = Launch {
        stay: if args.foreground { Stay::Foreground } else { Stay::Background },
        covering: if args.nonempty { Covering::Allow } else { Covering::Refuse },
        log_level: level(args.log.log_level),
        log_file: log_file.map_err(|e| format!("--log-file: {e}"))?,
    };
    let config = MountConfig {
        url: url.shown,
        location: url.location,
        store,
        mount_point: mount_point.to_owned(),
        cache_dir,
        cache_bytes_max: args.limits.cache_size,
        memory_bytes_max: args.limits.memory_limit,
        dirty_bytes_max: args.limits.dirty_limit,
        counts: CountLimits {
            staged_files: args.limits.file_limit.map(|files| files as usize),
            uploads: args.limits.upload_limit as usize,
            requests: args.limits.request_limit as usize,
            inodes: args.limits.inode_limit as usize,
        },
        read_only: args.read_only,
        allow_other: args.allow_other,
        uid: args.uid.unwrap_or(around.uid),
        gid: args.gid.unwrap_or(around.gid),
        umask: args.umask.unwrap_or(around.umask),
        strict: args.strict,
        durability: match args.durability {
            Durability::Close => config::Durability::Close,
            Durability::Local => config::Durability::Local,
        },
        io_timeout: args.io_timeout,
        passthrough: !args.no_passthrough,
        checkpoints: checkpoint_options(&args.checkpoints, around)?,
    };
    Ok((config, launch))
}

fn checkpoint_options(
    args: &CheckpointArgs,
    around: &Surroundings<'_>,
) -> Result<CheckpointOptions, String> {
    let mut rules = args.rule.clone();
    for rule in &rules {
        rule_from_flag(rule, args.commit_idle).map_err(|e| format!("--rule: {e}"))?;
    }
    if let (Some(file), Some(text)) = (&args.rules, &around.rules) {
        let at = |e: RuleError| format!("--rules {}: {e}", file.display());
        rules_from_file(text, args.commit_idle).map_err(at)?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
        rules.extend(lines.filter(|line| !line.is_empty()).map(str::to_owned));
    }
    let lease = args.lease.clamp(LEASE_MIN, LEASE_MAX);
    if lease != args.lease {
        return Err(format!("--lease: from {LEASE_MIN:?} to {LEASE_MAX:?}"));
    }
    Ok(CheckpointOptions {
        rules,
        idle: args.commit_idle,
        max: args.commit_max,
        wait: args.commit_wait,
        lease,
    })
}

fn store_options(
    args: &StoreArgs,
    url: &MountUrl,
    around: &Surroundings<'_>,
) -> Result<StoreOptions, String> {
    let is_s3 = matches!(url.location, Location::S3 { .. });
    let is_azure = matches!(url.location, Location::Azure { .. });
    let is_cloud = is_s3 || is_azure || matches!(url.location, Location::Gcs { .. });
    refuse_foreign_flags(args, is_s3, is_azure, is_cloud)?;
    let given = |flag: &Option<String>, applies: bool, names: &[&str]| {
        flag.clone().or_else(|| applies.then(|| around.first(names)).flatten())
    };
    let (azure_account, azure_endpoint) =
        if is_azure { azure::told(around.env) } else { (None, None) };
    let endpoint = match url.location {
        Location::Azure { .. } => args.endpoint.clone().or(azure_endpoint),
        Location::Gcs { .. } => {
            let emulator = || around.first(&[GCS_EMULATOR_ENV]).map(with_scheme);
            args.endpoint.clone().or_else(emulator)
        }
        _ => given(&args.endpoint, is_s3, &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]),
    };
    if let Some(endpoint) = &endpoint {
        check_endpoint(endpoint)?;
    }
    let ca_names: &[&str] =
        if is_s3 { &["AWS_CA_BUNDLE", "SSL_CERT_FILE"] } else { &["SSL_CERT_FILE"] };
    let ca_bundle = args.ca_bundle.clone().or_else(|| around.first(ca_names).map(PathBuf::from));
    let ca_bundle = ca_bundle.map(std::path::absolute).transpose();
    let password = url.password.clone();
    Ok(StoreOptions {
        endpoint,
        region: given(&args.region, is_s3, &["AWS_REGION", "AWS_DEFAULT_REGION"]),
        profile: args.profile.clone(), // AWS_PROFILE weighs less, and is read with the files
        path_style: match (args.path_style, args.virtual_hosted) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        },
        anonymous: args.anonymous,
        sse: args.sse.clone(),
        sse_kms_key_id: args.sse_kms_key_id.clone(),
        requester_pays: args.requester_pays,
        ca_bundle: ca_bundle.map_err(|e| format!("--ca-bundle: {e}"))?,
        azure_account: args.azure_account.clone().or(azure_account),
        webdav_user: url.user.clone().or_else(|| around.first(&[WEBDAV_USER_ENV])),
        webdav_password: password.or_else(|| around.first(&[WEBDAV_PASSWORD_ENV]).map(Secret::new)),
    })
}

/// A flag that has no effect would be a promise not kept (`--sse`!), so it is refused.
fn refuse_foreign_flags(
    args: &StoreArgs,
    is_s3: bool,
    is_azure: bool,
    is_cloud: bool,
) -> Result<(), String> {
    let flags = [
        ("--endpoint", args.endpoint.is_some(), is_cloud, "s3://, gs:// and az://"),
        ("--anonymous", args.anonymous, is_cloud, "s3://, gs:// and az://"),
        ("--region", args.region.is_some(), is_s3, "s3://"),
        ("--profile", args.profile.is_some(), is_s3, "s3://"),
        ("--path-style", args.path_style, is_s3, "s3://"),
        ("--virtual-hosted", args.virtual_hosted, is_s3, "s3://"),
        ("--sse", args.sse.is_some(), is_s3, "s3://"),
        ("--sse-kms-key-id", args.sse_kms_key_id.is_some(), is_s3, "s3://"),
        ("--requester-pays", args.requester_pays, is_s3, "s3://"),
        ("--azure-account", args.azure_account.is_some(), is_azure, "az://"),
    ];
    for (flag, given, applies, to) in flags {
        if given && !applies {
            return Err(format!("{flag} is for {to} alone; leave it out"));
        }
    }
    if args.sse_kms_key_id.is_some() && args.sse.as_deref() != Some("aws:kms") {
        return Err("--sse-kms-key-id wants --sse aws:kms beside it".to_owned());
    }
    Ok(())
}

fn with_scheme(endpoint: String) -> String {
    if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") }
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let shown = redact(endpoint);
    match url::Url::parse(endpoint) {
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Err(format!("--endpoint `{shown}`: keys do not belong into it; use the environment"))
        }
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
        _ => Err(format!("--endpoint `{shown}` is not a URL; write http://HOST:PORT or https://")),
    }
}

/// `/var/cache/trialfs/HASH` for root, else `$XDG_CACHE_HOME` or `~/.cache`.
fn default_cache_dir(
    url: &MountUrl,
    store: &StoreOptions,
    mount_point: &Path,
    around: &Surroundings<'_>,
) -> Result<PathBuf, String> {
    use std::os::unix::ffi::OsStrExt;
    let words = origin(&url.shown, store);
    let name = hash(&[words.as_bytes(), mount_point.as_os_str().as_bytes()]);
    if around.uid == 0 {
        return Ok(Path::new("/var/cache/trialfs").join(name));
    }
    let cache = around.first(&["XDG_CACHE_HOME"]).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = around.first(&["HOME"]).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = cache.or_else(|| home.map(|home| home.join(".cache")));
    base.map(|base| base.join("trialfs").join(name))
        .ok_or_else(|| "HOME is not set; say where to cache with --cache-dir DIR".to_owned())
}

fn level(level: LogLevel) -> tracing::Level {
    match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::super::location::parse;
    use super::*;
    use clap::Parser;

    fn resolved(line: &str, env: &[(&str, &str)]) -> Result<(MountConfig, Launch), String> {
        let words = ["trialfs", "mount"].into_iter().chain(line.split(' '));
        let Command::Mount(args) = Cli::try_parse_from(words).expect("parses").command else {
            panic!("a mount");
        };
        let env =
            |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        let around = Surroundings { uid: 1000, gid: 100, umask: 0o027, rules: None, env: &env };
        resolve(&args, parse(&args.url)?, Path::new("/mnt/a"), &around)
    }

    #[test]
    fn defaults_are_the_user_and_a_cache_of_this_url_and_directory() {
        let home = [("HOME", "/home/me")];
        let (config, launch) = resolved("s3://b/p /mnt/a", &home).expect("resolves");
        assert_eq!((config.uid, config.gid, config.umask), (1000, 100, 0o027));
        assert!(config.cache_dir.starts_with("/home/me/.cache/trialfs"));
        assert_eq!(config.io_timeout.as_secs(), 120);
        assert!(config.passthrough && launch.stay == Stay::Background);
        let (other, _) = resolved("s3://b/q /mnt/a", &home).expect("resolves");
        assert_ne!(config.cache_dir, other.cache_dir);
        let elsewhere = "s3://b/p /mnt/a --endpoint http://h:1";
        let (other, _) = resolved(elsewhere, &home).expect("resolves");
        assert_ne!(config.cache_dir, other.cache_dir);
        assert!(resolved("s3://b /mnt/a", &[]).expect_err("no HOME").contains("--cache-dir"));
    }

    #[test]
    fn the_environment_of_one_cloud_does_not_steer_another() {
        let env = [("HOME", "/h"), ("AWS_ENDPOINT_URL", "http://e:1"), ("AWS_REGION", "r")];
        let (s3, _) = resolved("s3://b /mnt/a", &env).expect("resolves");
        assert_eq!(s3.store.endpoint.as_deref(), Some("http://e:1"));
        assert_eq!(s3.store.region.as_deref(), Some("r"));
        let (flag, _) = resolved("s3://b /mnt/a --endpoint http://f:2", &env).expect("resolves");
        assert_eq!(flag.store.endpoint.as_deref(), Some("http://f:2"));
        let azure = [("HOME", "/h"), ("AZURE_STORAGE_ACCOUNT", "me"), ("AWS_ENDPOINT_URL", "x")];
        let (az, _) = resolved("az://c /mnt/a", &azure).expect("resolves");
        assert_eq!((az.store.endpoint, az.store.azure_account), (None, Some("me".to_owned())));
        let text = "AccountName=me;EndpointSuffix=core.cn;AccountKey=secret";
        let azure = [("HOME", "/h"), ("AZURE_STORAGE_CONNECTION_STRING", text)];
        let (other, _) = resolved("az://c /mnt/a", &azure).expect("resolves");
        assert_eq!(other.store.endpoint.as_deref(), Some("https://me.blob.core.cn"));
        assert_ne!(az.cache_dir, other.cache_dir);
        assert!(!format!("{other:?}").contains("secret"));
        let (gs, _) = resolved("gs://b /mnt/a", &env).expect("resolves");
        assert_eq!((gs.store.endpoint, gs.store.region), (None, None));
        let env = [("HOME", "/h"), ("STORAGE_EMULATOR_HOST", "127.0.0.1:9")];
        let (gs, _) = resolved("gs://b /mnt/a", &env).expect("resolves");
        assert_eq!(gs.store.endpoint.as_deref(), Some("http://127.0.0.1:9"));
        let (s3, _) = resolved("s3://b /mnt/a", &env).expect("resolves");
        assert_eq!(s3.store.endpoint, None);
    }

    #[test]
    fn a_flag_without_effect_is_refused() {
        for line in [
            "gs://b /mnt/a --sse AES256",
            "file:///d /mnt/a --endpoint http://h",
            "s3://b /mnt/a --azure-account x",
            "s3://b /mnt/a --sse-kms-key-id k",
            "s3://b /mnt/a --endpoint h:9000",
            "gs://b /mnt/a --endpoint h:9000",
            "s3://b /mnt/a --endpoint http://k:secret@h",
        ] {
            let error = resolved(line, &[("HOME", "/h")]).expect_err(line);
            assert!(!error.contains("secret") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn a_password_comes_from_the_environment_too() {
        let env = [("HOME", "/h"), (WEBDAV_USER_ENV, "me"), (WEBDAV_PASSWORD_ENV, "pw")];
        let (config, _) = resolved("http://h/d /mnt/a", &env).expect("resolves");
        assert_eq!(config.store.webdav_user.as_deref(), Some("me"));
        assert_eq!(config.store.webdav_password, Some(Secret::new("pw")));
    }
}
