//! Work in parts, each by a thread of its own: whoever waits for it does nothing else meanwhile, and the target may be stopped.

use std::panic::resume_unwind;

use super::sched;

/// Threads at the most, on machines with many processors: more hardly make it shorter, and each takes some tens of microseconds to begin.
const MOST: usize = 8;

/// How many parts so many things are worth, if none has less than `least` of them.
pub fn parts(all: u64, least: u64) -> usize {
    usize::try_from(all / least.max(1)).unwrap_or(MOST).clamp(1, sched::parallelism().min(MOST))
}

/// Does the work with each part at once, with the first here. The results come in the order of the parts.
pub fn each<T: Send, R: Send>(parts: impl IntoIterator<Item = T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let (work, mut parts) = (&work, parts.into_iter());
    let Some(first) = parts.next() else { return Vec::new() };
    std::thread::scope(|scope| {
        let others: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let first = work(first);
        let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        std::iter::once(first).chain(others).collect()
    })
}

/// The same with parts of a list, none of them with less than `least` (but the only one).
pub fn slices<'a, T: Sync, R: Send>(all: &'a [T], least: usize, work: impl Fn(&'a [T]) -> R + Sync) -> Vec<R> {
    let size = all.len().div_ceil(parts(all.len() as u64, least as u64));
    each(all.chunks(size.max(1)), work)
}

/// What the work finds in all parts of a list, in order; or the first error.
pub fn gather<'a, T: Sync, R: Send, E: Send>(
    all: &'a [T],
    least: usize,
    work: impl Fn(&'a [T]) -> Result<Vec<R>, E> + Sync,
) -> Result<Vec<R>, E> {
    let mut found = Vec::new();
    for part in slices(all, least, work) {
        found.append(&mut part?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_done_once_and_in_order() {
        let all: Vec<u32> = (0..10_000).collect();
        for least in [1, 7, 4999, 5000, 5001, 10_000, 1_000_000] {
            let results = slices(&all, least, <[u32]>::to_vec);
            assert_eq!(results.concat(), all);
            assert!(results.len() == 1 || results.iter().rev().skip(1).all(|part| part.len() >= least.min(all.len())));
            assert!(results.len() <= sched::parallelism().min(MOST));
        }
        assert!(slices(&[] as &[u32], 5, <[u32]>::len).is_empty());
        assert_eq!(each([1, 2, 3], |n| n * 2), [2, 4, 6]);
        assert_eq!(gather(&all, 7, |some| Ok::<_, ()>(some.to_vec())), Ok(all.clone()));
        assert_eq!(
            gather(&all, 7, |some| if some.contains(&9999) { Err("the last") } else { Ok(some.to_vec()) }),
            Err("the last")
        );
    }

    #[test]
    fn a_panic_is_not_lost() {
        let caught = std::panic::catch_unwind(|| each([1, 2], |n| assert_ne!(n, 2)));
        assert!(caught.is_err());
    }
}
