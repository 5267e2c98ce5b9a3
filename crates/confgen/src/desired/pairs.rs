//! Walks two sorted maps side by side, and allocates nothing. Pure.

use std::cmp::Ordering;
use std::sync::Arc;

/// The keys of two sequences that are sorted by key, each with its value in either. No key comes twice in one of them.
pub(crate) fn pair_by_key<'a, K: Ord + 'a, A, B>(
    before: impl IntoIterator<Item = (&'a K, A)>,
    after: impl IntoIterator<Item = (&'a K, B)>,
) -> impl Iterator<Item = (&'a K, Option<A>, Option<B>)> {
    let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (before.peek(), after.peek()) {
            (Some((old, _)), Some((new, _))) => old.cmp(new),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let (old, new) = (before.next_if(|_| order.is_le()), after.next_if(|_| order.is_ge()));
        let key = old.as_ref().map(|(key, _)| *key).or(new.as_ref().map(|(key, _)| *key))?;
        Some((key, old.map(|(_, value)| value), new.map(|(_, value)| value)))
    })
}

/// True if both are the same `Arc`, or both are `None`.
pub(crate) fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn each_key_comes_once_with_its_values() {
        let (before, after) = (BTreeMap::from([("a", 1), ("b", 2)]), BTreeMap::from([("b", 3), ("c", 4)]));
        let pairs: Vec<_> = pair_by_key(&before, &after).map(|(key, old, new)| (*key, old, new)).collect();
        assert_eq!(pairs, [("a", Some(&1), None), ("b", Some(&2), Some(&3)), ("c", None, Some(&4))]);
        assert_eq!(pair_by_key(&BTreeMap::<i32, i32>::new(), &BTreeMap::<i32, i32>::new()).count(), 0);
    }
}
