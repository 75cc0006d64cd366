//! What is agreed with the kernel at the start: sizes, and what each side can do.
//!
//! Owns these figures. Does not own which capabilities are asked for (`convert`).

use fuser::{InitFlags, KernelConfig};

use super::convert::CAPABILITIES;

/// The largest write the kernel sends at once, in bytes; as large as it goes without more pages.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// How far the kernel may read ahead, in bytes; how far it does, `mount` says where it may.
const READAHEAD_BYTES: u32 = 16 << 20;
/// Requests the kernel keeps under way in the background: several readers' read-ahead.
const BACKGROUND_MAX: u16 = 64;
/// A backing file may itself lie on one stacked file system (a container's overlay).
const STACK_DEPTH_MAX: u32 = 2;

/// Asks for what a mount needs. Returns whether the kernel passes through.
pub(super) fn negotiate(config: &mut KernelConfig) -> bool {
    for wanted in CAPABILITIES {
        if config.add_capabilities(wanted).is_err() {
            tracing::info!(?wanted, "the kernel is too old for this");
        }
    }
    let _ = config.set_max_write(WRITE_BYTES_MAX);
    let _ = config.set_max_background(BACKGROUND_MAX);
    if let Err(most) = config.set_max_readahead(READAHEAD_BYTES) {
        let _ = config.set_max_readahead(most);
    }
    config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(STACK_DEPTH_MAX).is_ok()
}
