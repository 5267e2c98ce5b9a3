//! Which of many things make a whole be refused: by halves, in a bounded number of tries. Pure but for the judge.

/// Finds the items without which the rest passes, each with the judge's words about it. `judge` says why a subset is
/// refused, or nothing where it passes.
///
/// Each culprit costs two judgements for each halving. Where `tries` are used up, all that has not been cleared counts as
/// guilty, and so do all of a part that passes by halves alone: leaving out too much is safe, leaving in too much is not.
pub fn find_culprits<T: Clone, E>(
    items: &[T],
    tries: usize,
    judge: &mut impl FnMut(&[T]) -> Result<Option<String>, E>,
) -> Result<Vec<(T, String)>, E> {
    let mut guilty = Vec::new();
    // Known to be refused, with the words.
    let mut suspects: Vec<_> = judge(items)?.map(|words| (items, words)).into_iter().collect();
    let mut tries = tries.saturating_sub(1);
    while let Some((part, words)) = suspects.pop() {
        let mut refused = Vec::new();
        if part.len() > 1 && tries > 1 {
            tries -= 2;
            let (left, right) = part.split_at(part.len() / 2);
            for half in [left, right] {
                refused.extend(judge(half)?.map(|words| (half, words)));
            }
        }
        if refused.is_empty() {
            guilty.extend(part.iter().map(|item| (item.clone(), words.clone())));
        }
        suspects.extend(refused);
    }
    Ok(guilty)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn find(size: usize, bad: &BTreeSet<usize>, tries: usize) -> (BTreeSet<usize>, usize) {
        let items: Vec<usize> = (0..size).collect();
        let mut judged = 0;
        let mut judge = |part: &[usize]| {
            judged += 1;
            Ok::<_, Infallible>(part.iter().find(|item| bad.contains(item)).map(|item| format!("{item} is bad")))
        };
        let Ok(found) = find_culprits(&items, tries, &mut judge);
        (found.into_iter().map(|(item, _)| item).collect(), judged)
    }

    #[test]
    fn one_of_a_thousand_takes_twenty_tries() {
        let (found, judged) = find(1_000, &[617].into(), 100);
        assert_eq!(found, [617].into());
        assert!(judged <= 21, "{judged}");
    }

    #[test]
    fn without_tries_left_nobody_is_cleared() {
        let (found, judged) = find(8, &[1, 6].into(), 3);
        assert!(found.is_superset(&[1, 6].into()), "{found:?}");
        assert_eq!(judged, 3);
    }

    #[test]
    fn what_is_refused_together_alone_is_guilty_together() {
        let mut judge = |part: &[u8]| {
            Ok::<_, Infallible>((part.contains(&3) && part.contains(&6)).then(|| "they bind one port".to_owned()))
        };
        let Ok(found) = find_culprits(&[1, 2, 3, 4, 5, 6, 7, 8], 100, &mut judge);
        let found: Vec<u8> = found.into_iter().map(|(item, _)| item).collect();
        assert!(found.contains(&3) && found.contains(&6), "{found:?}");
    }

    proptest! {
        #[test]
        fn every_culprit_is_found_and_nobody_else(size in 1..60_usize, bad in prop::collection::btree_set(0..60_usize, 0..6)) {
            let bad: BTreeSet<usize> = bad.into_iter().filter(|item| *item < size).collect();
            prop_assert_eq!(find(size, &bad, 200).0, bad);
        }
    }
}
