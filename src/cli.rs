//! argv -> command -> exit code.
//!
//! Owns the words (`args`), their meaning (`resolve`) and every line printed to the user. Does not
//! own what a mount is (`mount`).

mod args;
mod commit;
mod gc;
mod location;
mod options;
mod recover;
mod resolve;
mod status;
mod units;
mod unmount;

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser};

use crate::clock;
use crate::config::Secret;
use crate::mount::{self, daemon, point, registry};

use args::{Cli, Command, MountArgs};
use location::MountUrl;
use options::Shape;
use resolve::{Surroundings, WEBDAV_PASSWORD_ENV, WEBDAV_USER_ENV};

/// Why a command failed.
enum Failure {
    /// The command line is wrong: exit code 2.
    Usage(String),
    /// The mount, the storage or the machine: exit code 1. `None` where it has been said.
    Failed(Option<anyhow::Error>),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(Some(error))
    }
}

/// Runs the command that the process's arguments name. Must be called before any thread is started.
pub fn main() -> ExitCode {
    let outcome = expand(std::env::args_os().collect()).and_then(|argv| {
        let cli = match Cli::try_parse_from(&argv) {
            Ok(cli) => cli,
            Err(e) if is_plain(&e) => return Err(Failure::Usage(usage_text(&e))),
            Err(e) => e.exit(), // help and version: 0, help for want of a command: 2
        };
        match cli.command {
            Command::Mount(args) => mount(&args, &argv),
            Command::Unmount(args) => done(unmount::run(&args)?),
            Command::Commit(args) => Ok(commit::run(&args)?),
            Command::Gc(args) => Ok(gc::run(&args)?),
            Command::Recover(args) => Ok(recover::run(&args, &clock::SystemClock)?),
            Command::Status(args) => done(status::run(&args, &clock::SystemClock)?),
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("trialfs: {text}");
            ExitCode::from(2)
        }
        Err(Failure::Failed(error)) => {
            if let Some(error) = error {
                eprintln!("trialfs: {}", one_line(&error));
            }
            ExitCode::from(1)
        }
    }
}

/// Whether the error is one about the arguments, and not help that was asked for or is due.
fn is_plain(error: &clap::Error) -> bool {
    use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand as HelpIsDue;
    error.use_stderr() && error.kind() != HelpIsDue
}

/// What is wrong with the arguments, on one line as every other error.
fn usage_text(error: &clap::Error) -> String {
    let text = error.to_string();
    let wrong = text.split("\n\nUsage:").next().unwrap_or(&text);
    let wrong = wrong.strip_prefix("error: ").unwrap_or(wrong);
    let wrong = wrong.split("\n\nFor more information").next().unwrap_or(wrong);
    format!("{}; see --help", wrong.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn done(well: bool) -> Result<(), Failure> {
    if well { Ok(()) } else { Err(Failure::Failed(None)) }
}

/// A chain of reasons on one line.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn mount(args: &MountArgs, argv: &[OsString]) -> Result<(), Failure> {
    let url = location::parse(&args.url).map_err(Failure::Usage)?;
    if let Some(password) = &url.password {
        return Err(restart_without(password, &url, args, argv));
    }
    let mount_point = point::locate(&args.dir)?;
    let env = |name: &str| std::env::var(name).ok();
    let rules = args.checkpoints.rules.as_deref().map(read_rules).transpose()?;
    let (uid, gid, umask) = (registry::own_uid(), own_gid(), own_umask());
    let around = Surroundings { uid, gid, umask, rules, env: &env };
    let (config, launch) =
        resolve::resolve(args, url, &mount_point, &around).map_err(Failure::Usage)?;
    if launch.stay == mount::Stay::Foreground {
        return Ok(mount::run(&config, &launch, daemon::Announcer::foreground())?);
    }
    match daemon::split()? {
        daemon::Side::Parent(waiter) => {
            let ready = waiter.wait(|warning| eprintln!("trialfs: warning: {warning}"));
            ready.map(drop).map_err(|text| Failure::Failed(Some(anyhow::anyhow!(text))))
        }
        // In the daemon nobody reads what is printed: `run` has told the parent.
        daemon::Side::Daemon(announcer) => {
            mount::run(&config, &launch, announcer).map_err(|_| Failure::Failed(None))
        }
    }
}

fn read_rules(file: &Path) -> Result<String, Failure> {
    let failed = |e| Failure::Usage(format!("--rules {}: {e}", file.display()));
    std::fs::read_to_string(file).map_err(failed)
}

/// Everybody can read a process's arguments, so the password moves to the environment, which only
/// this user can, by starting over. Returns only if that fails.
fn restart_without(
    password: &Secret,
    url: &MountUrl,
    args: &MountArgs,
    argv: &[OsString],
) -> Failure {
    eprintln!(
        "trialfs: warning: a password in the URL ends up in the shell's history; set \
         {WEBDAV_USER_ENV} and {WEBDAV_PASSWORD_ENV} instead"
    );
    let bare = |word: &OsString| -> OsString {
        if word.as_os_str() == OsStr::new(&args.url) { (&url.shown).into() } else { word.clone() }
    };
    let error = std::process::Command::new("/proc/self/exe")
        .arg0(&argv[0])
        .args(argv[1..].iter().map(bare))
        .env(WEBDAV_USER_ENV, url.user.as_deref().unwrap_or_default())
        .env(WEBDAV_PASSWORD_ENV, password.reveal())
        .exec();
    Failure::Failed(Some(anyhow::Error::from(error).context("can't restart")))
}

/// What mount(8) and fstab hand over becomes the command line that a person would write: a missing
/// `mount`, `-o` lists, and the switches of mount helpers.
fn expand(argv: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    let program = argv.first().cloned().unwrap_or_else(|| "trialfs".into());
    let helper = std::path::Path::new(&program)
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"mount."));
    let mut words = argv.into_iter().skip(1).peekable();
    let bare_url = words.peek().is_some_and(|w| w.to_str().is_some_and(|w| w.contains("://")));
    let mut expanded = vec![program];
    if helper || bare_url {
        expanded.push("mount".into());
    } else if words.peek().is_none_or(|word| word != "mount") {
        expanded.extend(words);
        return Ok(expanded);
    }
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-n" | "-s" | "-v" | "-i") if helper => {}
            Some("-o") => {
                let list = words.next().and_then(|list| list.into_string().ok());
                let list = list.ok_or_else(|| Failure::Usage("-o needs a list".to_owned()))?;
                expanded.extend(flags_of(&list)?);
            }
            Some(word) if word.starts_with("-o") => expanded.extend(flags_of(&word[2..])?),
            _ => expanded.push(word),
        }
    }
    Ok(expanded)
}

