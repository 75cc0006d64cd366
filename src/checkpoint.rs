//! Checkpoint directories that commit atomically (contract points 3, 4 and 5).
//!
//! | file | what |
//! | --- | --- |
//! | [`record`] | the control records on the bucket, format 1: types, bytes, keys, bounds |
//! | [`protocol`] | what a mount does next, of what it wants and has seen; what it may show |
//! | [`moves`] | renames of directories: what a mount does next, what it may show |
//! | [`rules`] | which directories are checkpoints, and what says that one is complete |
//!
//! These four are pure: no request, clock, task, lock or random number. [`driver`] asks the
//! protocol, [`mover`] asks `moves`; both send what they are told and hand the answers back. Not
//! owned here: the bytes of files, and which inode or process belongs to a checkpoint (`fs`).

pub mod driver;
pub mod mover;
pub mod moves;
pub mod protocol;
pub mod record;
pub mod rules;
