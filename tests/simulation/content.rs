//! What files hold: bytes that say which round of which directory wrote them, under which name.
//!
//! Owns making and checking them. Does not own which rounds there are.

use super::clock::drawn;

/// The content of `name` as round `round` of `directory` writes it: a line that says so, and bytes
/// that follow from it.
pub fn make(directory: &str, round: u64, name: &str, size: usize) -> Vec<u8> {
    let head = format!("{directory} {round} {name} {size}\n");
    let mut state = drawn(round, &[directory, name]);
    let mut bytes = head.into_bytes();
    while bytes.len() < size {
        state = super::clock::mix(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The round that wrote `bytes`, if they are whole and belong to this name.
pub fn round_of(directory: &str, name: &str, bytes: &[u8]) -> Result<u64, String> {
    let (round, size) = head_of(bytes, directory, name)
        .ok_or_else(|| format!("no content of {directory}/{name}: {:?}", start(bytes)))?;
    if make(directory, round, name, size) != bytes {
        return Err(format!(
            "{directory}/{name} of round {round} is mixed or cut: {}",
            bytes.len()
        ));
    }
    Ok(round)
}

fn head_of(bytes: &[u8], directory: &str, name: &str) -> Option<(u64, usize)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let words: Vec<&str> = head.split(' ').collect();
    let [of, round, named, size] = words[..] else { return None };
    let belongs = of == directory && named == name;
    belongs.then_some(())?;
    Some((round.parse().ok()?, size.parse().ok()?))
}

/// The directory and round that an upload's first part tells.
pub fn told_by(bytes: &[u8]) -> Option<(String, u64)> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut words = head.split(' ');
    Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
}

fn start(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned()
}