fn flags_of(list: &str) -> Result<impl Iterator<Item = OsString>, Failure> {
    let command = MountArgs::augment_args(clap::Command::new("mount"));
    let known = |name: &str| {
        let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name))?;
        Some(if flag.get_action().takes_values() { Shape::Value } else { Shape::Switch })
    };
    let flags = options::translate(list, known).map_err(Failure::Usage)?;
    Ok(flags.into_iter().map(OsString::from))
}

fn own_gid() -> u32 {
    // SAFETY: getegid has no preconditions and can't fail.
    unsafe { libc::getegid() }
}

fn own_umask() -> u32 {
    // SAFETY: umask can't fail; the process has one thread, so none sees the value in between.
    unsafe {
        let mask = libc::umask(0o077);
        libc::umask(mask);
        mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn expanded(line: &str) -> Vec<String> {
        let argv = line.split(' ').map(OsString::from).collect();
        let Ok(words) = expand(argv) else { panic!("{line}") };
        words.into_iter().map(|word| word.into_string().expect("UTF-8")).collect()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mount_8_and_fstab_say_the_same_as_a_person() {
        let person = ["trialfs", "mount", "s3://b", "/m", "--read-only", "--uid=7"];
        assert_eq!(expanded("trialfs mount s3://b /m -o ro,uid=7")[1..], person[1..]);
        assert_eq!(expanded("trialfs s3://b /m -o ro,uid=7")[1..], person[1..]);
        assert_eq!(
            expanded("/sbin/mount.trialfs s3://b /m -n -oro,uid=7,_netdev")[1..],
            person[1..]
        );
        assert_eq!(expanded("trialfs unmount /m -o x"), ["trialfs", "unmount", "/m", "-o", "x"]);
    }

    #[test]
    fn every_flag_stands_in_the_help_with_an_explanation() {
        let command = Cli::command();
        for sub in command.get_subcommands() {
            for flag in sub.get_arguments() {
                assert!(flag.get_help().is_some(), "{} {}", sub.get_name(), flag.get_id());
            }
        }
    }
}
