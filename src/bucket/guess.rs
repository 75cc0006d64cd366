//! Where the pages of a listing may end that was never asked for: by the names of its first page.
//!
//! Files that a program numbers (`part-00017`), or names by a hash, stand in the order of their
//! digits. How far apart the first and the last of a page are tells where the next page ends, and
//! the one behind it, so that they are asked for side by side instead of in a row. A guess says
//! only where to begin, as boundaries that were learnt do: a wrong one costs requests that bring
//! nothing, never a name. (Interpolation search, W. W. Peterson, 1957, over a listing.)
//!
//! Owns the guess. Does not own what is asked (`bucket`). Pure.

use super::store::Page;
use crate::types::Key;

/// Of a page that has less in its order, as of directories that stores sort in their own ways,
/// nothing is guessed: so many of 16.
const FILES_PART_MIN: usize = 14;
/// Digits that count: what a `u128` holds of them, in base 16 too.
const DIGITS_MAX: usize = 30;
/// Where names are no row of numbers their distances vary, over half a page by a twentieth: so many
/// 16ths of a page are asked for, lest each has to be asked for twice.
const UNEVEN_PART: u128 = 14;
/// What stores take for a key, in bytes.
const KEY_BYTES_MAX: usize = 1024;

/// Where the pages behind a first one, which is full, may end: behind its last file all of them.
pub fn ends(page: &Page) -> Option<impl Iterator<Item = Key> + Send + use<>> {
    let files = page.objects.iter().map(|object| &object.key).filter(|key| !key.is_marker());
    let files: Vec<&str> = files.map(Key::as_str).collect();
    let (first, last) = (*files.first()?, *files.last()?);
    if files.len() * 16 < page.entries() * FILES_PART_MIN || !files.is_sorted() {
        return None;
    }
    let alike = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
    let name_at = first.rfind('/').map_or(0, |slash| slash + 1);
    let guess = [10, 16].into_iter().find_map(|radix| {
        let is_digit = |byte: &u8| is_digit(*byte, radix);
        let before = first.as_bytes().get(name_at..alike)?;
        let digits = before.iter().rev().take_while(|byte| is_digit(byte)).count();
        let stem = first.get(..alike - digits)?;
        let number = |name: &&str| number(name.get(stem.len()..)?, radix);
        let numbers: Vec<u128> = files.iter().map(number).collect::<Option<_>>()?;
        Guess::through(stem, radix, &numbers)
    })?;
    let mut guess = guess.peekable();
    // Not so where names go on with a letter and others with more digits.
    guess.peek().is_some_and(|end| end.as_str() > last).then_some(guess)
}

/// A row of keys, the same distance from each other.
#[derive(Debug, Clone)]
struct Guess {
    /// What all names begin with, the prefix too.
    stem: String,
    radix: u32,
    /// The digits behind the stem, of the last name and then of each end.
    at: u128,
    step: u128,
}

impl Guess {
    fn through(stem: &str, radix: u32, numbers: &[u128]) -> Option<Self> {
        // The first may be far from the others, as `f0` is from `f1` and `f10`.
        let (middle, last) = (*numbers.get(numbers.len() / 2)?, *numbers.last()?);
        if !numbers.is_sorted() {
            return None; // hashes whose first digits are all below 10
        }
        let mut gaps = numbers.windows(2).map(|pair| pair[1] - pair[0]);
        let even = gaps.next()?;
        let is_even = gaps.all(|gap| gap == even);
        let step = match is_even {
            true => even * (numbers.len() as u128 - 1),
            false => (last - middle) / 16 * UNEVEN_PART * 2,
        };
        let fits = stem.len() + DIGITS_MAX <= KEY_BYTES_MAX;
        (step > 0 && fits).then(|| Self { stem: stem.to_owned(), radix, at: last, step })
    }
}

impl Iterator for Guess {
    type Item = Key;

    /// Ends where no more digits follow.
    fn next(&mut self) -> Option<Key> {
        self.at += self.step;
        let end = u128::from(self.radix).pow(DIGITS_MAX as u32);
        if self.at >= end {
            return None;
        }
        let digits = match self.radix {
            10 => format!("{:0DIGITS_MAX$}", self.at),
            _ => format!("{:0DIGITS_MAX$x}", self.at),
        };
        Some(Key::new(format!("{}{}", self.stem, digits.trim_end_matches('0'))))
    }
}

