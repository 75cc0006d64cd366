//! Experiment storage that just works: a bucket mounted as a POSIX tree.
//!
//! The modules are floors; a file names only lower ones, and `tests/tidy.rs` holds it so.
//!
//! | floor | modules | what |
//! | --- | --- | --- |
//! | 6 | [`cli`] | argv -> command |
//! | 5 | [`mount`] | composition root: build, mount, signals, drain |
//! | 4 | [`fuse`] | the kernel's requests, decoded and answered |
//! | 3 | [`fs`] | one method per file-system operation |
//! | 2 | [`namespace`], [`read`], [`write`], [`checkpoint`] | names; bytes down, up; commits |
//! | 1 | [`bucket`] | what we ask of a store |
//! | 0 | [`types`], [`config`], [`clock`], [`telemetry`], [`pool`] | words that everybody uses |

pub mod bucket;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod config;
pub mod fs;
pub mod fuse;
pub mod mount;
pub mod namespace;
pub mod pool;
pub mod read;
pub mod telemetry;
pub mod types;
pub mod write;
