//! Who closes a descriptor: a program, or the kernel while it kills one.

use crate::fs::{Closer, killed_by_signal};

pub(super) fn closer(pid: u32) -> Closer {
    if killed_by_signal(pid) { Closer::Killed } else { Closer::Living(pid) }
}
