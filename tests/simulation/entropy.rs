//! The entropy of maps: drawn from the seed, so that their order is the same in every run.
//!
//! Owns `getrandom(2)` of this program, which the standard library asks once for each thread. Other
//! threads get the kernel's.

use std::cell::Cell;

use super::clock::mix;

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread's entropy follows from `seed`.
pub fn seed_this_thread(seed: u64) {
    SEED.set(Some(mix(seed)));
}

/// Stands in for the C library's.
///
/// # Safety
/// As getrandom(2): `buffer` holds `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    let Ok(Some(mut state)) = SEED.try_with(Cell::get) else {
        // SAFETY: the caller's promise, passed on.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as _ };
    };
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for byte in bytes {
        state = mix(state);
        *byte = state as u8;
    }
    SEED.set(Some(state));
    length as _
}
