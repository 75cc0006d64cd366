//! A test over the source itself: the floors of `src/lib.rs`, which crates may be named where, and
//! the form of a file.
//!
//! Owns the rules and a reading of `use` and of paths good enough for them. Does not own style that
//! the compiler, clippy or rustfmt check. Each rule is tried on a sample that breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;
const LINES_MAX: usize = 600;

/// A crate, and the modules that alone may name it: what is replaceable is named in one place.
const FENCES: [(&str, &[&str]); 3] =
    [("fuser", &["fuse"]), ("object_store", &["bucket"]), ("reqwest", &["bucket"])];

/// Crates that one file alone names.
const ONE_FILE: [&str; 1] = ["moka"];

/// Folders in which one type is spread over files that therefore name each other.
const ONE_TYPE: [(&str, &str); 2] = [
    ("namespace", "an inode has attributes, and attribute records are made of inodes"),
    ("write", "what is sent ahead, fetched and uploaded are methods of one staged file"),
];

/// What a file that calls itself pure in its header must not name.
const IMPURE: [&str; 12] = [
    "tokio::",
    "std::fs",
    "std::net",
    "std::thread",
    "std::sync::mpsc",
    "parking_lot",
    "rand::",
    "libc::",
    "Instant::now",
    "SystemTime::now",
    "async fn",
    ".await",
];

/// Words of unfinished work; written in halves, so that this file passes its own test.
const UNFINISHED: [&str; 7] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("unimple", "mented!"),
    concat!("to", "do!"),
    concat!("db", "g!"),
    concat!("#[ig", "nore"),
];

/// A source file: path relative to the repository, and text.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self { path: path.into(), text: text.into() }
    }

    /// `["fs", "handles"]` for `src/fs/handles.rs`; empty for `lib.rs` and what is not in `src`.
    fn module(&self) -> Vec<String> {
        let Ok(inner) = self.path.strip_prefix("src") else { return Vec::new() };
        let inner = inner.with_extension("");
        let names = inner.iter().map(|name| name.to_string_lossy().into_owned());
        names.filter(|name| name != "lib" && name != "main").collect()
    }

    fn is_test(&self) -> bool {
        !self.path.starts_with("src") || self.module().iter().any(|name| name == "tests")
    }

    fn say(&self, what: impl AsRef<str>) -> String {
        format!("{}: {}", self.path.display(), what.as_ref())
    }

    /// Without comments, strings and the tests at the end.
    fn code(&self) -> String {
        let text = strip(&self.text);
        let tests = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
        text[..tests].to_owned()
    }
}

/// Blanks out comments and the content of strings; keeps lines.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            string_bytes(rest)
        } else if c == '\'' {
            char_bytes(rest)
        } else {
            0
        };
        if skipped == 0 {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            out.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
            out.push(' ');
            rest = &rest[skipped..];
        }
    }
    out
}

fn string_bytes(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Of `'x'` and `'\n'`, but 0 of a lifetime.
fn char_bytes(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[3..].find('\'').map_or(0, |end| end + 4),
        Some((at, c)) if text[at + c.len_utf8()..].starts_with('\'') => at + c.len_utf8() + 1,
        _ => 0,
    }
}

/// Every path below `root::` in code, its names joined by `::`; groups in braces taken apart.
fn paths_below(root: &str, code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let start = format!("{root}::");
    for (at, _) in code.match_indices(&start) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        expand(&code[at + start.len()..], "", &mut found);
    }
    found
}

/// Reads one path or one group of paths; returns what follows it.
fn expand<'a>(text: &'a str, before: &str, found: &mut Vec<String>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, before, found).trim_start();
            match rest.strip_prefix(',').map(str::trim_start) {
                Some(after) if !after.starts_with('}') => rest = after,
                after => return after.unwrap_or(rest).strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let path =
        if before.is_empty() { text[..end].into() } else { format!("{before}::{}", &text[..end]) };
    let rest = &text[end..];
    match rest.strip_prefix("::") {
        Some(deeper) if deeper.starts_with(|c: char| c == '{' || c == '_' || c.is_alphabetic()) => {
            expand(deeper, &path, found)
        }
        _ => {
            found.push(path);
            let rest = rest.trim_start();
            match rest.strip_prefix("as ") {
                Some(alias) => alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
                None => rest,
            }
        }
    }
}

