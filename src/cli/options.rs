//! `-o a,b=c`, as fstab and mount(8) hand it over, translated to flags.
//!
//! Pure. Owns which mount(8) words mean nothing to us. Does not own the flags (`args`): it asks
//! which there are.

/// Words of mount(8) and systemd that say when and by whom to mount, or ask for what always is so:
/// a trialfs mount is nosuid, nodev and noatime.
const IGNORED: [&str; 26] = [
    "_netdev",
    "async",
    "auto",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "group",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nostrictatime",
    "nosuid",
    "nouser",
    "norelatime",
    "owner",
    "relatime",
    "rw",
    "strictatime",
    "suid",
    "sync",
    "dirsync",
    "user",
    "users",
];

/// How a flag is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `--flag`
    Switch,
    /// `--flag VALUE`
    Value,
}

/// Flags for one `-o` list; `known` tells the shape of a long flag, if there is such a flag.
pub fn translate(list: &str, known: impl Fn(&str) -> Option<Shape>) -> Result<Vec<String>, String> {
    let mut flags = Vec::new();
    for word in list.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v)));
        if IGNORED.contains(&name) || name.starts_with("x-") || name == "comment" {
            continue;
        }
        let long = if name == "ro" { "read-only".to_owned() } else { name.replace('_', "-") };
        match (known(&long), value) {
            (Some(Shape::Switch), None) => flags.push(format!("--{long}")),
            (Some(Shape::Value), Some(value)) => flags.push(format!("--{long}={value}")),
            (Some(Shape::Switch), Some(_)) => return Err(format!("-o {name} takes no value")),
            (Some(Shape::Value), None) => {
                return Err(format!("-o {name} needs a value: {name}=..."));
            }
            (None, _) => {
                let name = name.escape_debug();
                return Err(format!("-o {name} is not known; see `trialfs mount --help`"));
            }
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(name: &str) -> Option<Shape> {
        match name {
            "allow-other" | "read-only" => Some(Shape::Switch),
            "uid" | "cache-dir" => Some(Shape::Value),
            _ => None,
        }
    }

    #[test]
    fn an_fstab_line_becomes_flags() {
        let list = "_netdev,nofail,ro,allow_other,uid=1000,cache_dir=/a=b,x-systemd.automount,";
        assert_eq!(
            translate(list, known).expect("all known"),
            ["--read-only", "--allow-other", "--uid=1000", "--cache-dir=/a=b"]
        );
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in ["allow_othr", "uid", "ro=1", "allow_other=1"] {
            assert!(translate(bad, known).is_err(), "{bad}");
        }
    }
}