/// A name's first digits as those of a fraction, so that they have the order of the names. `None`:
/// it has none.
fn number(name: &str, radix: u32) -> Option<u128> {
    let digits = name.bytes().take_while(|byte| is_digit(*byte, radix)).take(DIGITS_MAX);
    let (mut number, mut count) = (0u128, 0);
    for digit in digits {
        number = number * u128::from(radix) + u128::from(char::from(digit).to_digit(radix)?);
        count += 1;
    }
    let rest = (DIGITS_MAX - count) as u32;
    (count > 0).then(|| number * u128::from(radix).pow(rest))
}

/// Capital letters stand before the small ones.
fn is_digit(byte: u8, radix: u32) -> bool {
    !byte.is_ascii_uppercase() && char::from(byte).is_digit(radix)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::super::store::ListedObject;
    use super::*;
    use crate::types::ETag;

    fn page(names: impl IntoIterator<Item = String>) -> Page {
        let object = |name| ListedObject {
            key: Key::new(name),
            size: 1,
            etag: ETag("e".to_owned()),
            modified: SystemTime::UNIX_EPOCH,
        };
        let objects = names.into_iter().map(object).collect();
        Page { objects, ..Page::default() }
    }

    /// Of sorted names: how many each page has that the first thousand let guess, and what is left.
    fn pages(mut names: Vec<String>) -> Vec<usize> {
        names.sort();
        let first = page(names[..1000].to_vec());
        let mut rest = names[1000..].iter().map(String::as_str).peekable();
        let mut counts = Vec::new();
        for end in ends(&first).expect("nothing is guessed").take(100) {
            let page = std::iter::from_fn(|| rest.next_if(|name| *name <= end.as_str()));
            counts.push(page.count());
            if rest.peek().is_none() {
                break;
            }
        }
        counts.extend(Some(rest.count()).filter(|rest| *rest > 0)); // behind the last end
        counts
    }

    #[test]
    fn the_pages_of_numbered_files_are_guessed_to_the_file() {
        let counts = pages((0..5000).map(|n| format!("d/part-{n:05}-of-05000")).collect());
        assert_eq!(counts, [998, 999, 999, 999, 5]);
        let counts = pages((0..3000).map(|n| format!("d/{:08}.jpg", 123_000 + 7 * n)).collect());
        assert_eq!(counts, [998, 999, 3]);
    }

    #[test]
    fn the_pages_of_other_names_are_guessed_roughly() {
        let mut state = 1u64;
        let mut hash = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            format!("{:016x}", state ^ (state >> 33))
        };
        let hashes: Vec<String> = (0..8000).map(|_| format!("run/{}.pt", hash())).collect();
        for names in [hashes, (0..10_000).map(|n| format!("f{n}")).collect()] {
            let counts = pages(names);
            let (last, full) = counts.split_last().unwrap();
            assert!(full.iter().all(|n| (700..=1000).contains(n)) && *last <= 1000, "{counts:?}");
        }
    }

    #[test]
    fn of_words_and_of_directories_nothing_is_guessed() {
        let word = |n: u32| char::from_u32('g' as u32 + n).unwrap().to_string();
        let words = (0..1000).map(|n| [word(n / 100), word(n / 10 % 10), word(n % 10)].concat());
        assert!(ends(&page(words)).is_none());
        let files = (0..500).map(|n| format!("d/f{n:04}"));
        let directories = (0..500).map(|n| format!("d/g{n:04}/")).collect();
        assert!(ends(&Page { prefixes: directories, ..page(files) }).is_none());
        assert!(ends(&page(["d/f1".to_owned()])).is_none());
        assert!(ends(&page(["d/f1", "d/f1"].map(str::to_owned))).is_none());
    }

    proptest! {
        #[test]
        fn ends_stand_in_order_behind_the_page(mut names in proptest::collection::vec(
            "[a-c/]{0,3}[0-9a-f]{1,40}[.-]?[0-9a-z]{0,3}", 2..40,
        )) {
            names.sort();
            let last = names.last().cloned().unwrap();
            let guessed = ends(&page(names)).into_iter().flatten();
            let guessed: Vec<Key> = guessed.take(50).collect();
            prop_assert!(guessed.is_sorted());
            prop_assert!(guessed.first().is_none_or(|end| end.as_str() >= last.as_str()));
        }
    }
}