/// Every path that a file names inside the crate, from the crate's root, whether by `crate::`,
/// `super::` or, in the binary, by name.
fn named(source: &Source) -> BTreeSet<String> {
    let code = source.code();
    let mut named: BTreeSet<String> = paths_below("crate", &code).into_iter().collect();
    if source.path == Path::new("src/main.rs") {
        named.extend(paths_below("trialfs", &code));
    }
    let module = source.module();
    let mut climb = "super".to_owned();
    for depth in (0..module.len()).rev() {
        let base = module[..depth].join("::");
        for path in paths_below(&climb, &code).into_iter().filter(|path| path != "super") {
            named.insert(if base.is_empty() { path } else { format!("{base}::{path}") });
        }
        climb.push_str("::super");
    }
    named
}

/// The floors, from the table in `lib.rs`.
fn floors(lib: &str) -> BTreeMap<String, u32> {
    let mut floors = BTreeMap::new();
    for row in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = row.split(" | ");
        let floor = cells.next().and_then(|cell| cell.parse::<u32>().ok());
        if let (Some(floor), Some(modules)) = (floor, cells.next()) {
            let names = modules.split("[`").skip(1).filter_map(|m| m.split("`]").next());
            floors.extend(names.map(|name| (name.to_owned(), floor)));
        }
    }
    floors
}

/// The table names every module, and no other.
fn check_table(floors: &BTreeMap<String, u32>, sources: &[Source]) -> Vec<String> {
    let modules = sources.iter().filter_map(|s| s.module().into_iter().next());
    let modules: BTreeSet<String> = modules.collect();
    let table: BTreeSet<String> = floors.keys().cloned().collect();
    let odd = modules.symmetric_difference(&table);
    odd.map(|name| format!("src/lib.rs: the table of floors and the tree differ in `{name}`"))
        .collect()
}

/// Imports run downward: a module names none of its own floor or above.
fn check_floors(floors: &BTreeMap<String, u32>, source: &Source) -> Vec<String> {
    let module = source.module();
    let Some(own) = module.first().filter(|_| !source.is_test()) else { return Vec::new() };
    let mut wrong = Vec::new();
    for path in named(source) {
        let other = path.split("::").next().unwrap_or_default();
        if other == own || floors.get(other) < floors.get(own) && floors.contains_key(other) {
            continue;
        }
        wrong.push(source.say(format!("names crate::{path}, which is not on a lower floor")));
    }
    wrong
}

/// Inside a folder the files that name each other go round in no circle.
fn check_circles(sources: &[Source]) -> Vec<String> {
    let files: BTreeMap<String, &Source> = sources
        .iter()
        .filter(|s| s.module().len() > 1 && !s.is_test())
        .map(|s| (s.module().join("::"), s))
        .collect();
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, source) in &files {
        for path in named(source) {
            // A path leads to the deepest file that it begins with; what it says beyond is an item.
            let to = files.keys().filter(|f| path == **f || path.starts_with(&format!("{f}::")));
            if let Some(to) = to.max_by_key(|f| f.len()).filter(|to| *to != name) {
                edges.entry(name).or_default().insert(to);
            }
        }
    }
    // What names nothing that is left, or is named by nothing that is left, is no part of a circle;
    // take such away until nothing moves.
    let mut left: BTreeSet<&str> = edges.keys().copied().collect();
    loop {
        let names = |name: &str| edges[name].iter().any(|to| left.contains(to));
        let is_named = |name: &str| left.iter().any(|from| edges[from].contains(name));
        let free = |name: &&&str| !names(name) || !is_named(name);
        let Some(name) = left.iter().find(free).copied() else { break };
        left.remove(name);
    }
    let one_type = |name: &&str| ONE_TYPE.iter().any(|(f, _)| name.split("::").next() == Some(f));
    let circles = left.into_iter().filter(|name| !one_type(name));
    circles.map(|name| files[name].say("is part of a circle of imports")).collect()
}

