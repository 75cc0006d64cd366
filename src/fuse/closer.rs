//! Who closes a descriptor: a program, or the kernel while it kills one.

use crate::fs::Closer;

/// Whether the process that closes a descriptor is being killed by a signal: the flags in field 9
/// of
/// `/proc/<pid>/stat`. One whose flags can't be read (another pid namespace) counts as living.
pub(super) fn closer(pid: u32) -> Closer {
    const PF_EXITING: u64 = 0x4;
    const PF_SIGNALED: u64 = 0x400;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return Closer::Living;
    };
    // The name in field 2 may hold spaces and brackets: fields count from its last bracket.
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let flags = after_name.split(' ').nth(6).and_then(|field| field.parse::<u64>().ok());
    let killed = PF_EXITING | PF_SIGNALED;
    match flags {
        Some(flags) if flags & killed == killed => Closer::Killed,
        _ => Closer::Living,
    }
}