/// Some crates are named in one module, some in one file.
fn check_fences(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut namers: BTreeMap<&str, Vec<&Source>> = BTreeMap::new();
    for source in sources.iter().filter(|s| s.path.starts_with("src")) {
        let code = strip(&source.text);
        for (name, modules) in FENCES {
            let inside = source.module().first().is_some_and(|m| modules.contains(&m.as_str()));
            if !inside && !paths_below(name, &code).is_empty() {
                wrong.push(source.say(format!("names {name}, which is for {modules:?} alone")));
            }
        }
        for name in ONE_FILE {
            if !paths_below(name, &code).is_empty() {
                namers.entry(name).or_default().push(source);
            }
        }
    }
    for (name, sources) in namers {
        wrong.extend(
            sources.iter().skip(1).map(|s| s.say(format!("names {name}, as another file does"))),
        );
    }
    wrong
}

/// A file that calls itself pure neither acts nor names its driver.
fn check_purity(source: &Source) -> Vec<String> {
    let header: Vec<&str> =
        source.text.lines().take_while(|line| line.starts_with("//!")).collect();
    let words = header.join(" ");
    if source.is_test() || !words.split([' ', '.', ':', ',']).any(|word| word == "Pure") {
        return Vec::new();
    }
    let code = source.code();
    let acts = IMPURE.iter().filter(|word| code.contains(**word));
    acts.map(|word| source.say(format!("calls itself pure and has `{word}`"))).collect()
}

/// The form of a file.
fn check_form(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    if !source.text.starts_with("//!") {
        wrong.push(source.say("does not begin with `//!`: what it owns and what not"));
    }
    let lines = source.text.lines().count();
    if lines > LINES_MAX {
        wrong.push(source.say(format!("has {lines} lines, more than {LINES_MAX}")));
    }
    for (line, text) in (1..).zip(source.text.lines()) {
        if text.chars().count() > COLUMNS_MAX {
            wrong.push(source.say(format!("line {line} is longer than {COLUMNS_MAX} columns")));
        }
        for word in UNFINISHED.iter().filter(|word| text.contains(**word)) {
            wrong.push(source.say(format!("line {line} has `{word}`")));
        }
    }
    wrong
}

fn check_all(floors: &BTreeMap<String, u32>, sources: &[Source]) -> Vec<String> {
    let mut wrong = check_table(floors, sources);
    wrong.extend(check_circles(sources));
    wrong.extend(check_fences(sources));
    for source in sources {
        wrong.extend(check_floors(floors, source));
        wrong.extend(check_purity(source));
        wrong.extend(check_form(source));
    }
    wrong
}

fn sources_below(root: &Path, dir: &str, found: &mut Vec<Source>) {
    let Ok(entries) = root.join(dir).read_dir() else { return };
    for entry in entries.map(|entry| entry.expect("a readable directory")) {
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        let path = format!("{dir}/{name}");
        if entry.file_type().expect("a file type").is_dir() {
            sources_below(root, &path, found);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(entry.path()).expect("text");
            found.push(Source::new(path, text));
        }
    }
}

#[test]
fn the_source_keeps_its_own_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = Vec::new();
    for dir in ["src", "tests", "benches"] {
        sources_below(root, dir, &mut sources);
    }
    assert!(sources.len() > 20, "the source was not found");
    let lib = std::fs::read_to_string(root.join("src/lib.rs")).expect("src/lib.rs");
    let wrong = check_all(&floors(&lib), &sources);
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

const SAMPLE_TABLE: &str =
    "//! | floor | modules |\n//! | 2 | [`read`], [`write`] | x |\n//! | 1 | [`bucket`] | y |\n";

fn floor_errors(path: &str, code: &str) -> usize {
    check_floors(&floors(SAMPLE_TABLE), &Source::new(path, code)).len()
}

#[test]
fn an_import_of_a_peer_or_upward_is_found_however_it_is_written() {
    for code in [
        "use crate::write::Writer;",
        "use crate::{bucket::Key, write};",
        "use crate::{\n    bucket::{Key, Page},\n    write::Writer,\n};",
        "fn f() { let _ = crate::write::x(); }",
        "use super::super::write::Writer;",
        "use crate::elsewhere::X;",
    ] {
        assert_eq!(floor_errors("src/read/cache.rs", code), 1, "{code}");
    }
    assert_eq!(floor_errors("src/bucket.rs", "use super::{read::A, write::B};"), 2);
}

#[test]
fn what_is_below_or_inside_may_be_named() {
    for code in [
        "use crate::bucket::{self, Key as K, Page};",
        "use crate::read::cache::X; use super::fill::Y;",
        "// use crate::write::Writer;\nconst S: &str = \"crate::write::x\";",
        "fn f(a: char) -> bool { a == '\"' || a == '\\'' } // crate::write\n",
        "#[cfg(test)]\nmod tests {\n    use crate::write::Writer;\n}\n",
        "use mycrate::write::X;",
    ] {
        assert_eq!(floor_errors("src/read/cache.rs", code), 0, "{code}");
    }
}

#[test]
fn a_module_without_a_floor_and_a_floor_without_a_module_are_found() {
    let sources = [Source::new("src/read.rs", ""), Source::new("src/new.rs", "")];
    assert_eq!(check_table(&floors(SAMPLE_TABLE), &sources).len(), 3);
}

#[test]
fn a_circle_inside_a_folder_is_found() {
    let a = || Source::new("src/read/a.rs", "use super::b::B;");
    let b = || Source::new("src/read/b.rs", "use crate::read::c;");
    let circle = [a(), b(), Source::new("src/read/c.rs", "use super::a::A;")];
    assert_eq!(check_circles(&circle).len(), 3);
    let line = [a(), b(), Source::new("src/read/c.rs", "use super::Reader;")];
    assert_eq!(check_circles(&line).len(), 0);
}

#[test]
fn a_crate_named_outside_its_fence_is_found() {
    let errors = |path: &str, code: &str| check_fences(&[Source::new(path, code)]).len();
    assert_eq!(errors("src/fs.rs", "use fuser::Session;"), 1);
    assert_eq!(errors("src/fuse.rs", "use fuser::Session;"), 0);
    assert_eq!(errors("src/bucket/s3.rs", "type E = object_store::Error;"), 0);
    assert_eq!(errors("src/read.rs", "fn f(e: reqwest::Error) {}"), 1);
    let two = ["a", "b"]
        .map(|name| Source::new(format!("src/read/{name}.rs"), "use moka::future::Cache;"));
    assert_eq!(check_fences(&two).len(), 1);
}

#[test]
fn a_pure_file_that_acts_is_found() {
    let errors = |text: &str| check_purity(&Source::new("src/read/a.rs", text)).len();
    assert_eq!(errors("//! Pure.\nuse std::fs::File;\n"), 1);
    assert_eq!(errors("//! Reads.\nuse std::fs::File;\n"), 0);
    assert_eq!(errors("//! Pure.\nfn f() {}\n"), 0);
}

#[test]
fn a_file_out_of_form_is_found() {
    let errors = |text: String| check_form(&Source::new("src/read.rs", text)).len();
    assert_eq!(errors("//! Good.\n".to_owned()), 0);
    assert_eq!(errors("use std::io;\n".to_owned()), 1);
    assert_eq!(errors(format!("//! Long.\n{}\n", "x".repeat(101))), 1);
    assert_eq!(errors(format!("//! Tall.\n{}", "\n".repeat(600))), 1);
    for word in UNFINISHED {
        assert!(errors(format!("//! Words.\n{word}\n")) >= 1, "{word}");
    }
}
